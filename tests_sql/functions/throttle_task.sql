-- What a throttle keeps from starting: _flow.sql.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT a_name('task') AS t \gset
SELECT is(pljobs.throttle_task(:'t', max_running => 2, rate => 3, period => '1 s', burst => 4), 'throttled', 'a task is throttled by its name');
SELECT results_eq(format('SELECT scope, max_running, running, rate, period, burst, set_by FROM pljobs.throttles WHERE name = %L', :'t'),
                  $$VALUES ('task', 2, 0::bigint, 3, interval '1 s', 4, session_user::text COLLATE "default")$$, 'people see what is set, and by whom');
SELECT is(pljobs.throttle_task_v1(task => :'t', max_running => NULL, rate => NULL, period => NULL, burst => NULL), 'unthrottled', 'drivers take it away by the versioned name');
SELECT throws_ok(format('SELECT pljobs.throttle_task(%s)', a), 'PJ004', NULL, 'refused: ' || a) FROM unnest(ARRAY['NULL, 1', $$'', 1$$, $$'t', 0$$, $$'t', rate => 1$$]) AS a;
SELECT throws_ok($$SELECT pljobs.throttle_task('', 1)$$, 'PJ004', 'the name of a task has 1 to 255 characters', 'which it names');

-- What runs already counts.
SELECT * FROM a_doing_job() \gset
SELECT pljobs.throttle_task((SELECT task FROM pljobs.job WHERE id = :job_id), 1000000) \g /dev/null
SELECT cmp_ok((SELECT t.running FROM pljobs.throttles AS t JOIN pljobs.jobs AS j ON j.task = t.name WHERE t.scope = 'task' AND j.id = :job_id), '>=', 1::bigint, 'what runs counts');

-- Taken away while jobs are parked at it, it is gone: nobody waits for a throttle that limits nothing.
SELECT a_name('queue') AS q, a_name('task') AS t, a_worker() AS w \gset
SELECT pljobs.throttle_task(:'t', max_running => 1), count(a_todo_job(queue => :'q', task => :'t')) FROM generate_series(1, 3) \g /dev/null
SELECT count(*) FROM pljobs.fetch_jobs_v1(:w, 5, ARRAY[:'q']) \g /dev/null
SELECT is((SELECT count(*) FROM pljobs.job WHERE queue = :'q' AND waiting_for = 'limit'), 2::bigint, 'two are parked');
SELECT is(pljobs.throttle_task(:'t'), 'unthrottled', 'the limit is taken away');
SELECT is_empty(format('SELECT FROM pljobs.throttle WHERE name = %L', :'t'), 'no row is left');
SELECT is((SELECT count(*) FROM pljobs.fetch_jobs_v1(:w, 5, ARRAY[:'q'])), 2::bigint, 'and those that were parked start');

SELECT * FROM finish();
ROLLBACK;

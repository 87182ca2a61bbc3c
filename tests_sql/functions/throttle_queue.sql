-- What a throttle keeps from starting: _flow.sql.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT a_name('queue') AS q \gset
SELECT is(pljobs.throttle_queue(:'q', max_running => 10, rate => 100, period => '1 min'), 'throttled', 'a queue is throttled by its name, whether it has jobs or not');
SELECT results_eq(format('SELECT scope, max_running, running, rate, period, burst, set_by FROM pljobs.throttles WHERE name = %L', :'q'),
                  $$VALUES ('queue', 10, 0::bigint, 100, interval '1 min', 100, session_user::text COLLATE "default")$$, 'people see what is set, and by whom');
SELECT is(pljobs.throttle_queue(:'q', max_running => 5, each_key => true), 'throttled', 'each key of it beside that');
SELECT results_eq(format('SELECT scope, max_running, running, rate FROM pljobs.throttles WHERE name = %L ORDER BY scope', :'q'),
                  $$VALUES ('key', 5, NULL::bigint, NULL::integer), ('queue', 10, 0, 100)$$, 'both are seen');
SELECT is(pljobs.throttle_queue(:'q', rate => 7, period => '1 h', burst => 1), 'throttled', 'a call replaces what was set before');
SELECT results_eq(format('SELECT max_running, rate, period, burst FROM pljobs.throttles WHERE name = %L AND scope = ''queue''', :'q'),
                  $$VALUES (NULL::integer, 7, interval '1 h', 1)$$, 'all of it');
SELECT is(pljobs.throttle_queue(:'q'), 'unthrottled', 'without limits it is taken away');
SELECT is(pljobs.throttle_queue(:'q'), 'unchanged', 'once');
SELECT is(pljobs.throttle_queue_v1(queue => :'q', max_running => NULL, rate => NULL, period => NULL, burst => NULL, each_key => true), 'unthrottled', 'drivers take it away by the versioned name');
SELECT is_empty(format('SELECT FROM pljobs.throttles WHERE name = %L', :'q'), 'and nothing is left');

SELECT throws_ok(format('SELECT pljobs.throttle_queue(%s)', a), 'PJ004', NULL, 'refused: ' || a) FROM unnest(ARRAY[
    'NULL, 1', $$'', 1$$, $$repeat('q', 256), 1$$, $$'q', 0$$, $$'q', -1$$, $$'q', rate => 0, period => '1 s'$$, $$'q', rate => 1$$, $$'q', period => '1 s'$$, $$'q', 1, burst => 1$$,
    $$'q', rate => 1, period => '1 s', burst => 0$$, $$'q', rate => 1000001, period => '1 s'$$, $$'q', rate => 1, period => '0.9 s'$$, $$'q', rate => 1, period => '11 years'$$, $$'q', rate => 1, period => '-1 s'$$, $$'q', rate => 1, period => '-1 year 360 days 1 s'$$,
    $$'q', rate => 1000000, period => '1 s', burst => 1000001$$, $$'q', rate => 1, period => '6 years', burst => 2$$]) AS a;
SELECT is(pljobs.throttle_queue(rpad(a_name('''; -- %' || chr(8238)), 255, chr(128512)), 2147483647, 1000000, '1 s', 1000000), 'throttled', 'names are only text, of at most 255 characters; limits may be large');
SELECT ok(cardinality(ARRAY(SELECT f.job_id FROM pljobs.fetch_jobs_v1(a_worker(), 1) AS f)) >= 0, 'and a fetch bears that');

-- What runs already is marked; but for what somebody holds.
SELECT * FROM a_doing_job() \gset
SELECT pljobs.throttle_queue((SELECT queue FROM pljobs.job WHERE id = :job_id), 1) \g /dev/null
SELECT is((SELECT t.running FROM pljobs.throttles AS t JOIN pljobs.jobs AS j ON j.queue = t.name WHERE j.id = :job_id), 1::bigint, 'what runs counts');
SELECT is(finish_run(:job_id, :run_id, 'succeeded'), 'succeeded', 'and ends as ever');

-- Roles.
SET LOCAL ROLE pljobs_producer;
SELECT throws_ok($$SELECT pljobs.throttle_queue('q', 1)$$, '42501', NULL, 'a producer throttles nothing');
SELECT lives_ok('SELECT FROM pljobs.throttles', 'but sees what keeps its jobs waiting');
RESET ROLE;

SELECT * FROM finish();
ROLLBACK;

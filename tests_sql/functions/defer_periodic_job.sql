-- At once from several sessions: races/periodic.spec.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT a_name('periodic task') AS t, a_name('q') AS ql \gset
CREATE FUNCTION a_tick(periodic_id text, tick timestamptz, task text, more jsonb DEFAULT '{}', OUT outcome text, OUT job_id bigint)
LANGUAGE sql VOLATILE
AS $$
SELECT d.outcome, d.job_id FROM pljobs.defer_periodic_job_v1(a_tick.periodic_id, a_tick.tick, jsonb_build_object('task', a_tick.task) || a_tick.more) AS d;
$$;
SELECT * FROM a_tick('p', '2024-01-01 00:00+00', :'t', '{"args": {"a": 1}, "queue": "a queue", "priority": 3, "lock": "a lock", "timeout": "1 h", "grace": "5 s", "start_within": "1 day", "on_cancelled": "another"}') \gset
SELECT is(:'outcome', 'deferred'::text, 'a tick defers a job');
SELECT results_eq(format('SELECT task, args, queue, priority, lock, status, timeout, grace, start_by - created_at, on_cancelled FROM pljobs.job WHERE id = %s', :job_id),
                  format($$VALUES (%L, '{"a": 1}'::jsonb, 'a queue', 3, 'a lock', 'todo', interval '1 h', interval '5 s', interval '1 day', 'another')$$, :'t'), 'the job is as given');
SELECT results_eq(format('SELECT last_tick, job_id FROM pljobs.periodic WHERE task = %L', :'t'), format($$VALUES ('2024-01-01 00:00+00'::timestamptz, %s::bigint)$$, :job_id),
                  'the last tick and its job are kept');
SELECT results_eq(format('SELECT outcome, job_id FROM a_tick(''p'', %L, %L)', s, :'t'), $$VALUES ('already_deferred', NULL::bigint)$$, s || ' is not deferred again')
  FROM unnest('{2024-01-01 00:00+00,2024-01-01 01:00+01,2023-12-31 23:59+00}'::text[]) AS s;
SELECT is(outcome, 'deferred', 'the next tick defers the next job') FROM a_tick('p', '2024-01-01 00:01+00', :'t', jsonb_build_object('queueing_lock', :'ql'::text));
SELECT is(outcome, 'deferred', 'another periodic_id has ticks of its own') FROM a_tick('another', '2024-01-01 00:00+00', :'t');
SELECT is(outcome, 'deferred', 'another task has ticks of its own') FROM a_tick('p', '2024-01-01 00:00+00', :'t' || '!');
SELECT results_eq(format('SELECT outcome, job_id FROM a_tick(''p'', ''2024-01-01 00:02+00'', %L, %L)', :'t', jsonb_build_object('queueing_lock', :'ql'::text)),
                  $$VALUES ('already_enqueued', NULL::bigint)$$, 'a tick whose queueing lock is held by a waiting job defers nothing');
SELECT results_eq(format('SELECT last_tick, job_id FROM pljobs.periodic WHERE task = %L AND periodic_id = ''p''', :'t'),
                  $$VALUES ('2024-01-01 00:02+00'::timestamptz, NULL::bigint)$$, 'that tick counts as done');
SELECT is(outcome, 'already_deferred', 'that tick is not tried again') FROM a_tick('p', '2024-01-01 00:02+00', :'t');

SELECT throws_ok(format($$SELECT pljobs.defer_periodic_job_v1(%s)$$, a), 'PJ002', NULL, 'refused: ' || left(a, 60))
  FROM unnest(ARRAY[$$'p', now(), NULL$$, $$'p', now(), 'null'$$, $$'p', now(), '[]'$$, $$'p', now(), '7'$$, $$'p', now(), '"t"'$$, $$'p', now(), '{}'$$, $$'p', now(), '{"task": null}'$$,
                    $$'p', now(), '[{"task": "t"}]'$$, $$NULL, now(), '{"task": "t"}'$$, $$'p', NULL, '{"task": "t"}'$$, $$'p', now(), '{"task": ""}'$$, $$'p', now(), '{"task": "t", "args": []}'$$,
                    $$'p', now(), '{"task": "t", "queue": ""}'$$, $$repeat('p', 256), now(), '{"task": "t"}'$$, $$'p', 'infinity', '{"task": "t"}'$$, $$'p', '-infinity', '{"task": "t"}'$$,
                    $$'p', now(), '{"task": "t", "timeout": "-1 s"}'$$,
                    -- Longer than an index takes, even compressed.
                    $$'p', now(), jsonb_build_object('task', (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 500) AS n))$$]) AS a;
SELECT is_empty($$SELECT FROM pljobs.periodic WHERE task = 't'$$, 'a refused tick is not done');
SELECT is(outcome, 'deferred', 'an empty periodic_id is one') FROM a_tick('', '2024-01-01 00:00+00', :'t');
SELECT is(outcome, 'deferred', 'names may be 255 characters long') FROM a_tick(repeat(chr(128512), 255), '2024-01-01 00:00+00', rpad(:'t', 255, chr(128512)));
SELECT a_todo_job() AS parent \gset
SELECT count(*) FROM pljobs.cancel_tree(:parent) \g /dev/null
SELECT throws_ok(format($$SELECT a_tick('closed', now(), 'a task', '{"parent_id": %s}')$$, :parent), 'PJ007', NULL, 'not as the child of a cancelled tree');
SELECT is_empty($$SELECT FROM pljobs.periodic WHERE periodic_id = 'closed'$$, 'then its tick is not done');

-- Limited to queues.
SELECT a_login('pljobs_worker') AS worker, a_login('pljobs_worker', 'pljobs_producer') AS both \gset
CREATE FUNCTION ticked(login text, queue text) RETURNS text LANGUAGE sql VOLATILE
RETURN as_login(login, format('SELECT outcome FROM pljobs.defer_periodic_job_v1(%L, clock_timestamp(), %L)', a_name('id'), jsonb_strip_nulls(jsonb_build_object('task', 't', 'queue', queue))));
SELECT is(ticked(:'worker', 'money'), 'deferred', 'a worker without limits defers to any queue');
SELECT pljobs.limit_queues(login, 'fetch', '{mail}') FROM unnest(ARRAY[:'worker', :'both']) AS u(login) \g /dev/null
SELECT is(ticked(:'worker', 'mail'), 'deferred', 'one that is limited in what it fetches only to where it fetches from');
SELECT is(ticked(:'worker', 'money'), 'PJ010', 'not to others');
SELECT is(ticked(:'worker', NULL), 'PJ010', 'nor, without a queue, to ''default''');
SELECT is(ticked(:'both', 'money'), 'deferred', 'who is a producer, too, has that for it');
SELECT pljobs.limit_queues(:'both', 'defer', '{news}') \g /dev/null
SELECT is(ticked(:'both', 'money'), 'PJ010', 'and the limits of that');

SELECT * FROM finish();
ROLLBACK;

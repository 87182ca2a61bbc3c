-- That it waits for nobody: races/heartbeat.spec.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

-- The lease.
SELECT a_worker('10 s') AS w \gset
SELECT lose_worker(:w) \g /dev/null
SELECT is_empty(format('SELECT FROM pljobs.heartbeat_v1(%s, loop_lag => ''2 s'')', :w), 'a worker without runs hears nothing');
SELECT results_eq(format('SELECT expires_at - heartbeat_at, heartbeat_at BETWEEN now() AND clock_timestamp(), loop_lag FROM pljobs.worker WHERE id = %s', :w),
                  $$VALUES (interval '10 s', true, interval '2 s')$$, 'its lease is renewed by as much as it asked for; the lag of its loop is kept');
SELECT lives_ok(format('SELECT pljobs.heartbeat_v1(%s)', :w), 'again');
SELECT is(w.loop_lag, NULL, 'no lag given, none known') FROM pljobs.worker AS w WHERE w.id = :w;
SELECT throws_ok(format('SELECT pljobs.heartbeat_v1(%s)', coalesce(x::text, 'NULL')), 'PJ003', NULL, 'not registered: ' || coalesce(x::text, 'null')) FROM unnest('{-1,0,9223372036854775807,NULL}'::bigint[]) AS x;
SELECT pljobs.unregister_worker_v1(:w) \g /dev/null
SELECT throws_ok(format('SELECT pljobs.heartbeat_v1(%s)', :w), 'PJ003', NULL, 'a stopped worker must register again');

-- Verdicts.
SELECT a_worker() AS w, a_todo_job() AS fine, a_todo_job() AS asked, a_todo_job() AS forced, a_todo_job() AS done \gset
SELECT start_job(:fine, :w) AS fine_run, start_job(:asked, :w) AS asked_run, start_job(:forced, :w) AS forced_run, start_job(:done, :w) AS done_run \gset
SELECT pljobs.cancel_job(:forced, force => true), finish_run(:done, :done_run, 'succeeded') \g /dev/null
SELECT request_id AS asked_request FROM pljobs.cancel_job_v1(:asked, abort => true, reason => 'why', actor => 'for whom') \gset
SELECT * FROM a_doing_job() \gset other_
SELECT ARRAY[:fine_run, :asked_run, :forced_run, :done_run, :other_run_id, -1]::bigint[] AS runs \gset
SELECT set_eq(format('SELECT run_id, job_id, verdict, request_id, actor, reason FROM pljobs.heartbeat_v1(%s, %L)', :w, :'runs'),
              format($$VALUES (%s::bigint, %s::bigint, 'ok', NULL::bigint, NULL::text, NULL::text), (%s, %s, 'abort', %s, 'for whom', 'why'), (%s, NULL, 'lost', NULL, NULL, NULL),
                              (%s, NULL, 'lost', NULL, NULL, NULL), (%s, NULL, 'lost', NULL, NULL, NULL), (-1, NULL, 'lost', NULL, NULL, NULL)$$,
                     :fine_run, :fine, :asked_run, :asked, :asked_request, :forced_run, :done_run, :other_run_id),
              'ok for a run that goes on, abort with who and why for one that was asked, lost for one that was forced, has ended, is another''s or unknown');
SELECT results_eq(format('SELECT requested_by = session_user, requested_at = (SELECT requested_at FROM pljobs.request WHERE id = %s) FROM pljobs.heartbeat_v1(%s, %L) WHERE verdict = ''abort''', :asked_request, :w, :'runs'),
                  'VALUES (true, true)', 'abort is answered again for as long as the run lasts, with which role asked, and when');
SELECT results_eq(format('SELECT run_id, verdict FROM pljobs.heartbeat_v1(%s)', :w), format($$VALUES (%s::bigint, 'abort')$$, :asked_run),
                  'an open request is answered for a run that the worker does not list yet');
SELECT is(status_of(:fine), 'doing', 'a run younger than a lease is not given back, listed or not');
SELECT lives_ok(format('SELECT pljobs.heartbeat_v1(%s, NULL, NULL, NULL)', :w), 'null lists are empty lists');
SELECT is(count(*), 2::bigint, 'a run that is listed twice is answered twice') FROM pljobs.heartbeat_v1(:w, ARRAY[:fine_run, :fine_run, NULL]::bigint[]) WHERE verdict = 'ok';

-- Delivery and handling.
CREATE FUNCTION saw(handling text, VARIADIC run_ids bigint[]) RETURNS jsonb
LANGUAGE sql
RETURN (SELECT jsonb_agg(jsonb_build_object('run_id', r, 'handling', saw.handling)) FROM unnest(run_ids) AS r);
SELECT ok(r.delivered_at BETWEEN r.requested_at AND clock_timestamp() AND r.handling IS NULL, 'when the worker first heard of a request is kept') FROM pljobs.request AS r WHERE r.id = :asked_request;
SELECT delivered_at AS delivered FROM pljobs.request WHERE id = :asked_request \gset
SELECT pljobs.heartbeat_v1(:w, ARRAY[:asked_run, :fine_run]::bigint[], saw('handling', :asked_run, :fine_run, -1, NULL)) \g /dev/null
SELECT is(r.handling, 'handling', 'that the task is handling its abort is kept') FROM pljobs.request AS r WHERE r.id = :asked_request;
SELECT pljobs.heartbeat_v1(:w, ARRAY[:asked_run, :fine_run]::bigint[], saw('swallowed', :asked_run)) \g /dev/null
SELECT is(r.handling, 'swallowed', 'that the task has swallowed its abort is kept') FROM pljobs.request AS r WHERE r.id = :asked_request;
SELECT pljobs.heartbeat_v1(:w, ARRAY[:asked_run, :fine_run]::bigint[]) \g /dev/null
SELECT results_eq(format('SELECT handling, delivered_at FROM pljobs.request WHERE id = %s', :asked_request), format($$VALUES ('swallowed', %L::timestamptz)$$, :'delivered'), 'what was known stays known');

-- Giving back.
SELECT ids[1] AS one, ids[2] AS two, queue, lock FROM a_lane(2) \gset
SELECT start_job(:one, :w) AS one_run, fetch_ids(:'queue') \gset
SELECT age_runs(:one_run, :fine_run, :asked_run, :other_run_id) \g /dev/null
SELECT set_eq(format('SELECT run_id, verdict FROM pljobs.heartbeat_v1(%s, %L)', :w, ARRAY[:fine_run]::bigint[]), format($$VALUES (%s::bigint, 'ok')$$, :fine_run),
              'of runs older than a lease those that the worker does not list are no longer its own');
SELECT results_eq(format('SELECT status, attempts, crashes FROM pljobs.job WHERE id = %s', :one), $$VALUES ('todo', 0, 0)$$, 'they go back to the queue, and are charged nothing');
SELECT is(e.kind, 'given_back', 'how is kept') FROM pljobs.job_event AS e WHERE e.job_id = :one;
SELECT is(status_of(:asked), 'aborted', 'one that was asked to abort is aborted');
SELECT is(status_of(:fine), 'doing', 'one that the worker lists stays');
SELECT is(status_of(:other_job_id), 'doing', 'another worker''s stays');
SELECT ids[1] AS one, ids[2] AS two, queue, lock FROM a_lane(2) \gset
SELECT start_job(:one, :w) AS one_run, fetch_ids(:'queue') \gset
SELECT age_runs(:one_run), pljobs.cancel_job(:one, abort => true), pljobs.heartbeat_v1(:w, ARRAY[:fine_run]::bigint[]) \g /dev/null
SELECT is(wait_of(:two), 'ready', 'what is given back wakes its lane');
SELECT age_runs(:fine_run), pljobs.heartbeat_v1(:w, NULL) \g /dev/null
SELECT is(status_of(:fine), 'todo', 'who lists nothing holds nothing');

SELECT * FROM finish();
ROLLBACK;

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

-- Timeouts, levels, and when to look again.
SELECT * FROM a_doing_job() \gset
SELECT results_eq(format('SELECT verdict, level, look_in, sql_way, source, term_at FROM verdict_of(%s, %s)', :worker_id, :run_id), $$VALUES ('ok', 0::smallint, NULL::interval, NULL::text, NULL::text, NULL::timestamptz)$$, 'a run without limits may be looked at whenever');
SELECT a_worker() AS w, pljobs.defer_job('t', queue => a_name('queue'), timeout => '100 s', grace => '20 s') AS job_id \gset
SELECT start_job(:job_id, :w) AS run_id \gset
SELECT results_eq(format('SELECT verdict, look_in BETWEEN interval ''90 s'' AND interval ''100 s'' FROM verdict_of(%s, %s)', :w, :run_id), $$VALUES ('ok', true)$$, 'a run with a timeout is to be looked at when that is over');
CREATE FUNCTION told(worker_id bigint, run_id bigint, observed jsonb DEFAULT '[]') RETURNS text
LANGUAGE sql VOLATILE
RETURN (SELECT format('%s %s, in %s s, %s, SQL %s', h.verdict, h.level, coalesce(ceil(extract(epoch FROM h.look_in))::text, '-'), h.source, coalesce(h.sql_way, '-')) FROM verdict_of(told.worker_id, told.run_id, told.observed) AS h);
UPDATE pljobs.job SET timeout_at = timeout_at - interval '200 s' WHERE id = :job_id;
SELECT is(told(:w, :run_id), 'abort 1, in 10 s, deadline, SQL -', 'over it, it is asked to abort: level 1, until half of its grace is over');
SELECT request_id FROM pljobs.job WHERE id = :job_id \gset
SELECT is(j.timeout_at, NULL, 'once') FROM pljobs.job AS j WHERE j.id = :job_id;
SELECT age_request(:request_id, '10 s') \g /dev/null
SELECT is(told(:w, :run_id), 'abort 2, in 1 s, deadline, SQL none', 'level 2: its SQL, every second');
SELECT age_request(:request_id, '9.5 s') \g /dev/null
SELECT ok(h.look_in <= interval '0.5 s', 'until its grace is over') FROM verdict_of(:w, :run_id) AS h;
SELECT age_request(:request_id, '0.5 s') \g /dev/null
SELECT is(told(:w, :run_id), 'abort 3, in 1 s, deadline, SQL none', 'level 3');
SELECT ok(h.term_at <= clock_timestamp(), 'when that began is told') FROM verdict_of(:w, :run_id) AS h;
SELECT age_request(:request_id, '5 s') \g /dev/null
SELECT is(told(:w, :run_id), 'kill 4, in 1 s, deadline, SQL none', 'level 4: to be killed');
SELECT is(finish_run(:job_id, :run_id, 'killed'), 'failed', 'its end');
SELECT * FROM a_doing_job() \gset
SELECT request_id FROM pljobs.cancel_job_v1(:job_id, abort => true) \gset
SELECT is(told(:worker_id, :run_id), 'abort 1, in - s, user, SQL -', 'without a grace nothing follows');
SELECT pljobs.cancel_job(:job_id, abort => true, sql => true) \g /dev/null
SELECT is(told(:worker_id, :run_id), 'abort 2, in 1 s, user, SQL none', 'but its SQL, if that was asked');
SELECT is(told(:worker_id, :run_id, jsonb_build_array(jsonb_build_object('run_id', :run_id, 'sql', 'worker'))), 'abort 2, in - s, user, SQL worker', 'the worker says how it did that itself, and nothing follows');
SELECT * FROM a_late_job('0') \gset
SELECT is(told(:worker_id, :run_id), 'abort 3, in 1 s, deadline, SQL none', 'a run with no grace at all is terminated at once');
SELECT * FROM a_late_job() \gset
SELECT request_id FROM pljobs.cancel_job_v1(:job_id, abort => true, grace => '4 s') \gset
SELECT is(told(:worker_id, :run_id), 'abort 1, in 2 s, user, SQL -', 'a person''s shorter grace counts');
SELECT pljobs.defer_job('t', queue => a_name('queue'), timeout => '100 s') AS soon, a_worker() AS w \gset
SELECT start_job(:soon, :w) AS soon_run \gset
SELECT is(pljobs.cancel_job(:soon, abort => true, grace => '1 h'), 'abort_requested', 'what ends sooner counts');
SELECT ok(h.look_in BETWEEN interval '90 s' AND interval '100 s', 'its timeout comes before') FROM verdict_of(:w, :soon_run) AS h;

-- Whatever a worker says, its lease is renewed.
SELECT * FROM an_aborting_job() \gset
SELECT lives_ok(format('SELECT pljobs.heartbeat_v1(%s, ARRAY[%s]::bigint[], %L)', :worker_id, :run_id, replace(x, 'RUN', :'run_id')), 'understood or not: ' || coalesce(x, 'null'))
  FROM unnest(ARRAY[NULL, 'null', '{}', '[]', '7', '"handling"', '[null]', '[7, "a", [], {}]', '[{"handling": "handling"}]', '[{"run_id": "abc", "handling": "handling"}]', '[{"run_id": RUN, "handling": "garbage", "sql": "garbage"}]',
                    '[{"run_id": RUN, "handling": 7, "sql": [], "progress": "abc", "progress_message": {}}]', '[{"run_id": RUN, "job_id": "x", "progress": 1}]', '[{"run_id": 1e400, "progress": 1e400}]', '[{"run_id": RUN, "progress": 0.5}, {"run_id": RUN, "progress": "NaN"}]',
                    '{"run_id": RUN, "handling": "handling"}', '[[{"run_id": RUN, "progress": 1}]]', '[{"run_id": RUN, "handling": null, "sql": null, "progress": null}]']) AS x;
SELECT results_eq(format('SELECT handling, sql_way FROM pljobs.request WHERE id = %s', :request_id), 'VALUES (NULL::text, NULL::text)', 'nothing of that is kept');
SELECT lives_ok(format('SELECT pljobs.heartbeat_v1(%s, loop_lag => %L)', :worker_id, x), 'a lag of ' || x) FROM unnest('{-1 s,178000000 years,0}'::text[]) AS x;
SELECT count(*) FROM pljobs.heartbeat_v1(:worker_id, ARRAY[:run_id]::bigint[], format('[{"job_id": %s, "run_id": %s, "progress_message": "words"}]', :job_id, :run_id)::jsonb) \g /dev/null
SELECT results_eq(format('SELECT progress, progress_message FROM pljobs.jobs WHERE id = %s', :job_id), $$VALUES (NULL::real, 'words')$$, 'progress in words alone');
SELECT count(*) FROM pljobs.heartbeat_v1(:worker_id, ARRAY[:run_id]::bigint[], format('[{"run_id": -1, "job_id": 1}, {"job_id": %s, "run_id": %s, "progress": 0.5}]', :job_id, :run_id)::jsonb) \g /dev/null
SELECT results_eq(format('SELECT progress, progress_message FROM pljobs.jobs WHERE id = %s', :job_id), $$VALUES (0.5::real, NULL::text)$$, 'and as a number');

-- A job whose limits are as strange as they can be is no danger to its worker.
SELECT a_worker() AS w \gset
SELECT a_name('queue') AS q \gset
SELECT count(j) FROM unnest('{1 month -29 days,12 months -355 days}'::interval[]) AS i, LATERAL pljobs.defer_job('t', queue => :'q', timeout => i + interval '2 days', grace => i + interval '2 days') AS j \g /dev/null
SELECT count(age_timeouts(f.run_id)) FROM pljobs.fetch_jobs_v1(:w, 10, ARRAY[:'q']) AS f \g /dev/null
UPDATE pljobs.job SET grace = '1 month -30 days', timeout_at = now() WHERE worker_id = :w;
SELECT is(count(*), 2::bigint, 'asked to abort') FROM pljobs.heartbeat_v1(:w) WHERE verdict = 'abort';

-- Given back by its worker: by its timeout alone it was not asked to be aborted for good.
SELECT * FROM a_timed_out_job() \gset
SELECT age_runs(:run_id) \g /dev/null
SELECT pljobs.heartbeat_v1(:worker_id) \g /dev/null
SELECT is(status_of(:job_id), 'todo', 'a run that its worker never received and that is over its timeout goes back');

-- A list that holds a null names no run more.
SELECT * FROM a_doing_job() \gset
SELECT age_runs(:run_id), pljobs.heartbeat_v1(:worker_id, '{NULL}') \g /dev/null
SELECT is(status_of(:job_id), 'todo', 'a null in the list keeps no run that was never received');

-- The clock was set back: what was started in what is now the future, and never received, is given back a lease later, not then.
SELECT * FROM a_doing_job() \gset
UPDATE pljobs.job SET started_at = started_at + interval '1 year' WHERE id = :job_id;
SELECT pljobs.heartbeat_v1(:worker_id, ARRAY[:run_id]::bigint[]) \g /dev/null
SELECT ok(started_at > now() + interval '1 day', 'one that is listed stays as it is') FROM pljobs.job WHERE id = :job_id;
SELECT pljobs.heartbeat_v1(:worker_id) \g /dev/null
SELECT ok(status = 'doing' AND started_at <= clock_timestamp(), 'one that is not has started now') FROM pljobs.job WHERE id = :job_id;
SELECT age_runs(:run_id), pljobs.heartbeat_v1(:worker_id) \g /dev/null
SELECT is(status_of(:job_id), 'todo', 'and goes back a lease later');

-- Limited to queues.
SELECT a_login('pljobs_worker') AS ann, a_login('pljobs_worker') AS bob, a_name('queue') AS mail \gset
SELECT pljobs.limit_queues(:'ann', 'fetch', ARRAY[:'mail']) \g /dev/null
SELECT as_login(:'ann', 'SELECT pljobs.register_worker_v2(''w'', ''h'', 1, 2)') AS anns, as_login(:'bob', 'SELECT pljobs.register_worker_v2(''w'', ''h'', 1, 2)') AS bobs, a_todo_job(queue => :'mail') AS own, a_todo_job() AS others \gset
SELECT start_job(:own, :anns) AS own_run, start_job(:others, :bobs) AS others_run \gset
CREATE FUNCTION beaten(login text, worker_id bigint, VARIADIC runs bigint[]) RETURNS text LANGUAGE sql VOLATILE
RETURN as_login(login, format('SELECT string_agg(h.verdict, '','' ORDER BY h.run_id) FROM pljobs.heartbeat_v1(%s, %L, %L) AS h', worker_id, runs,
    (SELECT jsonb_agg(jsonb_build_object('job_id', j.id, 'run_id', j.run_id, 'progress', 0.5, 'progress_message', login)) FROM pljobs.job AS j WHERE j.run_id = ANY (runs))));
SELECT is(beaten(:'ann', :bobs, :others_run), 'PJ003', 'a role that is limited keeps no other''s worker alive');
SELECT is(beaten(:'ann', :anns, :own_run, :others_run), 'ok,lost', 'of another''s run it is told nothing');
SELECT results_eq(format('SELECT p.job_id, p.message FROM pljobs.progress AS p WHERE p.job_id IN (%s, %s)', :own, :others), format('VALUES (%s::bigint, %L)', :own, :'ann'), 'nor says how far that one is');
SELECT is(beaten(:'bob', :anns, :own_run), 'ok', 'who is not limited may: workers trust each other');

SELECT * FROM finish();
ROLLBACK;

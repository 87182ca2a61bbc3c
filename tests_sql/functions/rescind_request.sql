-- Against heartbeats, ends and others: races/rescind.spec.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT * FROM an_aborting_job() \gset
SELECT results_eq(format('SELECT outcome, request_id FROM pljobs.rescind_request_v1(%s, ''mistaken'', ''bob'')', :job_id), format($$VALUES ('rescinded', %s::bigint)$$, :request_id), 'a request that its worker has not heard of is taken back');
SELECT results_eq(format('SELECT status, run_id, request_id FROM pljobs.job WHERE id = %s', :job_id), format($$VALUES ('doing', %s::bigint, NULL::bigint)$$, :run_id), 'the run goes on, with no request');
SELECT results_eq(format('SELECT kind, run_id, resolution, reason, actor, delivered_at IS NULL, resolved_at IS NOT NULL FROM pljobs.request WHERE job_id = %s ORDER BY id', :job_id),
                  format($$VALUES ('abort', %1$s::bigint, 'rescinded', 'a reason', 'an actor', true, true), ('rescind', %1$s, 'rescinded', 'mistaken', 'bob', true, true)$$, :run_id), 'both who asked and who took it back are kept');
SELECT results_eq(format('SELECT event, who IS NOT NULL, detail FROM pljobs.history WHERE job_id = %s AND event LIKE ''%%r%%cind%%'' OR job_id = %1$s AND event LIKE ''abort%%''', :job_id),
                  $$VALUES ('abort requested', true, 'a reason'), ('abort resolved', false, 'rescinded'), ('rescinded', true, 'mistaken')$$, 'and shown in the job''s history');
SELECT results_eq(format('SELECT verdict FROM pljobs.heartbeat_v1(%s, ARRAY[%s]::bigint[])', :worker_id, :run_id), $$VALUES ('ok')$$, 'the worker hears nothing of it');
SELECT is(pljobs.rescind_request(:job_id), 'no_request', 'again: there is none');
SELECT is(pljobs.cancel_job(:job_id, abort => true), 'abort_requested', 'it may be asked anew');
SELECT is(finish_run(:job_id, :run_id, 'aborted'), 'aborted', 'and is then stopped');

SELECT * FROM an_aborting_job() \gset
SELECT pljobs.rescind_request(:job_id) \g /dev/null
SELECT is(finish_run(:job_id, :run_id, 'failed', '{"retry_at": "2001-01-01T00:00:00Z"}'), 'todo', 'a run whose request was taken back may be retried');
SELECT * FROM an_aborting_job() \gset
SELECT verdict FROM pljobs.heartbeat_v1(:worker_id, ARRAY[:run_id]::bigint[]) \g /dev/null
SELECT results_eq(format('SELECT outcome, request_id FROM pljobs.rescind_request_v1(%s)', :job_id), format($$VALUES ('already_delivered', %s::bigint)$$, :request_id), 'once delivered it is too late');
SELECT is(finish_run(:job_id, :run_id, 'aborted'), 'aborted', 'the abort goes on');
SELECT is(pljobs.rescind_request(:job_id), 'no_request', 'what has ended has no open request');
SELECT is(pljobs.rescind_request(a_todo_job()), 'no_request', 'nor has a job that waits');
SELECT * FROM a_doing_job() \gset
SELECT is(pljobs.rescind_request(:job_id), 'no_request', 'nor one that was not asked');
SELECT is(pljobs.rescind_request(x), 'not_found', 'not found: ' || coalesce(x::text, 'null')) FROM unnest('{-1,0,9223372036854775807,NULL}'::bigint[]) AS x;

-- Its SQL was cancelled for it before its worker has heard of it: too late as well.
SELECT * FROM an_aborting_job() \gset
UPDATE pljobs.request SET sql_way = 'server' WHERE id = :request_id;
SELECT is(pljobs.rescind_request(:job_id), 'already_delivered', 'once its SQL was cancelled it is too late');

-- Its timeout joins a person's request, which is then taken back: the limit stays.
SELECT * FROM a_late_job() \gset
SELECT age_runs(:run_id), pljobs.cancel_job(:job_id, abort => true), pljobs._ask_late_runs_to_abort(NULL, 1000), pljobs.rescind_request(:job_id) \g /dev/null
SELECT results_eq(format('SELECT verdict, source FROM verdict_of(%s, %s)', :worker_id, :run_id), $$VALUES ('abort', 'deadline')$$, 'its timeout asks again, for itself');

-- One that its timeout asked.
SELECT * FROM a_late_job() \gset
SELECT pljobs._ask_late_runs_to_abort(NULL, 1000) \g /dev/null
SELECT is(pljobs.rescind_request(:job_id), 'rescinded', 'a timeout''s request may be taken back, too');
SELECT is(h.verdict, 'ok', 'then the run has all the time it wants') FROM verdict_of(:worker_id, :run_id) AS h;
SELECT * FROM a_timed_out_job() \gset
SELECT is(pljobs.rescind_request(:job_id), 'already_delivered', 'not once it was delivered');

-- One of a tree that was cancelled by mistake.
SELECT * FROM a_doing_job() \gset
SELECT a_child_of(:job_id) AS child \gset
SELECT pljobs.cancel_tree(:job_id, abort => true) \g /dev/null
SELECT is(pljobs.rescind_request(:job_id), 'rescinded', 'asked by cancel_tree: taken back');
SELECT is(status_of(:child), 'cancelled', 'its children that were cancelled stay so');
SELECT lives_ok(format('SELECT a_child_of(%s)', :job_id), 'but it may have others');
SELECT is(fetch_ids((SELECT queue FROM pljobs.job WHERE parent_id = :job_id AND status = 'todo')), (SELECT array_agg(id) FROM pljobs.job WHERE parent_id = :job_id AND status = 'todo'), 'which run');

-- Whose job it is.
SELECT a_login('pljobs_producer') AS ann, a_login('pljobs_producer') AS bob, a_login('pljobs_canceller') AS guard, a_login('pljobs_operator') AS ops \gset
SELECT as_login(:'ann', format('SELECT pljobs.defer_job(''t'', queue => %L)', a_name('queue'))) AS job_id \gset
SELECT start_job(:job_id) \g /dev/null
SELECT is(as_login(:'guard', format('SELECT pljobs.cancel_job(%s, abort => true)', :job_id)), 'abort_requested', 'somebody has asked it to abort');
SELECT is(as_login(:'bob', format('SELECT ROW(r.*) FROM pljobs.rescind_request_v1(%s) AS r', :job_id)), '(not_found,)', 'another producer''s job is as if it were not there');
SELECT is(as_login(:'ann', format('SELECT pljobs.rescind_request(%s)', :job_id)), 'rescinded', 'whose job it is takes the request back, whoever made it');
SELECT is(as_login(:'ann', format('SELECT pljobs.cancel_job(%s, abort => true)', :job_id)), 'abort_requested', 'asks itself');
SELECT is(as_login(:'guard', format('SELECT pljobs.rescind_request(%s)', :job_id)), 'rescinded', 'and a canceller takes that back');
SELECT is(as_login(:'ops', format('SELECT pljobs.rescind_request(%s)', :job_id)), 'no_request', 'an operator sees that there is none');

SELECT * FROM finish();
ROLLBACK;

BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT * FROM a_doing_job() \gset
SELECT pljobs._end_job(:job_id, 'failed', 'a message', 'an error', '{"r": 1}', :run_id) \g /dev/null
SELECT results_eq(
    format('SELECT status, run_id, last_run_id, request_id, worker_id, message, error, result FROM pljobs.job WHERE id = %s', :job_id),
    format($$VALUES ('failed', NULL::bigint, %s::bigint, NULL::bigint, %s::bigint, 'a message', 'an error', '{"r": 1}'::jsonb)$$, :run_id, :worker_id),
    'a job''s end clears its run and keeps which run ended it, its worker, message, error and result');
SELECT ok(j.finished_at BETWEEN j.started_at AND clock_timestamp(), 'a job''s end sets finished_at') FROM pljobs.job AS j WHERE j.id = :job_id;

SELECT * FROM a_doing_job() \gset
SELECT pljobs._end_job(:job_id, 'aborted', NULL) \g /dev/null
SELECT is(j.last_run_id, NULL, 'a run that is ended from outside is not the one that ended the job') FROM pljobs.job AS j WHERE j.id = :job_id;

SELECT throws_ok(format($$SELECT pljobs._end_job(%s, 'vanished', NULL)$$, a_todo_job()), '23514', NULL, 'a status that is not known is refused');
SELECT throws_ok(format($$SELECT pljobs._end_job(%s, 'todo', NULL)$$, a_todo_job()), '23514', NULL, 'a status that is not final is refused');

SELECT * FROM finish();
ROLLBACK;

-- What finish_jobs_v1 answers is in finish_jobs.sql; here, what this helper alone decides.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

CREATE FUNCTION end_run(job_id bigint, run_id bigint, outcome text, delete_job boolean DEFAULT false, retry_at timestamptz DEFAULT NULL, message text DEFAULT NULL) RETURNS text
LANGUAGE sql VOLATILE
RETURN pljobs._finish_run(end_run.job_id, end_run.run_id, end_run.outcome, '{"r": 1}', end_run.message, 'an error', end_run.delete_job,
                          end_run.retry_at, NULL, NULL, NULL, false);

SELECT is(end_run(-1, 1, 'succeeded'), 'not_found', 'an unknown job is not found');
SELECT is(end_run(a_todo_job(), NULL, 'succeeded'), 'stale', 'a waiting job is not ended by a run without an id');
SELECT is(end_run(a_finished_job('failed'), NULL, 'succeeded'), 'stale', 'a finished job is not ended again by a run without an id');
SELECT * FROM a_doing_job() \gset
SELECT is(end_run(:job_id, NULL, 'succeeded'), 'stale', 'a running job is not ended by a run without an id');
SELECT is(end_run(:job_id, :run_id + 1000000, 'succeeded'), 'stale', 'a running job is not ended by another run');
SELECT is(end_run(:job_id, :run_id, 'succeeded'), 'succeeded', 'a run is ended by its own id');
SELECT is(end_run(:job_id, :run_id, 'failed'), 'succeeded', 'a replayed end changes nothing and is answered what was written');

SELECT * FROM a_doing_job() \gset
SELECT is(end_run(:job_id, :run_id, 'aborted', message => 'inside'), 'failed', 'a run that aborts though nobody asked has failed');
SELECT is(j.message, 'cancelled from inside, nobody asked: inside', 'its message says so') FROM pljobs.job AS j WHERE j.id = :job_id;
SELECT * FROM a_doing_job() \gset
SELECT is(end_run(:job_id, :run_id, 'aborted', retry_at => clock_timestamp()), 'todo', 'a run that aborts though nobody asked is retried as any failed one');
SELECT * FROM a_doing_job() \gset
SELECT is(end_run(:job_id, :run_id, 'failed', delete_job => true), 'deleted', 'delete_job deletes where the job would have ended');
SELECT * FROM a_doing_job() \gset
SELECT is(end_run(:job_id, :run_id, 'failed', true, clock_timestamp()), 'todo', 'delete_job does not delete what is retried');
SELECT * FROM an_aborting_job() \gset
SELECT is(end_run(:job_id, :run_id, 'interrupted'), 'aborted', 'an interrupted run that was asked to abort is aborted');
SELECT is(j.message, 'a reason', 'without a message of its own an aborted job says the reason of the request') FROM pljobs.job AS j WHERE j.id = :job_id;

SELECT * FROM finish();
ROLLBACK;

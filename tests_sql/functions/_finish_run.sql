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

-- What it writes where: the outcome that a worker saw, who asked, and what becomes of job and request.
CREATE FUNCTION ends(asked text, outcome text, retry boolean, sql_cancelled boolean DEFAULT false, sql_way text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_job record;
    v_request bigint;
BEGIN
    IF asked = 'deadline' THEN
        v_job := a_timed_out_job();
        v_request := v_job.request_id;
    ELSE
        v_job := a_doing_job();
        IF asked <> 'nobody' THEN
            v_request := (SELECT a.request_id FROM pljobs._ask_to_abort(v_job.job_id, asked, 'why', NULL) AS a);
        END IF;
    END IF;
    UPDATE pljobs.request AS r SET sql_way = ends.sql_way WHERE r.id = v_request;
    PERFORM pljobs._finish_run(v_job.job_id, v_job.run_id, ends.outcome, NULL, NULL, NULL, false, CASE WHEN retry THEN timestamptz '2001-01-01' END, NULL, NULL, NULL, ends.sql_cancelled);
    RETURN (SELECT concat_ws(' ', j.status, j.attempts, coalesce(r.resolution, 'open'), CASE WHEN w.tainted_at IS NOT NULL THEN 'tainted' END)
              FROM pljobs.job AS j LEFT JOIN pljobs.request AS r ON r.id = v_request LEFT JOIN pljobs.worker AS w ON w.id = v_job.worker_id WHERE j.id = v_job.job_id);
END
$$;
SELECT is(ends(asked, outcome, retry), wanted, format('asked by %s, %s, retry %s: %s', asked, outcome, retry, wanted))
  FROM (VALUES ('nobody', 'succeeded', true, 'succeeded 1 open'), ('nobody', 'killed', false, 'failed 1 open'), ('nobody', 'killed', true, 'todo 1 open'), ('nobody', 'abandoned', false, 'failed 1 open tainted'), ('nobody', 'abandoned', true, 'failed 1 open tainted'),
               ('nobody', 'interrupted', true, 'todo 0 open'),
               ('user', 'succeeded', true, 'succeeded 1 finished_first'), ('user', 'failed', true, 'failed 1 failed_first'), ('user', 'aborted', true, 'aborted 1 aborted'), ('user', 'killed', true, 'aborted 1 killed'), ('user', 'abandoned', true, 'aborted 1 abandoned tainted'), ('user', 'interrupted', true, 'aborted 1 aborted'),
               ('tree', 'succeeded', true, 'succeeded 1 finished_first'), ('tree', 'failed', true, 'failed 1 failed_first'), ('tree', 'aborted', true, 'aborted 1 aborted'), ('tree', 'killed', true, 'aborted 1 killed'), ('tree', 'abandoned', true, 'aborted 1 abandoned tainted'), ('tree', 'interrupted', true, 'aborted 1 aborted'),
               ('deadline', 'succeeded', true, 'succeeded 1 finished_first'), ('deadline', 'failed', false, 'failed 1 failed_first'), ('deadline', 'failed', true, 'todo 1 failed_first'), ('deadline', 'aborted', false, 'failed 1 timeout'), ('deadline', 'aborted', true, 'todo 1 timeout'),
               ('deadline', 'killed', false, 'failed 1 timeout'), ('deadline', 'killed', true, 'todo 1 timeout'), ('deadline', 'abandoned', false, 'failed 1 abandoned tainted'), ('deadline', 'abandoned', true, 'failed 1 abandoned tainted'), ('deadline', 'interrupted', true, 'todo 1 timeout'))
       AS v(asked, outcome, retry, wanted);
-- It failed because a statement was cancelled: if its request cancelled one, that is what was asked for.
SELECT is(ends(asked, outcome, true, true, way), wanted, format('asked by %s, its SQL cancelled, way %s, %s: %s', asked, coalesce(way, 'none yet'), outcome, wanted))
  FROM (VALUES ('nobody', 'failed', NULL, 'todo 1 open'), ('user', 'failed', NULL, 'failed 1 failed_first'), ('user', 'failed', 'none', 'failed 1 failed_first'), ('user', 'failed', 'busy', 'failed 1 failed_first'), ('user', 'failed', 'denied', 'failed 1 failed_first'), ('user', 'failed', 'pooled', 'failed 1 failed_first'),
               ('user', 'failed', 'server', 'aborted 1 aborted'), ('user', 'failed', 'worker', 'aborted 1 aborted'), ('user', 'failed', 'asked', 'aborted 1 aborted'), ('tree', 'failed', 'server', 'aborted 1 aborted'), ('deadline', 'failed', 'server', 'todo 1 timeout'), ('user', 'succeeded', 'server', 'succeeded 1 finished_first'))
       AS v(asked, outcome, way, wanted);
SELECT * FROM an_aborting_job() \gset
UPDATE pljobs.request SET level = 2 WHERE id = :request_id;
SELECT is(finish_run(:job_id, :run_id, 'failed', '{"sql_cancelled": true}'), 'aborted', 'so it is where that was not recorded, but due: level 2');
SELECT * FROM an_aborting_job() \gset
UPDATE pljobs.request SET sql_at = now() - interval '1 s', sql_way = 'pooled' WHERE id = :request_id;
SELECT is(finish_run(:job_id, :run_id, 'failed', '{"sql_cancelled": true}'), 'aborted', 'or by its time');
SELECT is(ends('user', 'failed', true, false, 'server'), 'failed 1 failed_first', 'what failed by itself has failed, whatever was cancelled');
SELECT * FROM a_timed_out_job() \gset
SELECT end_run(:job_id, :run_id, 'aborted', message => 'stopped') \g /dev/null
SELECT is(j.message, 'timeout: stopped', 'a timeout says so') FROM pljobs.job AS j WHERE j.id = :job_id;
SELECT * FROM a_timed_out_job() \gset
SELECT end_run(:job_id, :run_id, 'killed') \g /dev/null
SELECT is(j.message, 'timeout: ran longer than its timeout of 01:00:00', 'and which') FROM pljobs.job AS j WHERE j.id = :job_id;
SELECT * FROM a_timed_out_job() \gset
SELECT is(end_run(:job_id, :run_id, 'aborted', delete_job => true), 'deleted', 'delete_job deletes what timed out for good');
-- Where its row was held it could not be asked; its worker has stopped it.
SELECT * FROM a_late_job() \gset
SELECT is(end_run(:job_id, :run_id, 'aborted', message => 'stopped'), 'failed', 'a late run that was not asked has failed');
SELECT is(j.message, 'timeout: stopped', 'by its timeout') FROM pljobs.job AS j WHERE j.id = :job_id;
SELECT results_eq(format('SELECT run_id, source, resolution, reason FROM pljobs.request WHERE job_id = %s', :job_id),
                  format('VALUES (%s::bigint, ''deadline'', ''timeout'', ''ran longer than its timeout of 01:00:00'')', :run_id), 'which is on record');
SELECT * FROM a_late_job() \gset
SELECT is(end_run(:job_id, :run_id, 'aborted', retry_at => now()), 'todo', 'it is retried as its strategy says');
SELECT * FROM a_late_job() \gset
SELECT is(end_run(:job_id, :run_id, 'succeeded'), 'succeeded', 'one that has succeeded has succeeded');
SELECT is_empty(format('SELECT FROM pljobs.request WHERE job_id = %s', :job_id), 'and nobody asked');
SELECT a_worker() AS worker_id, a_todo_job() AS job_id, a_todo_job() AS other \gset
SELECT start_job(:job_id, :worker_id) AS run_id, start_job(:other, :worker_id) AS other_run \gset
SELECT end_run(:job_id, :run_id, 'abandoned') \g /dev/null
SELECT tainted_at FROM pljobs.worker WHERE id = :worker_id \gset
SELECT is(end_run(:job_id, :run_id, 'abandoned'), 'failed', 'a replay of it is answered what was written');
SELECT end_run(:other, :other_run, 'abandoned') \g /dev/null
SELECT is(w.tainted_at, :'tainted_at'::timestamptz, 'tainted once, since the first') FROM pljobs.worker AS w WHERE w.id = :worker_id;
SELECT is_empty(format('SELECT FROM pljobs.fetch_jobs_v1(%s, 1)', :worker_id), 'a tainted worker is given no more jobs');
SELECT results_eq(format('SELECT tainted_at IS NOT NULL FROM pljobs.workers WHERE id = %s', :worker_id), 'VALUES (true)', 'people see it');

SELECT * FROM finish();
ROLLBACK;

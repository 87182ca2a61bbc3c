BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT * FROM a_doing_job() \gset
SELECT is(pljobs._release_job(:job_id, true, 3), 'todo', 'a job that lost its worker runs again');
SELECT results_eq(format('SELECT status, attempts, crashes, message FROM pljobs.job WHERE id = %s', :job_id),
                  format($$VALUES ('todo', 1, 1, 'worker %s was lost')$$, :worker_id), 'its attempt and a crash are counted');
SELECT start_job(:job_id) AS run_id \gset
SELECT is(pljobs._release_job(:job_id, true, 3), 'todo', 'below the cap it runs again');
SELECT start_job(:job_id) AS run_id \gset
SELECT is(pljobs._release_job(:job_id, true, 3), 'failed', 'at the cap it fails');
SELECT results_eq(format('SELECT status, attempts, crashes, message, last_run_id FROM pljobs.job WHERE id = %s', :job_id),
                  $$VALUES ('failed', 3, 3, 'worker lost 3 times', NULL::bigint)$$, 'a failed job says how often its worker was lost');
SELECT is(finish_run(:job_id, :run_id, 'succeeded'), 'stale', 'a lost worker that comes back is answered stale');

SELECT * FROM a_doing_job() \gset
SELECT is(pljobs._release_job(:job_id, true, 1), 'failed', 'with a cap of one the first crash is the last');

SELECT * FROM a_doing_job() \gset
SELECT is(pljobs._release_job(:job_id, false, NULL), 'todo', 'a job that its worker never received goes back');
SELECT results_eq(format('SELECT attempts, crashes FROM pljobs.job WHERE id = %s', :job_id), 'VALUES (0, 0)', 'then nothing is charged');
SELECT is(e.kind, 'given_back', 'its event says given_back') FROM pljobs.job_event AS e WHERE e.job_id = :job_id;

SELECT * FROM an_aborting_job() \gset
SELECT is(pljobs._release_job(:job_id, true, 3), 'aborted', 'a job that was asked to abort is aborted, never run again');
SELECT is(r.resolution, 'worker_lost', 'its request says that the worker was lost') FROM pljobs.request AS r WHERE r.id = :request_id;
SELECT * FROM an_aborting_job(delete_job => true) \gset
SELECT is(pljobs._release_job(:job_id, false, NULL), 'deleted', 'a job that was asked to abort and be deleted is gone');
SELECT is(status_of(:job_id), 'gone', 'a job that was asked to abort and be deleted leaves no row');

SELECT * FROM a_timed_out_job() \gset
SELECT is(pljobs._release_job(:job_id, true, 3), 'todo', 'one that its timeout alone asked runs again');
SELECT results_eq(format('SELECT j.attempts, j.crashes, j.request_id, r.resolution FROM pljobs.job AS j JOIN pljobs.request AS r ON r.id = %s WHERE j.id = %s', :request_id, :job_id), $$VALUES (1, 1, NULL::bigint, 'worker_lost')$$, 'as if not asked');
SELECT * FROM a_timed_out_job() \gset
SELECT is(pljobs._release_job(:job_id, false, NULL), 'todo', 'or goes back');
SELECT results_eq(format('SELECT attempts, crashes FROM pljobs.job WHERE id = %s', :job_id), 'VALUES (0, 0)', 'uncharged');
SELECT * FROM a_timed_out_job() \gset
SELECT is(pljobs._release_job(:job_id, true, 1), 'failed', 'or fails at the cap');
SELECT is(r.resolution, 'worker_lost', 'its request is closed') FROM pljobs.request AS r WHERE r.id = :request_id;

SELECT * FROM finish();
ROLLBACK;

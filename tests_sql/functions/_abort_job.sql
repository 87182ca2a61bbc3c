BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT * FROM an_aborting_job() \gset
SELECT is(pljobs._abort_job(:job_id, :request_id, 'aborted', 'a message', 'an error', :run_id), 'aborted', 'a running job with an open request is aborted');
SELECT results_eq(format('SELECT status, message, error, last_run_id FROM pljobs.job WHERE id = %s', :job_id),
                  format($$VALUES ('aborted', 'a message', 'an error', %s::bigint)$$, :run_id), 'message, error and run are kept');
SELECT results_eq(format('SELECT resolution, resolved_at BETWEEN requested_at AND clock_timestamp() FROM pljobs.request WHERE id = %s', :request_id),
                  $$VALUES ('aborted', true)$$, 'the request is closed, with what became of it');

SELECT * FROM an_aborting_job(delete_job => true) \gset
SELECT is(pljobs._abort_job(:job_id, :request_id, 'worker_lost', 'a message'), 'deleted', 'a request that asks for deletion is answered so');
SELECT is(status_of(:job_id), 'gone', 'a request that asks for deletion deletes the job');
SELECT is(r.resolution, 'worker_lost', 'the request outlives the job') FROM pljobs.request AS r WHERE r.id = :request_id;

SELECT * FROM finish();
ROLLBACK;

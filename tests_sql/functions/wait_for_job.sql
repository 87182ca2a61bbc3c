-- The waiting itself, which commits in between: races/cancel_jobs.spec.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT a_todo_job() AS waiting, a_todo_job() AS gone \gset
SELECT * FROM an_aborting_job(true) \gset
SELECT pljobs.cancel_job(:gone, delete_job => true) \g /dev/null
SELECT a_finished_job('failed') AS deleted \gset
SELECT pljobs.delete_job(:deleted) \g /dev/null
SELECT bag_eq(format('SELECT job_id, status FROM pljobs.get_job_statuses_v1(ARRAY[%s, %s, %s, %s, %2$s, -1]::bigint[])', :waiting, :job_id, :gone, :deleted),
              format($$VALUES (%s::bigint, 'todo'), (%s, 'doing'), (%s, 'deleted'), (%s, 'deleted'), (-1, 'not_found')$$, :waiting, :job_id, :gone, :deleted), 'each job''s status, once');
SELECT is(finish_run(:job_id, :run_id, 'aborted'), 'deleted', 'a job that was to be deleted ends');
SELECT bag_eq(format('SELECT job_id, status FROM pljobs.get_job_statuses_v1(ARRAY[%s, %s]::bigint[])', :job_id, a_finished_job('succeeded')),
              format($$SELECT %s::bigint, 'deleted' UNION ALL SELECT max(id), 'succeeded' FROM pljobs.job$$, :job_id), 'it was deleted; another has succeeded');
SELECT is_empty(format('SELECT FROM pljobs.get_job_statuses_v1(%L)', x), 'nothing asked, nothing answered') FROM unnest('{"{}",NULL}'::text[]) AS x;
SELECT results_eq('SELECT job_id, status FROM pljobs.get_job_statuses_v1(ARRAY[NULL]::bigint[])', $$VALUES (NULL::bigint, 'not_found')$$, 'null is no job');

SELECT * FROM an_aborting_job() \gset
SELECT bag_eq(format('SELECT request_id, resolution FROM pljobs.get_resolutions_v1(ARRAY[%s, -1, %1$s]::bigint[])', :request_id), format($$VALUES (%s::bigint, 'open'), (-1, 'not_found')$$, :request_id), 'each request: open, or not found');
SELECT finish_run(:job_id, :run_id, 'aborted'), pljobs.retry_job(:job_id) \g /dev/null
SELECT results_eq(format('SELECT resolution FROM pljobs.get_resolutions_v1(ARRAY[%s]::bigint[])', :request_id), $$VALUES ('aborted')$$, 'or what became of it, though its job waits again');
SELECT is_empty('SELECT FROM pljobs.get_resolutions_v1(NULL)', 'nothing asked, nothing answered');

SELECT * FROM finish();
ROLLBACK;

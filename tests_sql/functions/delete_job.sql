BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT a_finished_job('failed') AS failed \gset
SELECT results_eq(format('SELECT outcome, status FROM pljobs.delete_job_v1(%s, ''why'', ''whom'')', :failed), $$VALUES ('deleted', 'failed')$$, 'a failed job is deleted');
SELECT is(status_of(:failed), 'gone', 'a deleted job leaves no row');
SELECT results_eq(format('SELECT kind, reason, actor, requested_by = session_user, resolution, delete_job FROM pljobs.request WHERE job_id = %s', :failed),
                  $$VALUES ('delete', 'why', 'whom', true, 'deleted', true)$$, 'who deleted it, for whom and why is kept');
SELECT is(pljobs.delete_job(:failed), 'not_found', 'a deleted job is not found');
SELECT is(pljobs.delete_job(a_finished_job(s)), 'deleted', s || ' is deleted') FROM unnest('{succeeded,failed,cancelled,aborted}'::text[]) AS s;

SELECT a_finished_job('aborted') AS job_id \gset
SELECT pljobs.retry_job(:job_id), pljobs.cancel_job(:job_id), pljobs.delete_job(:job_id) \g /dev/null
SELECT is(count(*), 4::bigint, 'the requests about a deleted job stay') FROM pljobs.request AS r WHERE r.job_id = :job_id;
SELECT is_empty(format('SELECT FROM pljobs.job_event WHERE job_id = %s', :job_id), 'the events of its attempts go');

SELECT a_todo_job() AS todo \gset
SELECT results_eq(format('SELECT outcome, status FROM pljobs.delete_job_v1(%s)', :todo), $$VALUES ('todo', 'todo')$$, 'a waiting job is not deleted');
SELECT is(pljobs.delete_job(:todo), 'todo', 'people are told so');
SELECT is(status_of(:todo), 'todo', 'a waiting job stays as it is');
SELECT * FROM an_aborting_job() \gset
SELECT results_eq(format('SELECT outcome, status FROM pljobs.delete_job_v1(%s)', :job_id), $$VALUES ('running', 'doing')$$, 'a running job is not deleted');
SELECT is(pljobs.delete_job(:job_id), 'running', 'people are told so');
SELECT is(r.delete_job, false, 'nor is deletion asked for') FROM pljobs.request AS r WHERE r.id = :request_id;
SELECT results_eq(format('SELECT outcome, status FROM pljobs.delete_job_v1(%L)', x), $$VALUES ('not_found', NULL::text)$$, 'not found: ' || coalesce(x::text, 'null')) FROM unnest('{-1,0,9223372036854775807,NULL}'::bigint[]) AS x;
SELECT is(pljobs.delete_job(a_finished_job('failed'), repeat('r', 5000), repeat(chr(128512), 5000)), 'deleted', 'a long explanation is no hindrance');

-- Whose job it is.
SELECT a_login('pljobs_producer') AS ann, a_login('pljobs_producer') AS bob, a_login('pljobs_canceller') AS guard, a_login('pljobs_operator') AS ops \gset
CREATE FUNCTION ended_job_of(login text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_id bigint := as_login(login, format('SELECT pljobs.defer_job(''t'', queue => %L)', a_name('queue')));
BEGIN
    PERFORM finish_run(v_id, start_job(v_id), 'failed');
    RETURN v_id;
END
$$;
SELECT ended_job_of(:'ann') AS anns \gset
SELECT is(as_login(:'bob', format('SELECT ROW(d.*) FROM pljobs.delete_job_v1(%s) AS d', :anns)), '(not_found,)', 'another producer''s job is as if it were not there');
SELECT is(status_of(:anns), 'failed', 'and stays');
SELECT is(as_login(:'guard', format('SELECT pljobs.delete_job(%s)', :anns)), '42501', 'a canceller deletes nothing');
SELECT is(as_login(:'ann', format('SELECT pljobs.delete_job(%s)', :anns)), 'deleted', 'its own it deletes');
SELECT is(as_login(:'ops', format('SELECT pljobs.delete_job(%s)', ended_job_of(:'ann'))), 'deleted', 'an operator anybody''s');

SELECT * FROM finish();
ROLLBACK;

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

-- However long, it is a time.
CALL pljobs.wait_for_job(-1, '5000000 years -1800000000 days') \gset
SELECT is(:'status'::text, 'not_found', 'a wait of any length is cut to ten years');
CALL pljobs.wait_for_job(:job_id, '-5000000 years 1800000000 days') \gset
SELECT is(:'status'::text, 'todo', 'or is none');

-- Whose jobs and requests they are.
SELECT a_login('pljobs_producer') AS ann, a_login('pljobs_producer') AS bob, a_login('pljobs_canceller') AS guard, a_login('pljobs_operator') AS ops \gset
SELECT a_login('pljobs_reader') AS eve \gset
SELECT as_login(:'ann', format('SELECT pljobs.defer_job(''t'', queue => %L)', a_name('queue'))) AS waiting, as_login(:'ann', format('SELECT pljobs.defer_job(''t'', queue => %L)', a_name('queue'))) AS gone,
       as_login(:'ann', format('SELECT pljobs.defer_job(''t'', queue => %L)', a_name('queue'))) AS running \gset
SELECT start_job(:running) \g /dev/null
SELECT as_login(:'ann', format('SELECT pljobs.cancel_job(%s, delete_job => true)', :gone)) \g /dev/null
SELECT as_login(:'guard', format('SELECT request_id FROM pljobs.cancel_job_v1(%s, abort => true)', :running)) AS request_id \gset
CREATE FUNCTION statuses(login text, ids bigint[]) RETURNS text LANGUAGE sql VOLATILE
RETURN as_login(login, format('SELECT string_agg(s.status, '','' ORDER BY s.job_id) FROM pljobs.get_job_statuses_v1(%L) AS s', ids));
CREATE FUNCTION resolution(login text, request_id bigint) RETURNS text LANGUAGE sql VOLATILE RETURN as_login(login, format('SELECT r.resolution FROM pljobs.get_resolutions_v1(''{%s}'') AS r', request_id));
SELECT is(statuses(:'ann', ARRAY[:waiting, :gone, :running, -1]::bigint[]), 'not_found,todo,deleted,doing', 'a producer is told of its own jobs');
SELECT is(statuses(:'bob', ARRAY[:waiting, :gone, :running, -1]::bigint[]), 'not_found,not_found,not_found,not_found', 'of others'' as of unknown ones');
SELECT is(statuses(who, ARRAY[:waiting, :gone, :running]::bigint[]), 'todo,deleted,doing', what || ' is told of all') FROM (VALUES (:'guard', 'a canceller'), (:'ops', 'an operator'), (:'eve', 'a reader')) AS w(who, what);
SELECT is(statuses(a_login('pljobs_worker'), '{1}'), '42501', 'a worker asks nothing');
SELECT is(resolution(:'ann', :request_id), 'open', 'whose job it is is told of requests about it');
SELECT is(resolution(:'bob', :request_id), 'not_found', 'others are not');
SELECT is(resolution(who, :request_id), 'open', what || ' is told of all') FROM (VALUES (:'guard', 'a canceller'), (:'ops', 'an operator'), (:'eve', 'a reader')) AS w(who, what);
SELECT as_login(:'bob', format('SELECT pljobs.defer_job(''t'', queue => %L)', a_name('queue'))) AS bobs \gset
SELECT as_login(:'bob', format('SELECT request_id FROM pljobs.cancel_job_v1(%s, delete_job => true)', :bobs)) AS request_id \gset
SELECT is(resolution(:'bob', :request_id), 'deleted', 'who asked is told, though the job is gone');
SELECT is(resolution(:'ann', :request_id), 'not_found', 'and nobody else');

SELECT * FROM finish();
ROLLBACK;

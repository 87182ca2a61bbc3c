-- What people see of it: cancel_job.sql, cancel_tree.sql.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

CREATE FUNCTION stop(job_id bigint, force boolean DEFAULT false, delete_job boolean DEFAULT false, sql boolean DEFAULT false, reason text DEFAULT 'why') RETURNS text
LANGUAGE sql VOLATILE
RETURN (SELECT concat_ws(' ', s.outcome, s.sql_way) FROM pljobs._stop_run(stop.job_id, 'tree', stop.reason, 'whom', stop.delete_job, stop.force, NULL, '2040-01-01', '2050-01-01', stop.sql) AS s);
SELECT * FROM a_doing_job() \gset
SELECT is(stop(:job_id), 'abort_requested', 'a running job is asked');
SELECT results_eq(format('SELECT r.source, r.reason, r.actor, r.delete_job, r.force, r.sql_at, r.term_at, r.kill_at, r.resolution FROM pljobs.request AS r JOIN pljobs.job AS j ON j.request_id = r.id WHERE j.id = %s', :job_id),
                  $$VALUES ('tree', 'why', 'whom', false, false, NULL::timestamptz, '2040-01-01'::timestamptz, '2050-01-01'::timestamptz, NULL::text)$$, 'as is said');
SELECT is(stop(:job_id, sql => true), 'abort_already_requested none', 'its SQL as well: it is in none');
UPDATE pljobs.request SET sql_way = 'server' WHERE job_id = :job_id;
SELECT is(stop(:job_id, sql => true), 'abort_already_requested none', 'asked again: that one was hit before does not count');
SELECT is(r.sql_way, 'none', 'it is tried until one is hit now') FROM pljobs.request AS r JOIN pljobs.job AS j ON j.request_id = r.id WHERE j.id = :job_id;
SELECT is(stop(:job_id, sql => NULL), 'abort_already_requested', 'null is false');
SELECT is(stop(:job_id, force => true, sql => true), 'aborted none', 'by force it is ended');
SELECT results_eq(format('SELECT j.status, j.message, r.resolution, r.force, r.sql_way FROM pljobs.job AS j JOIN pljobs.request AS r ON r.job_id = j.id AND r.resolution <> ''joined'' WHERE j.id = %s', :job_id), $$VALUES ('aborted', 'why', 'forced', true, 'none')$$, 'with what was asked for');
SELECT * FROM a_doing_job() \gset
SELECT is(stop(:job_id, force => true, delete_job => true), 'deleted', 'or gone');
SELECT * FROM a_doing_job() \gset
SELECT is(stop(:job_id, force => true, reason => NULL), 'aborted', 'without a reason');
SELECT is(j.message, 'aborted by force', 'its message says how') FROM pljobs.job AS j WHERE j.id = :job_id;

SELECT * FROM finish();
ROLLBACK;

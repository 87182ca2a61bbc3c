-- Against a heartbeat, a finish, a fetch: races/limits.spec. With SQL to be cancelled: races/cancel_sql.spec.
BEGIN;
\ir ../lib/fixtures.sql
SELECT take_turns() \g /dev/null
SELECT * FROM no_plan();

-- Nothing of other tests is late.
SELECT is_empty('SELECT FROM pljobs.enforce_limits_v1()', 'nothing is late');
SELECT throws_ok(format('SELECT pljobs.enforce_limits_v1(%L)', x), 'PJ004', NULL, 'refused: ' || coalesce(x::text, 'null')) FROM unnest('{0,-1,-2147483648,NULL}'::integer[]) AS x;

CREATE FUNCTION to_start_by(at timestamptz) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_id bigint := a_todo_job();
BEGIN
    UPDATE pljobs.job AS j SET start_by = at WHERE j.id = v_id;
    RETURN v_id;
END
$$;
SELECT * FROM a_late_job() \gset late_
SELECT * FROM a_doing_job() \gset young_
-- A fetch cancels these as well: so they come last.
SELECT to_start_by(now() - interval '1 s') AS overdue, to_start_by(now() + interval '1 h') AS in_time \gset
SELECT set_eq('SELECT job_id, outcome FROM pljobs.enforce_limits_v1()', format($$VALUES (%s::bigint, 'expired'), (%s, 'abort_requested')$$, :overdue, :late_job_id), 'what did not start in time is cancelled, what runs too long is asked to stop');
SELECT is(ARRAY[status_of(:overdue), status_of(:in_time), status_of(:late_job_id), status_of(:young_job_id)], '{cancelled,todo,doing,doing}', 'so they are');
SELECT results_eq(format('SELECT source, resolution FROM pljobs.request WHERE job_id = %s', :late_job_id), $$VALUES ('deadline', NULL::text)$$, 'asked by its deadline');
SELECT is_empty('SELECT FROM pljobs.enforce_limits_v1()', 'once');
SELECT is(h.verdict, 'abort', 'its worker is told') FROM verdict_of(:late_worker_id, :late_run_id) AS h;

-- SQL that is due to be cancelled.
CREATE FUNCTION is_tried(due boolean, way text, handling text) RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_job record := an_aborting_job();
    v_tried boolean;
BEGIN
    UPDATE pljobs.request AS r SET sql_at = now() + CASE WHEN due THEN interval '-1 s' ELSE interval '1 h' END, sql_way = way, handling = is_tried.handling WHERE r.id = v_job.request_id;
    v_tried := EXISTS (SELECT FROM pljobs.enforce_limits_v1() AS e WHERE e.job_id = v_job.job_id AND e.outcome = 'sql_cancelled');
    PERFORM pljobs.cancel_job(v_job.job_id, force => true);
    RETURN v_tried;
END
$$;
SELECT * FROM an_aborting_job() \gset
UPDATE pljobs.request SET sql_at = now() - interval '1 s' WHERE id = :request_id;
SELECT is_empty('SELECT FROM pljobs.enforce_limits_v1()', 'a run that is in no SQL: nothing was done');
SELECT is(r.sql_way, 'none', 'but tried') FROM pljobs.request AS r WHERE r.id = :request_id;
SELECT pljobs.cancel_job(:job_id, force => true) \g /dev/null
CREATE OR REPLACE FUNCTION pljobs.cancel_sql_v1(run_id bigint) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN 'server'; END $$;
SELECT is(is_tried(due, way, handling), tried, format('due: %s, before: %s, %s: %s', due, coalesce(way, 'not tried'), coalesce(handling, 'not seen handling'), CASE WHEN tried THEN 'cancelled' ELSE 'left alone' END))
  FROM (VALUES (true, NULL, NULL, true), (false, NULL, NULL, false), (true, 'none', NULL, true), (true, 'busy', NULL, true), (true, 'pooled', NULL, true), (true, 'server', NULL, false), (true, 'worker', NULL, false), (true, 'asked', NULL, false),
               (true, 'denied', NULL, true), (true, NULL, 'handling', false), (true, NULL, 'swallowed', true)) AS v(due, way, handling, tried);
SELECT * FROM a_finished_job('failed') AS done \gset
SELECT * FROM an_aborting_job() \gset
UPDATE pljobs.request SET sql_at = now() - interval '1 s' WHERE id = :request_id;
SELECT finish_run(:job_id, :run_id, 'aborted') \g /dev/null
SELECT is_empty('SELECT FROM pljobs.enforce_limits_v1()', 'the SQL of what has ended is left alone');

-- How many.
SELECT * FROM a_late_job() \gset a_
SELECT * FROM a_late_job() \gset b_
SELECT to_start_by(now() - interval '3 s') AS one, to_start_by(now() - interval '2 s') AS two \gset
SELECT set_eq('SELECT job_id, outcome FROM pljobs.enforce_limits_v1(1)', format($$VALUES (%s::bigint, 'expired'), (%s, 'abort_requested')$$, :one, :a_job_id), 'at most so many of each kind');
SELECT is(pljobs.enforce_limits(), 2::bigint, 'for people: how many');
SELECT is(pljobs.enforce_limits(), 0::bigint, 'then none');
-- A slow one keeps no others waiting for ever: what is left is done by the next call.
SELECT * FROM an_aborting_job() \gset a_
SELECT * FROM an_aborting_job() \gset b_
UPDATE pljobs.request SET sql_at = now() - interval '1 s' WHERE id IN (:a_request_id, :b_request_id);
CREATE OR REPLACE FUNCTION pljobs.cancel_sql_v1(run_id bigint) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(2.1); RETURN 'server'; END $$;
SELECT is(pljobs.enforce_limits(), 1::bigint, 'what takes long is left to the next call');
-- The same in a heartbeat.
SELECT a_worker() AS w, a_todo_job() AS one, a_todo_job() AS two \gset
SELECT start_job(:one, :w), start_job(:two, :w), pljobs.cancel_job(:one, abort => true, grace => '0'), pljobs.cancel_job(:two, abort => true, grace => '0') \g /dev/null
SELECT pljobs.heartbeat_v1(:w) \g /dev/null
SELECT is(count(r.sql_way), 1::bigint, 'also of what a worker''s heartbeat cancels') FROM pljobs.request AS r WHERE r.job_id IN (:one, :two);

SELECT * FROM finish();
ROLLBACK;

-- What a job has by its status: each combination that one of these rules forbids is refused, and no other.
BEGIN;
\ir lib/fixtures.sql
SELECT * FROM no_plan();

CREATE TEMP TABLE shape (LIKE pljobs.job INCLUDING CONSTRAINTS INCLUDING DEFAULTS);
CREATE FUNCTION pg_temp.is_refused(s shape) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO shape SELECT s.*;
    RETURN false;
EXCEPTION WHEN check_violation THEN
    RETURN true;
END
$$;

CREATE TEMP TABLE tried AS
SELECT u.*, pg_temp.is_refused(u.shape) AS refused
  FROM (SELECT jsonb_populate_record(NULL::shape, jsonb_build_object(
                   'id', 1, 'created_at', now(), 'priority', 0, 'queue', 'q', 'task', 't', 'deferred_by', 'd', 'args', '{}'::jsonb, 'status', s.status, 'waiting_for', w.waiting_for,
                   'attempts', c.attempts, 'crashes', c.crashes, 'run_id', CASE WHEN n & 1 > 0 THEN 1 END, 'request_id', CASE WHEN n & 2 > 0 THEN 1 END,
                   'worker_id', CASE WHEN n & 4 > 0 THEN 1 END, 'timeout_at', CASE WHEN n & 8 > 0 THEN now() END, 'finished_at', CASE WHEN n & 16 > 0 THEN now() END,
                   'fairness_key', CASE WHEN n & 32 > 0 THEN 'k' END)) AS shape
          FROM unnest('{todo,doing,succeeded,failed,aborted,cancelled,vanished}'::text[]) AS s(status),
               unnest('{schedule,lock,turn,limit,whatever,NULL}'::text[]) AS w(waiting_for), generate_series(0, 63) AS n, (VALUES (0, 0), (-1, 0), (0, -1)) AS c(attempts, crashes)
         WHERE (c.attempts, c.crashes) = (0, 0) OR s.status = 'failed') AS u;
SELECT cmp_ok((SELECT count(*) FROM tried WHERE NOT refused), '=', 40::bigint, 'some are accepted');
SELECT is_empty($$
    SELECT to_jsonb(t.shape) FROM tried AS t CROSS JOIN LATERAL (SELECT (t.shape).*) AS j
     WHERE t.refused = (j.attempts >= 0 AND j.crashes >= 0
                        AND j.status IN ('todo', 'doing', 'succeeded', 'failed', 'aborted', 'cancelled')
                        AND (j.finished_at IS NULL) = (j.status IN ('todo', 'doing'))
                        AND (j.run_id IS NOT NULL) = (j.status = 'doing')
                        AND (j.worker_id IS NOT NULL OR j.status <> 'doing')
                        AND (j.request_id IS NULL OR j.status = 'doing')
                        AND (j.timeout_at IS NULL OR j.status = 'doing')
                        AND (j.waiting_for IS NULL OR j.status = 'todo')
                        AND (j.waiting_for IS NULL OR j.waiting_for IN ('schedule', 'lock', 'turn', 'limit'))
                        AND (j.waiting_for IS DISTINCT FROM 'turn' OR j.fairness_key IS NOT NULL)
                        AND (j.fairness_key IS NULL OR j.status <> 'todo' OR j.waiting_for IS NOT NULL))$$,
    'a job is refused exactly if one of these does not hold');

SELECT * FROM finish();
ROLLBACK;

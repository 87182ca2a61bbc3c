CREATE OR REPLACE FUNCTION pljobs.get_job_statuses_v1(job_ids bigint[])
RETURNS TABLE (job_id bigint, status text)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- Returns each job's status, in one call for any number that somebody waits for: as in pljobs.jobs, or
-- 'deleted' if a request says so, or 'not_found' (unknown, pruned, or deleted by its worker at its end; or
-- another's, for who has none of pljobs_reader, pljobs_canceller, pljobs_operator). Locks nothing.
DECLARE
    v_own text[] := pljobs._own_roles('pljobs_reader', 'pljobs_canceller', 'pljobs_operator');
BEGIN
    RETURN QUERY
    SELECT w.id, coalesce(j.status, CASE WHEN EXISTS (
               SELECT FROM pljobs.request AS r
                WHERE r.job_id = w.id AND (r.resolution = 'deleted' OR r.delete_job)
                  AND (v_own IS NULL OR r.requested_by = ANY (v_own))
           ) THEN 'deleted' ELSE 'not_found' END)
      FROM (SELECT DISTINCT u.id FROM unnest(get_job_statuses_v1.job_ids) AS u(id)) AS w
      LEFT JOIN LATERAL (  -- one by one, whatever the statistics say
           SELECT t.status FROM pljobs.job AS t
            WHERE t.id = w.id AND (v_own IS NULL OR t.deferred_by = ANY (v_own)) OFFSET 0) AS j ON true;
END
$$;
COMMENT ON FUNCTION pljobs.get_job_statuses_v1(bigint[])
    IS 'The status of each of these jobs. Driver contract, version 1.';

CREATE OR REPLACE FUNCTION pljobs.get_resolutions_v1(request_ids bigint[])
RETURNS TABLE (request_id bigint, resolution text)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- Returns what became of each request (as in pljobs.requests), 'open', or 'not_found', in one call for any
-- number that somebody waits for. Who asked one run to stop waits for this, not for the job's status: when
-- that run has ended, a person may have put the job back, and another run may have begun. A request that is
-- neither the caller's own nor about a job of its own is 'not_found', as for get_job_statuses_v1. Locks
-- nothing.
DECLARE
    v_own text[] := pljobs._own_roles('pljobs_reader', 'pljobs_canceller', 'pljobs_operator');
BEGIN
    RETURN QUERY
    SELECT w.id, CASE WHEN r.id IS NULL THEN 'not_found' ELSE coalesce(r.resolution, 'open') END
      FROM (SELECT DISTINCT u.id FROM unnest(get_resolutions_v1.request_ids) AS u(id)) AS w
      LEFT JOIN LATERAL (
           SELECT q.id, q.resolution FROM pljobs.request AS q
            WHERE q.id = w.id
              AND (v_own IS NULL OR q.requested_by = ANY (v_own) OR EXISTS (
                   SELECT FROM pljobs.job AS j WHERE j.id = q.job_id AND j.deferred_by = ANY (v_own)))
           OFFSET 0) AS r ON true;
END
$$;
COMMENT ON FUNCTION pljobs.get_resolutions_v1(bigint[])
    IS 'What became of each of these requests. Driver contract, version 1.';

CREATE OR REPLACE PROCEDURE pljobs.wait_for_job(
    job_id bigint, timeout interval DEFAULT '30 s', INOUT status text DEFAULT NULL
)
LANGUAGE plpgsql
AS $$
-- Waits until the job is no longer todo or doing, at most `timeout` (null: ten years), and answers its
-- status then: a final one, 'deleted', 'not_found', or after the timeout still todo or doing. Looks at
-- once, after 10 ms, then less often, at last once a second; holds no lock and no snapshot between. Not
-- inside a transaction. With the caller's rights and no settings of its own, for PostgreSQL lets nothing
-- else commit: all names are qualified.
DECLARE
    v_until pg_catalog.timestamptz := pg_catalog.clock_timestamp()
                                      OPERATOR(pg_catalog.+) pg_catalog.make_interval(secs => GREATEST(LEAST(
                                          pg_catalog.extract('epoch', wait_for_job.timeout), 315576000.0),
                                          0.0)::pg_catalog.float8);
    v_pause numeric := 0.01;
    v_left numeric;
BEGIN
    LOOP
        SELECT s.status INTO status FROM pljobs.get_job_statuses_v1(ARRAY[wait_for_job.job_id]) AS s;
        v_left := pg_catalog.extract('epoch', v_until OPERATOR(pg_catalog.-) pg_catalog.clock_timestamp());
        EXIT WHEN wait_for_job.status OPERATOR(pg_catalog.<>) ALL ('{todo,doing}')
               OR v_left OPERATOR(pg_catalog.<=) 0.0;
        COMMIT;
        PERFORM pg_catalog.pg_sleep(LEAST(v_pause, v_left)::pg_catalog.float8);
        v_pause := LEAST(v_pause OPERATOR(pg_catalog.*) 1.5, 1.0);
    END LOOP;
END
$$;
COMMENT ON PROCEDURE pljobs.wait_for_job(bigint, interval, text)
    IS 'Waits until a job has ended, and answers its status: CALL wait_for_job(33, ''30 s'');';

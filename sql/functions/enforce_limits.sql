CREATE OR REPLACE FUNCTION pljobs.enforce_limits_v1(max_jobs integer DEFAULT 1000)
RETURNS TABLE (job_id bigint, outcome text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- What time asks for, whichever worker runs the jobs.  todo, and its start_by is past -> cancelled,
-- 'expired'. doing for longer than its timeout -> asked to abort, 'abort_requested'.  doing, asked to abort,
-- and its SQL is due to be cancelled -> its statement is, 'sql_cancelled'.  Returns each job that it did
-- something about, at most max_jobs of each kind. Anybody may call it, as often as they like: one call works
-- at a time, the others return nothing at once. A worker enforces the limits of its own runs by its
-- heartbeats. SQL that takes long to cancel ('busy') is left to the next call. Raises PJ004 for a max_jobs
-- below 1. Locks the jobs and requests, skipping those that somebody holds. Notifies the workers concerned.
DECLARE
    v_now timestamptz := clock_timestamp();
    v_ids bigint[];
    v_request record;
BEGIN
    IF coalesce(enforce_limits_v1.max_jobs, 0) < 1 THEN
        RAISE EXCEPTION 'max_jobs must be at least 1' USING ERRCODE = 'PJ004';
    END IF;
    IF NOT pg_try_advisory_xact_lock(hashtextextended('pljobs.enforce_limits', 0)) THEN
        RETURN;
    END IF;
    v_ids := pljobs._expire_jobs(enforce_limits_v1.max_jobs);
    RETURN QUERY SELECT e.id, 'expired' FROM unnest(v_ids) AS e(id);
    v_ids := pljobs._ask_late_runs_to_abort(NULL, enforce_limits_v1.max_jobs);
    RETURN QUERY SELECT a.id, 'abort_requested' FROM unnest(v_ids) AS a(id);
    v_ids := ARRAY(SELECT r.job_id FROM pljobs.request AS r
                    WHERE r.resolved_at IS NULL AND r.run_id IS NOT NULL AND r.sql_at <= v_now
                      AND coalesce(r.sql_way, '') NOT IN ('server', 'worker', 'asked')
                      AND r.handling IS DISTINCT FROM 'handling'
                    ORDER BY r.run_id);
    -- The job before its request, as everybody has it: who skips held jobs then waits for neither.
    v_ids := ARRAY(SELECT j.request_id FROM pljobs.job AS j
                    WHERE j.id = ANY (v_ids) AND j.request_id IS NOT NULL
                    ORDER BY j.id LIMIT enforce_limits_v1.max_jobs FOR NO KEY UPDATE SKIP LOCKED);
    FOR v_request IN
        SELECT r.id, r.job_id FROM pljobs.request AS r
         WHERE r.id = ANY (v_ids) AND num_nulls(r.resolved_at) = 1
           AND coalesce(r.sql_way, '') NOT IN ('server', 'worker', 'asked')
           AND r.handling IS DISTINCT FROM 'handling'
         ORDER BY r.id FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        EXIT WHEN clock_timestamp() > v_now + interval '2 s';
        IF pljobs._cancel_sql_of_request(v_request.id) = 'server' THEN
            job_id := v_request.job_id;
            outcome := 'sql_cancelled';
            RETURN NEXT;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION pljobs.enforce_limits_v1(integer)
    IS 'Enforces start_by, timeouts and due SQL cancels. Driver contract, version 1.';

CREATE OR REPLACE FUNCTION pljobs.enforce_limits() RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- What enforce_limits_v1 does, for people and pg_cron: returns about how many jobs it did something.
BEGIN
    RETURN (SELECT count(*) FROM pljobs.enforce_limits_v1());
END
$$;
COMMENT ON FUNCTION pljobs.enforce_limits()
    IS 'Enforces start_by and timeouts; returns for how many jobs: SELECT enforce_limits();';

CREATE OR REPLACE FUNCTION pljobs._promote_due_jobs(max_jobs integer) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
SET enable_sort = off
SET enable_bitmapscan = off
AS $$
-- todo waiting for its schedule -> todo that can run, if due. Returns the jobs. Skips rows that somebody
-- holds, and for a while what comes before the session's hint.
DECLARE
    v_now timestamptz := clock_timestamp();
    v_from timestamptz := pljobs._hint_from('due');
    v_ids bigint[];
BEGIN
    v_ids := ARRAY(SELECT d.id FROM pljobs.job AS d
                    WHERE d.status = 'todo' AND d.waiting_for = 'schedule'
                      AND d.scheduled_at >= v_from AND d.scheduled_at <= v_now
                    ORDER BY d.scheduled_at LIMIT _promote_due_jobs.max_jobs FOR NO KEY UPDATE SKIP LOCKED);
    UPDATE pljobs.job AS j SET waiting_for = CASE WHEN j.fairness_key IS NOT NULL THEN 'turn' END
     WHERE j.id = ANY (v_ids);
    RETURN v_ids;
END
$$;
COMMENT ON FUNCTION pljobs._promote_due_jobs(integer) IS 'Makes scheduled jobs that are due ready to run.';

CREATE OR REPLACE FUNCTION pljobs._promote_jobs(max_jobs integer) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- What _promote_due_jobs does: for fetches of 0.3.1 that an upgrade overtakes.
BEGIN
    PERFORM pljobs._promote_due_jobs(_promote_jobs.max_jobs);
END
$$;
COMMENT ON FUNCTION pljobs._promote_jobs(integer) IS 'Makes scheduled jobs that are due ready to run.';

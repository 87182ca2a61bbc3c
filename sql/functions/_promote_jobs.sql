CREATE OR REPLACE FUNCTION pljobs._promote_jobs(max_jobs integer) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
SET enable_sort = off
SET enable_bitmapscan = off
AS $$
-- todo waiting for its schedule -> todo that can run, if due. Skips rows that somebody holds.
DECLARE
    v_now timestamptz := clock_timestamp();
BEGIN
    UPDATE pljobs.job AS j SET waiting_for = CASE WHEN j.fairness_key IS NOT NULL THEN 'turn' END
     WHERE j.id = ANY (ARRAY(
           SELECT d.id FROM pljobs.job AS d
            WHERE d.status = 'todo' AND d.waiting_for = 'schedule' AND d.scheduled_at <= v_now
            ORDER BY d.scheduled_at LIMIT _promote_jobs.max_jobs FOR NO KEY UPDATE SKIP LOCKED));
END
$$;
COMMENT ON FUNCTION pljobs._promote_jobs(integer) IS 'Makes scheduled jobs that are due ready to run.';

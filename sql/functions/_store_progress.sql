CREATE OR REPLACE FUNCTION pljobs._store_progress(reports jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- Stores what tasks said last of how far they are (see _reports), a number or a message, for runs that are
-- running now. Locks those jobs, by ascending id and only against their end, skipping those that somebody
-- holds: whoever deletes a job in an open transaction keeps no heartbeat waiting; and no progress outlives
-- its job.
BEGIN
    INSERT INTO pljobs.progress AS p (job_id, run_id, at, fraction, message)
    SELECT h.id, h.run_id, clock_timestamp(), r.progress, r.progress_message
      FROM (SELECT s.job_id, s.run_id, s.progress, s.progress_message
              FROM pljobs._reports(_store_progress.reports) AS s
             WHERE num_nonnulls(s.progress, s.progress_message) > 0
             ORDER BY s.job_id OFFSET 0) AS r
     CROSS JOIN LATERAL (
           SELECT j.id, j.run_id FROM pljobs.job AS j WHERE j.id = r.job_id AND j.run_id = r.run_id
              FOR KEY SHARE SKIP LOCKED) AS h
        ON CONFLICT ON CONSTRAINT progress_pkey
        DO UPDATE SET run_id = EXCLUDED.run_id, at = EXCLUDED.at, fraction = EXCLUDED.fraction,
                      message = EXCLUDED.message;
END
$$;
COMMENT ON FUNCTION pljobs._store_progress(jsonb) IS 'Stores how far running jobs are.';

CREATE OR REPLACE FUNCTION pljobs._store_progress(reports jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- Stores what tasks said last of how far they are: of an array of objects {"job_id", "run_id", "progress",
-- "progress_message"} those with one of the last two, for runs that are running now. A number is cut to 0 or
-- 1, a text at 200 characters. Locks those rows of progress, by ascending job id, and no job.
BEGIN
    INSERT INTO pljobs.progress AS p (job_id, run_id, at, fraction, message)
    SELECT DISTINCT ON (x.job_id) x.job_id, x.run_id, clock_timestamp(), least(greatest(x.progress, 0), 1),
           left(x.progress_message, 200)
      FROM jsonb_to_recordset(_store_progress.reports)
           AS x(job_id bigint, run_id bigint, progress double precision, progress_message text)
     WHERE num_nonnulls(x.progress, x.progress_message) > 0
       AND (SELECT j.run_id FROM pljobs.job AS j WHERE j.id = x.job_id) = x.run_id
     ORDER BY x.job_id
        ON CONFLICT ON CONSTRAINT progress_pkey
        DO UPDATE SET run_id = EXCLUDED.run_id, at = EXCLUDED.at, fraction = EXCLUDED.fraction,
                      message = EXCLUDED.message;
END
$$;
COMMENT ON FUNCTION pljobs._store_progress(jsonb) IS 'Stores how far running jobs are.';

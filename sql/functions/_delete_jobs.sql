CREATE OR REPLACE FUNCTION pljobs._delete_jobs(job_ids bigint[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- any state -> gone, with the events of its attempts and its progress; the requests stay. The caller holds
-- the rows locked.
BEGIN
    DELETE FROM pljobs.job AS j WHERE j.id = ANY (_delete_jobs.job_ids);
    DELETE FROM pljobs.job_event AS e WHERE e.job_id = ANY (_delete_jobs.job_ids);
    DELETE FROM pljobs.progress AS p WHERE p.job_id = ANY (_delete_jobs.job_ids);
END
$$;
COMMENT ON FUNCTION pljobs._delete_jobs(bigint[])
    IS 'Deletes jobs with their events and progress; requests stay.';

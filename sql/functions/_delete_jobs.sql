CREATE OR REPLACE FUNCTION pljobs._delete_jobs(job_ids bigint[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- any state -> gone, with the events of its attempts and its progress; the requests stay, and what ties its
-- children to its parent. The caller holds the rows locked.
BEGIN
    INSERT INTO pljobs.deleted_parent (job_id, parent_id, deleted_at)
    SELECT j.id, j.parent_id, clock_timestamp()
      FROM pljobs.job AS j
     -- LIMIT: a probe for each, whatever the statistics say.
     CROSS JOIN LATERAL (
           SELECT FROM pljobs.job AS c WHERE c.parent_id = j.id
            UNION ALL
           SELECT FROM pljobs.deleted_parent AS d WHERE d.parent_id = j.id
            LIMIT 1) AS has_children
     -- Not IS NOT NULL: the index of those that have a parent is not the way to these rows.
     WHERE j.id = ANY (_delete_jobs.job_ids) AND num_nonnulls(j.parent_id) = 1;
    DELETE FROM pljobs.job AS j WHERE j.id = ANY (_delete_jobs.job_ids);
    DELETE FROM pljobs.job_event AS e WHERE e.job_id = ANY (_delete_jobs.job_ids);
    DELETE FROM pljobs.progress AS p WHERE p.job_id = ANY (_delete_jobs.job_ids);
END
$$;
COMMENT ON FUNCTION pljobs._delete_jobs(bigint[])
    IS 'Deletes jobs with their events and progress; requests stay.';

CREATE OR REPLACE FUNCTION pljobs._matching_jobs(
    job_ids bigint[], queue text, task text, statuses text[], lock text, args jsonb, older_than interval,
    after_id bigint, max_jobs integer
) RETURNS bigint[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
-- Each combination of filters wants a plan of its own.
SET plan_cache_mode = force_custom_plan
SET jit = off
AS $$
-- Returns the ids of the jobs that match all filters that are given, ascending, at most max_jobs, from behind after_id.
-- args: contained in the job's (@>). older_than: deferred longer ago. Raises PJ004 if no filter is given: `statuses`
-- alone is none, or a slip would mean everything.
DECLARE
    v_before timestamptz := clock_timestamp() - _matching_jobs.older_than;
BEGIN
    IF num_nonnulls(_matching_jobs.job_ids, _matching_jobs.queue, _matching_jobs.task, _matching_jobs.lock,
                    _matching_jobs.args, _matching_jobs.older_than) = 0 THEN
        RAISE EXCEPTION 'no filter is given, and without one every job would match'
            USING ERRCODE = 'PJ004', HINT = 'Give job_ids, queue, task, lock, args or older_than.';
    ELSIF coalesce(_matching_jobs.max_jobs, 0) < 1 OR _matching_jobs.older_than < interval '0' THEN
        RAISE EXCEPTION 'max_jobs must be at least 1, and older_than not negative' USING ERRCODE = 'PJ004';
    END IF;
    RETURN ARRAY(
        SELECT j.id FROM pljobs.job AS j
         WHERE j.status = ANY (_matching_jobs.statuses)
           AND (_matching_jobs.job_ids IS NULL OR j.id = ANY (_matching_jobs.job_ids))
           AND (_matching_jobs.queue IS NULL OR j.queue = _matching_jobs.queue)
           AND (_matching_jobs.task IS NULL OR j.task = _matching_jobs.task)
           AND (_matching_jobs.lock IS NULL OR j.lock = _matching_jobs.lock)
           AND (_matching_jobs.args IS NULL OR j.args @> _matching_jobs.args)
           AND (v_before IS NULL OR j.created_at < v_before)
           AND j.id > coalesce(_matching_jobs.after_id, 0)
         ORDER BY j.id LIMIT _matching_jobs.max_jobs);
END
$$;
COMMENT ON FUNCTION pljobs._matching_jobs(bigint[], text, text, text[], text, jsonb, interval, bigint, integer)
    IS 'The ids of the jobs that match the filters.';

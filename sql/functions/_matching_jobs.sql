CREATE OR REPLACE FUNCTION pljobs._matching_own_jobs(
    job_ids bigint[], queue text, task text, statuses text[], lock text, args jsonb, older_than interval,
    parent_id bigint, after_id bigint, max_jobs integer, own_roles text[]
) RETURNS bigint[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
-- Each combination of filters wants a plan of its own; but by no statistics one that reads the whole table
-- once a batch: the ids are walked from behind after_id, so that all batches together read it once.
SET plan_cache_mode = force_custom_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- Returns the ids of the jobs that match all filters that are given, ascending, at most max_jobs, from
-- behind after_id. args: contained in the job's (@>). older_than: deferred longer ago. own_roles: deferred by
-- one of these (null: by anybody). Raises PJ004 if no
-- filter is given. `statuses` alone is none, nor are args => '{}' and older_than => '0', which every job
-- matches: a slip would mean everything.
DECLARE
    v_before timestamptz := pljobs._ago(_matching_own_jobs.older_than);
BEGIN
    IF num_nonnulls(_matching_own_jobs.job_ids, _matching_own_jobs.queue, _matching_own_jobs.task,
                    _matching_own_jobs.lock, nullif(_matching_own_jobs.args, '{}'),
                    nullif(_matching_own_jobs.older_than, '0'), _matching_own_jobs.parent_id) = 0 THEN
        RAISE EXCEPTION 'no filter is given, and without one every job would match'
            USING ERRCODE = 'PJ004', HINT = 'Give job_ids, queue, task, lock, args, older_than or parent_id.';
    ELSIF coalesce(_matching_own_jobs.max_jobs, 0) < 1 OR _matching_own_jobs.older_than < '0' THEN
        RAISE EXCEPTION 'max_jobs (batch) must be at least 1, and older_than not negative'
            USING ERRCODE = 'PJ004';
    END IF;
    RETURN ARRAY(
        SELECT j.id FROM pljobs.job AS j
         WHERE j.status = ANY (_matching_own_jobs.statuses)
           AND (_matching_own_jobs.job_ids IS NULL OR j.id = ANY (_matching_own_jobs.job_ids))
           AND (_matching_own_jobs.queue IS NULL OR j.queue = _matching_own_jobs.queue)
           AND (_matching_own_jobs.task IS NULL OR j.task = _matching_own_jobs.task)
           AND (_matching_own_jobs.lock IS NULL OR j.lock = _matching_own_jobs.lock)
           AND (_matching_own_jobs.args IS NULL OR j.args @> _matching_own_jobs.args)
           AND (v_before IS NULL OR j.created_at < v_before)
           AND (_matching_own_jobs.parent_id IS NULL OR j.parent_id = _matching_own_jobs.parent_id)
           AND (_matching_own_jobs.after_id IS NULL OR j.id > _matching_own_jobs.after_id)
           AND (_matching_own_jobs.own_roles IS NULL OR j.deferred_by = ANY (_matching_own_jobs.own_roles))
         ORDER BY j.id LIMIT _matching_own_jobs.max_jobs);
END
$$;
COMMENT ON FUNCTION pljobs._matching_own_jobs(
    bigint[], text, text, text[], text, jsonb, interval, bigint, bigint, integer, text[]
) IS 'The ids of the jobs that match the filters.';

CREATE OR REPLACE FUNCTION pljobs._lock_matching_own_jobs(
    job_ids bigint[], queue text, task text, statuses text[], lock text, args jsonb, older_than interval,
    parent_id bigint, own_roles text[], OUT matching bigint[], OUT others bigint[]
)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- Locks the jobs that _matching_own_jobs found, by ascending id, waiting for each; then looks again, in a
-- statement that sees what was committed meanwhile. Returns those that still match, and those that do not
-- any more, the deleted ones too.
BEGIN
    PERFORM j.id FROM pljobs.job AS j
     WHERE j.id = ANY (_lock_matching_own_jobs.job_ids) ORDER BY j.id FOR UPDATE;
    matching := pljobs._matching_own_jobs(
        _lock_matching_own_jobs.job_ids, _lock_matching_own_jobs.queue, _lock_matching_own_jobs.task,
        _lock_matching_own_jobs.statuses, _lock_matching_own_jobs.lock, _lock_matching_own_jobs.args,
        _lock_matching_own_jobs.older_than, _lock_matching_own_jobs.parent_id, NULL, 2147483647,
        _lock_matching_own_jobs.own_roles);
    others := ARRAY(SELECT i.id FROM unnest(_lock_matching_own_jobs.job_ids) AS i(id)
                    EXCEPT SELECT m.id FROM unnest(matching) AS m(id) ORDER BY 1);
END
$$;
COMMENT ON FUNCTION pljobs._lock_matching_own_jobs(
    bigint[], text, text, text[], text, jsonb, interval, bigint, text[]
) IS 'Locks jobs, and tells which of them still match the filters.';

CREATE OR REPLACE FUNCTION pljobs._changed_jobs(job_ids bigint[])
RETURNS TABLE (job_id bigint, queue_name text, task_name text, status_before text, outcome text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- A row for each job that matched a filter until it was locked, and was left alone: 'changed', or
-- 'not_found' if gone.
BEGIN
    RETURN QUERY
    SELECT i.id, j.queue, j.task, j.status, CASE WHEN j.id IS NULL THEN 'not_found' ELSE 'changed' END
      FROM unnest(_changed_jobs.job_ids) AS i(id)
      LEFT JOIN LATERAL (
           SELECT t.id, t.queue, t.task, t.status FROM pljobs.job AS t
            WHERE t.id = i.id OFFSET 0) AS j ON true;
END
$$;
COMMENT ON FUNCTION pljobs._changed_jobs(bigint[])
    IS 'The answer for jobs that changed before they could be locked.';

-- The two as 0.1.0's functions call them: for the next contract migration to drop.
CREATE OR REPLACE FUNCTION pljobs._matching_jobs(
    job_ids bigint[], queue text, task text, statuses text[], lock text, args jsonb, older_than interval,
    parent_id bigint, after_id bigint, max_jobs integer
) RETURNS bigint[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- For 0.1.0's functions alone: whoever was in the middle of one when the schema was upgraded comes back here.
BEGIN
    RETURN pljobs._matching_own_jobs(
        _matching_jobs.job_ids, _matching_jobs.queue, _matching_jobs.task, _matching_jobs.statuses,
        _matching_jobs.lock, _matching_jobs.args, _matching_jobs.older_than, _matching_jobs.parent_id,
        _matching_jobs.after_id, _matching_jobs.max_jobs, NULL);
END
$$;
COMMENT ON FUNCTION pljobs._matching_jobs(
    bigint[], text, text, text[], text, jsonb, interval, bigint, bigint, integer
) IS 'The ids of the jobs that match the filters: for calls that an upgrade overtakes.';

CREATE OR REPLACE FUNCTION pljobs._lock_matching_jobs(
    job_ids bigint[], queue text, task text, statuses text[], lock text, args jsonb, older_than interval,
    parent_id bigint, OUT matching bigint[], OUT others bigint[]
)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- For 0.1.0's functions alone: whoever was in the middle of one when the schema was upgraded comes back here.
BEGIN
    SELECT l.matching, l.others INTO matching, others
      FROM pljobs._lock_matching_own_jobs(
           _lock_matching_jobs.job_ids, _lock_matching_jobs.queue, _lock_matching_jobs.task,
           _lock_matching_jobs.statuses, _lock_matching_jobs.lock, _lock_matching_jobs.args,
           _lock_matching_jobs.older_than, _lock_matching_jobs.parent_id, NULL) AS l;
END
$$;
COMMENT ON FUNCTION pljobs._lock_matching_jobs(bigint[], text, text, text[], text, jsonb, interval, bigint)
    IS 'Locks jobs, and tells which of them still match the filters: for calls that an upgrade overtakes.';

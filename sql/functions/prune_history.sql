CREATE OR REPLACE FUNCTION pljobs.prune_history_v1(older_than interval, max_rows integer DEFAULT 10000)
RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- What prune_history_v2 does, always from the oldest on: returns how many in all.
BEGIN
    RETURN (SELECT p.pruned FROM pljobs.prune_history_v2(prune_history_v1.older_than,
                                                         prune_history_v1.max_rows) AS p);
END
$$;
COMMENT ON FUNCTION pljobs.prune_history_v1(interval, integer)
    IS 'Deletes a batch of old requests, stopped workers, keys and closed trees. Driver contract, version 1.';

CREATE OR REPLACE FUNCTION pljobs.prune_history_v2(
    older_than interval, max_rows integer DEFAULT 10000, since timestamptz DEFAULT NULL,
    OUT pruned bigint, OUT reached_at timestamptz
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
SET enable_sort = off
SET enable_bitmapscan = off
AS $$
-- Deletes requests that were resolved, workers that stopped, idempotency keys that were used first, buckets
-- of rates that were full, what keeps cancelled trees closed, and what ties jobs to their trees whose parents
-- were deleted, longer than older_than ago; at most max_rows of each.
-- What keeps a child from starting that waits or runs (it may be scheduled, its queue paused, its run be put
-- back), or a job that still runs from deferring more, stays, as does what lets one start that was put back
-- by hand, or whose request was taken back, and what ties jobs together that are still there. Returns how
-- many in all: call again until it is 0, with
-- `since` => the reached_at of the call before: then it does not pass again over what those before it have
-- deleted, or left. Once an hour, say, call it without `since`. Raises PJ004 for a null or negative
-- older_than or a max_rows below 1, PJ010 for a role limited to queues: the history is of all. Skips rows
-- that somebody holds. Notifies nobody.
DECLARE
    -- Variables: an index can't be searched for a volatile value.
    v_before timestamptz := pljobs._ago(prune_history_v2.older_than);
    v_since timestamptz := coalesce(prune_history_v2.since, '-infinity');
    v_count bigint;
    v_last timestamptz;
BEGIN
    IF prune_history_v2.older_than IS NULL OR prune_history_v2.older_than < interval '0'
       OR coalesce(prune_history_v2.max_rows, 0) < 1 THEN
        RAISE EXCEPTION 'prune needs older_than, not negative, and max_rows of at least 1'
            USING ERRCODE = 'PJ004';
    ELSIF pljobs._allowed_queues('fetch') IS NOT NULL THEN
        RAISE EXCEPTION '% is limited to queues, and may not prune the history of all', pljobs._caller()
            USING ERRCODE = 'PJ010', HINT = 'Let an unlimited worker, pljobs manager or an operator do it.';
    END IF;
    reached_at := greatest(v_before, v_since);
    -- Few, with no index on stopped_at: from the beginning each time.
    DELETE FROM pljobs.worker AS w WHERE w.id = ANY (ARRAY(
        SELECT o.id FROM pljobs.worker AS o
         WHERE o.stopped_at < v_before
         ORDER BY o.id LIMIT prune_history_v2.max_rows FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS v_count = ROW_COUNT;
    pruned := v_count;
    -- What is asked of each row stands in parentheses, as a value: an EXISTS may become a join, of each with
    -- each where the planner believes that there are none. Nor is there a condition that another index fits.
    WITH gone AS (
        DELETE FROM pljobs.request AS r WHERE r.id = ANY (ARRAY(
            SELECT o.id FROM pljobs.request AS o
             WHERE o.resolved_at >= v_since AND o.resolved_at < v_before
               -- What lets a job run although its tree was cancelled.
               AND (o.kind NOT IN ('retry', 'rescind') OR (
                    SELECT j.status IN ('todo', 'doing') AND j.parent_id IS NOT NULL FROM pljobs.job AS j
                     WHERE j.id = o.job_id) IS NOT TRUE)
             ORDER BY o.resolved_at LIMIT prune_history_v2.max_rows FOR UPDATE SKIP LOCKED))
        RETURNING r.resolved_at AS at
    )
    SELECT count(*), max(g.at) INTO v_count, v_last FROM gone AS g;
    pruned := pruned + v_count;
    -- Full: the next call goes on there, with all of them. (LEAST passes over nulls.)
    reached_at := least(reached_at, CASE WHEN v_count >= prune_history_v2.max_rows THEN v_last END);
    WITH gone AS (
        DELETE FROM pljobs.closed_tree AS t WHERE t.job_id = ANY (ARRAY(
            SELECT o.job_id FROM pljobs.closed_tree AS o
             WHERE o.closed_at >= v_since AND o.closed_at < v_before
               AND (SELECT j.id FROM pljobs.job AS j
                     WHERE j.parent_id = o.job_id AND j.status IN ('todo', 'doing') LIMIT 1) IS NULL
               AND (SELECT j.status FROM pljobs.job AS j
                     WHERE j.id = o.job_id) IS DISTINCT FROM 'doing'
             ORDER BY o.closed_at LIMIT prune_history_v2.max_rows FOR UPDATE SKIP LOCKED))
        RETURNING t.closed_at AS at
    )
    SELECT count(*), max(g.at) INTO v_count, v_last FROM gone AS g;
    pruned := pruned + v_count;
    reached_at := least(reached_at, CASE WHEN v_count >= prune_history_v2.max_rows THEN v_last END);
    WITH gone AS (
        DELETE FROM pljobs.deleted_parent AS t WHERE t.job_id = ANY (ARRAY(
            SELECT o.job_id FROM pljobs.deleted_parent AS o
             WHERE o.deleted_at >= v_since AND o.deleted_at < v_before
               AND (SELECT j.id FROM pljobs.job AS j WHERE j.parent_id = o.job_id LIMIT 1) IS NULL
               AND (SELECT d.job_id FROM pljobs.deleted_parent AS d
                     WHERE d.parent_id = o.job_id LIMIT 1) IS NULL
             ORDER BY o.deleted_at LIMIT prune_history_v2.max_rows FOR UPDATE SKIP LOCKED))
        RETURNING t.deleted_at AS at
    )
    SELECT count(*), max(g.at) INTO v_count, v_last FROM gone AS g;
    pruned := pruned + v_count;
    reached_at := least(reached_at, CASE WHEN v_count >= prune_history_v2.max_rows THEN v_last END);
    WITH gone AS (
        DELETE FROM pljobs.idempotency AS i WHERE i.ctid = ANY (ARRAY(
            SELECT o.ctid FROM pljobs.idempotency AS o
             WHERE o.deferred_at >= v_since AND o.deferred_at < v_before
             ORDER BY o.deferred_at LIMIT prune_history_v2.max_rows FOR UPDATE SKIP LOCKED))
        RETURNING i.deferred_at AS at
    )
    SELECT count(*), max(g.at) INTO v_count, v_last FROM gone AS g;
    pruned := pruned + v_count;
    reached_at := least(reached_at, CASE WHEN v_count >= prune_history_v2.max_rows THEN v_last END);
    -- Last: a fetch does not wait for a bucket that is held, and counts nothing against it.
    DELETE FROM pljobs.bucket AS b WHERE b.ctid = ANY (ARRAY(
        SELECT o.ctid FROM pljobs.bucket AS o
         WHERE o.full_at < v_before LIMIT prune_history_v2.max_rows FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS v_count = ROW_COUNT;
    pruned := pruned + v_count;
END
$$;
COMMENT ON FUNCTION pljobs.prune_history_v2(interval, integer, timestamptz)
    IS 'Deletes a batch of old requests, stopped workers, keys and closed trees. Driver contract, version 2.';

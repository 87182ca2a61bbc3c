CREATE OR REPLACE FUNCTION pljobs.prune_history_v1(older_than interval, max_rows integer DEFAULT 10000)
RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- Deletes requests that were resolved, workers that stopped, idempotency keys that were used first, buckets
-- of rates that were full, what keeps cancelled trees closed, and what ties jobs to their trees whose parents
-- were deleted, longer than older_than ago; at most max_rows of each.
-- What keeps a child from starting that still waits (it may be scheduled, or its queue paused) stays, and
-- what ties jobs together that are still there. Returns how many in all: call again until it returns 0.
-- Raises PJ004 for a null or negative older_than, PJ010 for a role limited to queues: the history is of all.
-- Skips rows that somebody holds. Notifies nobody.
DECLARE
    v_before timestamptz := clock_timestamp() - prune_history_v1.older_than;
    v_requests bigint;
    v_workers bigint;
    v_trees bigint;
    v_ties bigint;
    v_keys bigint;
    v_buckets bigint;
BEGIN
    IF prune_history_v1.older_than IS NULL OR prune_history_v1.older_than < interval '0' THEN
        RAISE EXCEPTION 'prune needs older_than, not negative' USING ERRCODE = 'PJ004';
    ELSIF pljobs._allowed_queues('fetch') IS NOT NULL THEN
        RAISE EXCEPTION '% is limited to queues, and may not prune the history of all', pljobs._caller()
            USING ERRCODE = 'PJ010', HINT = 'Let an unlimited worker, pljobs manager or an operator do it.';
    END IF;
    DELETE FROM pljobs.request AS r WHERE r.id = ANY (ARRAY(
        SELECT o.id FROM pljobs.request AS o
         WHERE o.resolved_at < v_before
         ORDER BY o.resolved_at LIMIT prune_history_v1.max_rows FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS v_requests = ROW_COUNT;
    DELETE FROM pljobs.worker AS w WHERE w.id = ANY (ARRAY(
        SELECT o.id FROM pljobs.worker AS o
         WHERE o.stopped_at < v_before
         ORDER BY o.id LIMIT prune_history_v1.max_rows FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS v_workers = ROW_COUNT;
    DELETE FROM pljobs.closed_tree AS t WHERE t.job_id = ANY (ARRAY(
        SELECT o.job_id FROM pljobs.closed_tree AS o
         WHERE o.closed_at < v_before
           AND NOT EXISTS (SELECT FROM pljobs.job AS j WHERE j.parent_id = o.job_id AND j.status = 'todo')
         ORDER BY o.closed_at LIMIT prune_history_v1.max_rows FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS v_trees = ROW_COUNT;
    DELETE FROM pljobs.deleted_parent AS t WHERE t.job_id = ANY (ARRAY(
        SELECT o.job_id FROM pljobs.deleted_parent AS o
         WHERE o.deleted_at < v_before
           AND NOT EXISTS (SELECT FROM pljobs.job AS j WHERE j.parent_id = o.job_id)
           AND NOT EXISTS (SELECT FROM pljobs.deleted_parent AS d WHERE d.parent_id = o.job_id)
         ORDER BY o.deleted_at LIMIT prune_history_v1.max_rows FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS v_ties = ROW_COUNT;
    DELETE FROM pljobs.idempotency AS i
     USING (SELECT o.deferred_by, o.key FROM pljobs.idempotency AS o
             WHERE o.deferred_at < v_before
             ORDER BY o.deferred_at LIMIT prune_history_v1.max_rows FOR UPDATE SKIP LOCKED) AS p
     WHERE i.deferred_by = p.deferred_by AND i.key = p.key;
    GET DIAGNOSTICS v_keys = ROW_COUNT;
    DELETE FROM pljobs.bucket AS b
     USING (SELECT o.scope, o.name, o.key, o.set_at FROM pljobs.bucket AS o
             WHERE o.full_at < v_before LIMIT prune_history_v1.max_rows FOR UPDATE SKIP LOCKED) AS p
     WHERE b.scope = p.scope AND b.name = p.name AND b.key = p.key AND b.set_at = p.set_at;
    GET DIAGNOSTICS v_buckets = ROW_COUNT;
    RETURN v_requests + v_workers + v_trees + v_ties + v_keys + v_buckets;
END
$$;
COMMENT ON FUNCTION pljobs.prune_history_v1(interval, integer)
    IS 'Deletes a batch of old requests, stopped workers, keys and closed trees. Driver contract, version 1.';

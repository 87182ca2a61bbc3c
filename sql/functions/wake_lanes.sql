CREATE OR REPLACE FUNCTION pljobs.wake_lanes_v1() RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
SET enable_sort = off
SET enable_bitmapscan = off
AS $$
-- Wakes each lane whose head is parked though nothing of the lane runs: what a race between a person's
-- transaction and a fetch can leave asleep. Returns the number of lanes woken. Costs one index probe a lane
-- that has waiting jobs. Anybody may call it, as often as they like: one call works at a time. Locks those
-- lanes, then their heads, skipping those that somebody holds. Notifies the queues' workers.
DECLARE
    v_locks text[];
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('pljobs.wake_lanes', 0)) THEN
        RETURN 0::bigint;
    END IF;
    WITH RECURSIVE lane AS (
        SELECT (SELECT j.lock FROM pljobs.job AS j
                 WHERE j.status = 'todo' AND j.lock IS NOT NULL ORDER BY j.lock LIMIT 1) AS lock
        UNION ALL
        SELECT (SELECT j.lock FROM pljobs.job AS j
                 WHERE j.status = 'todo' AND j.lock IS NOT NULL AND j.lock > lane.lock
                 ORDER BY j.lock LIMIT 1)
          FROM lane WHERE lane.lock IS NOT NULL
    )
    SELECT array_agg(lane.lock) INTO v_locks
      FROM lane
     CROSS JOIN LATERAL (
           SELECT t.waiting_for FROM pljobs.job AS t WHERE t.lock = lane.lock AND t.status = 'todo'
            ORDER BY -t.priority, t.id LIMIT 1) AS h
     WHERE h.waiting_for = 'lock'
       AND NOT EXISTS (SELECT FROM pljobs.job AS d WHERE d.lock = lane.lock AND d.status = 'doing');
    RETURN pljobs._wake_lanes(v_locks, take_lane => true);
END
$$;
COMMENT ON FUNCTION pljobs.wake_lanes_v1()
    IS 'Wakes lanes that a race left asleep. Driver contract, version 1.';

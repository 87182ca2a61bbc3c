-- A lane is the jobs that share a `lock`: one runs at a time, in order of priority, then id. Deferring does
-- not coordinate. A fetch that meets a job with a lock takes the lane, runs its head if the lane is free, and
-- parks the others (waiting_for 'lock'); whoever ends a lane's job wakes the lane's head.
--
-- What keeps this free of deadlocks: whoever holds a lane (its transaction advisory lock) never waits for
-- a row.

CREATE OR REPLACE FUNCTION pljobs._lane_key(lock text) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
-- The advisory lock of a lane: one of 4,096, so that any number of lanes at once leaves room in the server's
-- table of locks. Lanes that share a key only wait for each other.
BEGIN
    RETURN 7205759000000 + (hashtextextended(_lane_key.lock, 7205759) & 4095);
END
$$;
COMMENT ON FUNCTION pljobs._lane_key(text) IS 'The advisory lock key of a lane.';

CREATE OR REPLACE FUNCTION pljobs._claim_lanes(job_ids bigint[], locks text[]) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
AS $$
-- Of candidates that the caller holds locked (`locks` parallel to `job_ids`, null without a lock) returns
-- those that may run now, in the order given: all without a lock, and the head of each free lane. Parks the
-- others; where the head itself is parked in a free lane, wakes it. Takes lanes without waiting: a lane that
-- somebody is busy in keeps its candidates as they are, and their queues' workers are notified: who is busy
-- there may have looked before these could be seen, or be in another lane of the same key. Where a free
-- lane's head is none of the candidates, notifies its queue's workers: who had it may just have failed to
-- take the lane that this call holds.
DECLARE
    v_lanes text[];
    v_missed text[];
    v_claim bigint[];
    v_park bigint[];
    v_wake bigint[];
    v_queues text[];
BEGIN
    WITH lane AS MATERIALIZED (
        SELECT DISTINCT c.lock FROM unnest(_claim_lanes.locks) AS c(lock) WHERE c.lock IS NOT NULL
    )
    SELECT array_agg(t.lock) FILTER (WHERE t.is_ours), array_agg(t.lock) FILTER (WHERE NOT t.is_ours)
      INTO v_lanes, v_missed
      FROM (SELECT lane.lock, pg_try_advisory_xact_lock(pljobs._lane_key(lane.lock)) AS is_ours
              FROM lane OFFSET 0) AS t;
    -- A new statement: its snapshot was taken after the lanes were ours.
    WITH lane AS MATERIALIZED (
        SELECT l.lock, b.busy, h.id AS head, h.waiting_for AS head_waiting_for, h.queue AS head_queue
          FROM unnest(v_lanes) AS l(lock)
         CROSS JOIN LATERAL (
               SELECT EXISTS (SELECT FROM pljobs.job AS d
                               WHERE d.lock = l.lock AND d.status = 'doing') AS busy) AS b
          LEFT JOIN LATERAL (
               SELECT t.id, t.waiting_for, t.queue FROM pljobs.job AS t
                WHERE t.lock = l.lock AND t.status = 'todo' ORDER BY -t.priority, t.id LIMIT 1) AS h ON true
    )
    SELECT array_agg(c.id) FILTER (WHERE NOT lane.busy AND c.id = lane.head),
           array_agg(c.id) FILTER (WHERE lane.busy OR c.id <> lane.head),
           array_agg(DISTINCT lane.head)
               FILTER (WHERE NOT lane.busy AND c.id <> lane.head AND lane.head_waiting_for = 'lock'),
           array_agg(DISTINCT lane.head_queue)
               FILTER (WHERE NOT lane.busy AND lane.head <> ALL (_claim_lanes.job_ids)
                         AND (lane.head_waiting_for IN ('schedule', 'limit')) IS NOT TRUE)
      INTO v_claim, v_park, v_wake, v_queues
      FROM unnest(_claim_lanes.job_ids, _claim_lanes.locks) AS c(id, lock)
      JOIN lane ON lane.lock = c.lock;

    UPDATE pljobs.job AS j SET waiting_for = 'lock' WHERE j.id = ANY (v_park);
    UPDATE pljobs.job AS j SET waiting_for = CASE WHEN j.fairness_key IS NOT NULL THEN 'turn' END
     WHERE j.id = ANY (ARRAY(
           SELECT w.id FROM pljobs.job AS w WHERE w.id = ANY (v_wake) AND w.waiting_for = 'lock'
            ORDER BY w.id FOR NO KEY UPDATE SKIP LOCKED));
    PERFORM pljobs._notify_todo(v_queues);
    IF v_missed IS NOT NULL THEN
        PERFORM pljobs._notify_of(ARRAY(
            SELECT c.id FROM unnest(_claim_lanes.job_ids, _claim_lanes.locks) AS c(id, lock)
             WHERE c.lock IN (SELECT m.lock FROM unnest(v_missed) AS m(lock))), NULL);
    END IF;
    RETURN ARRAY(SELECT c.id
                   FROM unnest(_claim_lanes.job_ids, _claim_lanes.locks) WITH ORDINALITY AS c(id, lock, place)
                  WHERE c.lock IS NULL OR c.id = ANY (v_claim) ORDER BY c.place);
END
$$;
COMMENT ON FUNCTION pljobs._claim_lanes(bigint[], text[])
    IS 'Of locked candidates, returns those whose lane lets them run; parks the others.';

CREATE OR REPLACE FUNCTION pljobs._wake_lanes(locks text[], take_lane boolean) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
AS $$
-- Wakes the head of each lane if it is parked, and notifies the queue's workers of a head that can run: one
-- that was not parked no fetch has seen while this call held its row. Returns the number woken.
-- Call it after a lane's job left doing or todo, and last: with take_lane it waits for the lanes, in order of
-- their keys. Functions that people call inside transactions of their own take no lane, so that they can't
-- stall a worker; what a rare race leaves asleep then, wake_lanes_v1 wakes.
DECLARE
    v_parked bigint[];
    v_queues text[];
BEGIN
    IF cardinality(_wake_lanes.locks) IS NULL THEN
        RETURN 0::bigint;
    END IF;
    IF _wake_lanes.take_lane THEN
        PERFORM pg_advisory_xact_lock(k.key)
           FROM (SELECT DISTINCT pljobs._lane_key(l.lock) AS key
                   FROM unnest(_wake_lanes.locks) AS l(lock) ORDER BY 1) AS k;
    END IF;
    SELECT array_agg(h.id) FILTER (WHERE h.waiting_for = 'lock'), array_agg(DISTINCT h.queue)
      INTO v_parked, v_queues
      FROM (SELECT DISTINCT l.lock FROM unnest(_wake_lanes.locks) AS l(lock)) AS d
     CROSS JOIN LATERAL (
           SELECT t.id, t.queue, t.waiting_for FROM pljobs.job AS t
            WHERE t.lock = d.lock AND t.status = 'todo'
            ORDER BY -t.priority, t.id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED) AS h
     WHERE (h.waiting_for IN ('schedule', 'limit')) IS NOT TRUE;
    UPDATE pljobs.job AS j SET waiting_for = CASE WHEN j.fairness_key IS NOT NULL THEN 'turn' END
     WHERE j.id = ANY (v_parked);
    PERFORM pljobs._notify_todo(v_queues);
    RETURN coalesce(cardinality(v_parked), 0)::bigint;
END
$$;
COMMENT ON FUNCTION pljobs._wake_lanes(text[], boolean)
    IS 'Wakes the head of each of these lanes if it is parked.';

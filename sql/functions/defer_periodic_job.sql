CREATE OR REPLACE FUNCTION pljobs.defer_periodic_job_v1(
    periodic_id text, tick timestamptz, job jsonb, OUT outcome text, OUT job_id bigint
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- - -> todo, at most once for each tick of (the job's task, periodic_id), whoever calls and however many at
-- once: 'deferred' with the job's id.  `job`: an object as defer_jobs_v1 takes.  That tick or a later one
-- already done -> nothing changed, 'already_deferred'.  A waiting job holds the queueing lock -> the tick
-- counts as done, 'already_enqueued'. Raises PJ002 as defer_jobs_v1 does, and for a null or infinite tick;
-- PJ010 for a queue that the caller's role may not defer to, nor, if it is no producer, fetch from. Locks the
-- periodic task's row. Notifies the queue's workers.
DECLARE
    v_task text := defer_periodic_job_v1.job ->> 'task';
BEGIN
    IF (char_length(v_task) <= 255) IS NOT TRUE OR isfinite(defer_periodic_job_v1.tick) IS NOT TRUE
       OR (char_length(defer_periodic_job_v1.periodic_id) <= 255) IS NOT TRUE THEN
        RAISE EXCEPTION 'a periodic job needs a tick, and a task and a periodic_id of at most 255 characters'
            USING ERRCODE = 'PJ002';
    END IF;
    IF pljobs._own_roles('pljobs_producer', 'pljobs_operator') IS NOT NULL
       -- What others have done needs no right.
       AND NOT EXISTS (SELECT FROM pljobs.periodic AS p
                        WHERE p.task = v_task AND p.periodic_id = defer_periodic_job_v1.periodic_id
                          AND p.last_tick >= defer_periodic_job_v1.tick) THEN
        PERFORM pljobs._refuse_queues(
            'fetch', ARRAY[coalesce(defer_periodic_job_v1.job ->> 'queue', 'default')],
            'nothing was deferred');
    END IF;
    INSERT INTO pljobs.periodic AS p (task, periodic_id, last_tick)
    VALUES (v_task, defer_periodic_job_v1.periodic_id, defer_periodic_job_v1.tick)
        ON CONFLICT ON CONSTRAINT periodic_pkey
        DO UPDATE SET last_tick = EXCLUDED.last_tick WHERE p.last_tick < EXCLUDED.last_tick;
    IF NOT FOUND THEN
        outcome := 'already_deferred';
        RETURN;
    END IF;
    BEGIN
        job_id := (pljobs.defer_jobs_v1(jsonb_build_array(defer_periodic_job_v1.job)))[1];
        outcome := 'deferred';
    EXCEPTION WHEN SQLSTATE 'PJ001' THEN
        outcome := 'already_enqueued';
    END;
    UPDATE pljobs.periodic AS p SET job_id = defer_periodic_job_v1.job_id
     WHERE p.task = v_task AND p.periodic_id = defer_periodic_job_v1.periodic_id;
END
$$;
COMMENT ON FUNCTION pljobs.defer_periodic_job_v1(text, timestamptz, jsonb)
    IS 'Defers the job of one tick of a periodic task, at most once. Driver contract, version 1.';

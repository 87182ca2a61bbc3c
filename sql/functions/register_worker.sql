CREATE OR REPLACE FUNCTION pljobs.register_worker_v1(
    name text, host text, pid integer, queues text[] DEFAULT NULL, concurrency integer DEFAULT 1,
    lease interval DEFAULT '30 s', worker_id bigint DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- Registers a worker and returns its id; it must call heartbeat_v1 within every `lease`, else its jobs are
-- rescued. With worker_id: registers again under that id (after PJ003), so that jobs it still holds stay its
-- own. queues null: all. A worker that finished a job as 'abandoned' stays tainted: it is given no more jobs.
-- Raises PJ004 for a lease not of 1 s to 1 day, or a null name, host, pid. Locks the worker. Notifies nobody.
DECLARE
    v_now timestamptz := clock_timestamp();
    v_id bigint;
BEGIN
    IF (register_worker_v1.lease BETWEEN interval '1 s' AND interval '1 day') IS NOT TRUE
       OR register_worker_v1.name IS NULL OR register_worker_v1.host IS NULL
       OR register_worker_v1.pid IS NULL THEN
        RAISE EXCEPTION 'a worker needs a name, a host, a pid, and a lease of 1 s to 1 day'
            USING ERRCODE = 'PJ004';
    END IF;
    LOOP
        INSERT INTO pljobs.worker AS w (id, name, host, pid, queues, concurrency, lease,
                                        started_at, heartbeat_at, expires_at)
        VALUES (
            coalesce(register_worker_v1.worker_id, nextval(pg_get_serial_sequence('pljobs.worker', 'id'))),
            left(register_worker_v1.name, 255), left(register_worker_v1.host, 255), register_worker_v1.pid,
            register_worker_v1.queues, coalesce(register_worker_v1.concurrency, 1), register_worker_v1.lease,
            v_now, v_now, v_now + register_worker_v1.lease)
            ON CONFLICT ON CONSTRAINT worker_pkey
            DO UPDATE SET stopped_at = NULL, heartbeat_at = EXCLUDED.heartbeat_at,
                          expires_at = EXCLUDED.expires_at, lease = EXCLUDED.lease
            WHERE register_worker_v1.worker_id IS NOT NULL
        RETURNING w.id INTO v_id;
        -- A promoted standby may draw an id again: a new worker never takes another's.
        EXIT WHEN FOUND;
    END LOOP;
    RETURN v_id;
END
$$;
COMMENT ON FUNCTION pljobs.register_worker_v1(text, text, integer, text[], integer, interval, bigint)
    IS 'Registers a worker and returns its id. Driver contract, version 1.';

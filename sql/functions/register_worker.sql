CREATE OR REPLACE FUNCTION pljobs.register_worker_v2(
    name text, host text, pid integer, contract integer, driver text DEFAULT NULL,
    queues text[] DEFAULT NULL, concurrency integer DEFAULT 1, lease interval DEFAULT '30 s',
    worker_id bigint DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- Registers a worker and returns its id; it must call heartbeat_v1 within every `lease`, else its jobs are
-- rescued. With worker_id: registers again under that id (after PJ003), so that jobs it still holds stay its
-- own. queues null: all that its role may fetch from. contract: the number of the contract that it speaks
-- (see get_contract_v1); driver: its name and version, for people. A worker that finished a job as
-- 'abandoned' stays tainted: it is given no more jobs.
-- Raises PJ004 for a lease not of 1 s to 1 day, or a null name, host, pid, contract; PJ008 for a contract
-- that this schema does not serve; PJ010 for a queue that the caller's role may not fetch from; PJ003 for the
-- worker_id of somebody else. Locks the worker. Notifies nobody.
DECLARE
    v_now timestamptz;
    v_served record;
    v_own bigint[];
    v_id bigint;
BEGIN
    IF (register_worker_v2.lease BETWEEN interval '1 s' AND interval '1 day') IS NOT TRUE
       OR register_worker_v2.name IS NULL OR register_worker_v2.host IS NULL
       OR register_worker_v2.pid IS NULL OR register_worker_v2.contract IS NULL THEN
        RAISE EXCEPTION 'a worker needs a name, a host, a pid, a contract, and a lease of 1 s to 1 day'
            USING ERRCODE = 'PJ004';
    END IF;
    -- A contract migration holds this table until it is committed: what it serves then is what counts.
    LOCK TABLE pljobs.worker IN ROW EXCLUSIVE MODE;
    v_served := pljobs.get_contract_v1();
    v_now := clock_timestamp();
    IF register_worker_v2.contract NOT BETWEEN v_served.oldest AND v_served.newest THEN
        RAISE EXCEPTION 'worker % of % speaks contract %, and this schema, of release %, serves % to %',
            register_worker_v2.name, coalesce(register_worker_v2.driver, 'an unnamed driver'),
            register_worker_v2.contract, v_served.release, v_served.oldest, v_served.newest
            USING ERRCODE = 'PJ008',
                  HINT = CASE WHEN register_worker_v2.contract > v_served.newest
                              THEN 'The schema is too old for this worker: run pljobs migrate first.'
                              ELSE 'The worker is too old for this schema: upgrade it.' END;
    END IF;
    PERFORM pljobs._refuse_queues('fetch', register_worker_v2.queues, 'a worker was not registered');
    v_own := pljobs._own_workers();
    IF register_worker_v2.worker_id <> ALL (v_own) AND (
        EXISTS (SELECT FROM pljobs.worker AS w WHERE w.id = register_worker_v2.worker_id)
        -- Of a worker that was pruned there may be runs left.
        OR EXISTS (SELECT FROM pljobs.job AS j
                    WHERE j.worker_id = register_worker_v2.worker_id AND j.status = 'doing')
    ) THEN
        RAISE EXCEPTION 'worker % was registered by another role', register_worker_v2.worker_id
            USING ERRCODE = 'PJ003', HINT = 'Register without a worker_id.';
    END IF;
    LOOP
        INSERT INTO pljobs.worker AS w (id, name, host, pid, queues, concurrency, lease, contract, driver,
                                        registered_by, started_at, heartbeat_at, expires_at)
        VALUES (
            coalesce(register_worker_v2.worker_id, nextval(pg_get_serial_sequence('pljobs.worker', 'id'))),
            left(register_worker_v2.name, 255), left(register_worker_v2.host, 255), register_worker_v2.pid,
            coalesce(register_worker_v2.queues, pljobs._allowed_queues('fetch')),
            coalesce(register_worker_v2.concurrency, 1), register_worker_v2.lease,
            register_worker_v2.contract, left(register_worker_v2.driver, 255), pljobs._caller(),
            v_now, v_now, v_now + register_worker_v2.lease)
            ON CONFLICT ON CONSTRAINT worker_pkey
            DO UPDATE SET stopped_at = NULL, heartbeat_at = EXCLUDED.heartbeat_at,
                          expires_at = EXCLUDED.expires_at, lease = EXCLUDED.lease,
                          contract = EXCLUDED.contract, driver = EXCLUDED.driver,
                          registered_by = coalesce(w.registered_by, EXCLUDED.registered_by)
            WHERE register_worker_v2.worker_id IS NOT NULL
        RETURNING w.id INTO v_id;
        -- A promoted standby may draw an id again: a new worker never takes another's.
        EXIT WHEN FOUND;
    END LOOP;
    RETURN v_id;
END
$$;
COMMENT ON FUNCTION pljobs.register_worker_v2(
    text, text, integer, integer, text, text[], integer, interval, bigint
) IS 'Registers a worker and returns its id. Driver contract, version 2.';

CREATE OR REPLACE FUNCTION pljobs.register_worker_v1(
    name text, host text, pid integer, queues text[] DEFAULT NULL, concurrency integer DEFAULT 1,
    lease interval DEFAULT '30 s', worker_id bigint DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- What register_worker_v2 does, for a worker that speaks contract 1.
BEGIN
    RETURN pljobs.register_worker_v2(
        register_worker_v1.name, register_worker_v1.host, register_worker_v1.pid, 1, NULL,
        register_worker_v1.queues, register_worker_v1.concurrency, register_worker_v1.lease,
        register_worker_v1.worker_id);
END
$$;
COMMENT ON FUNCTION pljobs.register_worker_v1(text, text, integer, text[], integer, interval, bigint)
    IS 'Registers a worker of contract 1 and returns its id. Driver contract, version 1.';

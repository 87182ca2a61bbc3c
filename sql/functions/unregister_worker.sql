CREATE OR REPLACE FUNCTION pljobs.unregister_worker_v1(worker_id bigint) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- registered -> stopped, 'unregistered'; else (or another's, for a role limited to queues) 'not_found'.  Call
-- it after the last finish: what the worker still holds is rescued as from a lost worker. Locks the worker.
-- Notifies nobody.
DECLARE
    v_own bigint[] := pljobs._own_workers();
BEGIN
    UPDATE pljobs.worker AS w SET stopped_at = clock_timestamp()
     WHERE w.id = unregister_worker_v1.worker_id AND w.stopped_at IS NULL
       AND (v_own IS NULL OR w.id = ANY (v_own));
    RETURN CASE WHEN FOUND THEN 'unregistered' ELSE 'not_found' END;
END
$$;
COMMENT ON FUNCTION pljobs.unregister_worker_v1(bigint)
    IS 'Ends a worker''s registration. Driver contract, version 1.';

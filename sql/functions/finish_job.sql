CREATE OR REPLACE FUNCTION pljobs.finish_job_v1(
    job_id bigint, run_id bigint, result jsonb DEFAULT NULL, message text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
AS $$
-- doing -> succeeded, 'succeeded', in the caller's transaction: for a job's own body, which calls it last, so
-- that what it has written and the end of the job commit together, or neither. A request that is open is
-- resolved 'finished_first'. What its worker reports of the run afterwards is answered 'succeeded', and
-- changes nothing; so is calling this again.
-- Raises PJ011 if that run is not the job's any more (rescued, forced, deleted, or ended otherwise): then the
-- transaction must not commit, for somebody else runs the job, or nobody should. A result of more than 1 MiB
-- is left out. Locks the job, and its request, until the transaction ends: commit at once, for whoever wants
-- to cancel the job waits for that. Takes no lane: the next of its lane is woken at the commit, or, after a
-- rare race, within some ten seconds. Notifies workers of that next, and of the room it leaves if it was
-- throttled.
DECLARE
    v_own bigint[] := pljobs._own_workers();
    v_lock text;
    v_status text;
BEGIN
    SELECT j.lock INTO v_lock FROM pljobs.job AS j
     WHERE j.id = finish_job_v1.job_id AND (v_own IS NULL OR j.worker_id = ANY (v_own)) FOR UPDATE;
    IF FOUND THEN
        v_status := pljobs._finish_run(
            finish_job_v1.job_id, finish_job_v1.run_id, 'succeeded',
            CASE WHEN octet_length(finish_job_v1.result::text) <= 1048576 THEN finish_job_v1.result END,
            left(finish_job_v1.message, 1000), NULL, false, NULL, NULL, NULL, NULL, false);
    END IF;
    IF v_status IS DISTINCT FROM 'succeeded' THEN
        RAISE EXCEPTION 'run % is not job %''s any more', coalesce(finish_job_v1.run_id::text, 'null'),
            coalesce(finish_job_v1.job_id::text, 'null')
            USING ERRCODE = 'PJ011',
                  HINT = 'It was rescued, forced or deleted, or has ended. Roll back, and stop.';
    END IF;
    PERFORM pljobs._wake_lanes(ARRAY[v_lock], take_lane => false);
    PERFORM pljobs._notify_room_of(finish_job_v1.job_id);
    RETURN v_status;
END
$$;
COMMENT ON FUNCTION pljobs.finish_job_v1(bigint, bigint, jsonb, text)
    IS 'Ends a run as succeeded, in the transaction of its own body. Driver contract, version 1.';

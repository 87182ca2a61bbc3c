CREATE OR REPLACE FUNCTION pljobs.pause_queue(queue text, reason text DEFAULT NULL, actor text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- No worker fetches from the queue until resume_queue: 'paused', or 'already_paused' (unchanged).  Running jobs go on;
-- deferring goes on.  A queue exists by being named. Raises PJ004 for a name that is not of 1 to 255 characters.
-- Locks the queue's row. Notifies nobody.
BEGIN
    IF char_length(coalesce(pause_queue.queue, '')) NOT BETWEEN 1 AND 255 THEN
        RAISE EXCEPTION 'the name of a queue has 1 to 255 characters' USING ERRCODE = 'PJ004';
    END IF;
    INSERT INTO pljobs.queue AS q (name, paused_at, paused_by, pause_reason)
    VALUES (pause_queue.queue, clock_timestamp(), pljobs._caller(), left(pause_queue.reason, 1000))
        ON CONFLICT ON CONSTRAINT queue_pkey
        DO UPDATE SET paused_at = EXCLUDED.paused_at, paused_by = EXCLUDED.paused_by, pause_reason = EXCLUDED.pause_reason
        WHERE q.paused_at IS NULL;
    IF NOT FOUND THEN
        RETURN 'already_paused';
    END IF;
    PERFORM pljobs._record_request('pause', NULL, pause_queue.queue, NULL, pause_queue.reason, pause_queue.actor, 'paused');
    RETURN 'paused';
END
$$;
COMMENT ON FUNCTION pljobs.pause_queue(text, text, text) IS 'Keeps workers from fetching from a queue: SELECT pause_queue(''mail'');';

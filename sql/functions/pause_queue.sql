CREATE OR REPLACE FUNCTION pljobs.pause_queue_v1(
    queue text, reason text DEFAULT NULL, actor text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- No worker fetches from the queue until resume_queue: 'paused', or 'already_paused' (unchanged).  Running
-- jobs go on; deferring goes on.  A queue exists by being named.
-- Raises PJ004 for a name that is not of 1 to 255 characters. Locks the queue's row. Notifies nobody.
BEGIN
    IF char_length(coalesce(pause_queue_v1.queue, '')) NOT BETWEEN 1 AND 255 THEN
        RAISE EXCEPTION 'the name of a queue has 1 to 255 characters' USING ERRCODE = 'PJ004';
    END IF;
    INSERT INTO pljobs.queue AS q (name, paused_at, paused_by, pause_reason)
    VALUES (pause_queue_v1.queue, clock_timestamp(), pljobs._caller(), left(pause_queue_v1.reason, 1000))
        ON CONFLICT ON CONSTRAINT queue_pkey
        DO UPDATE SET paused_at = EXCLUDED.paused_at, paused_by = EXCLUDED.paused_by,
                      pause_reason = EXCLUDED.pause_reason
        WHERE q.paused_at IS NULL;
    IF NOT FOUND THEN
        RETURN 'already_paused';
    END IF;
    PERFORM pljobs._record_request('pause', NULL, pause_queue_v1.queue, NULL, pause_queue_v1.reason,
                                   pause_queue_v1.actor, 'paused');
    RETURN 'paused';
END
$$;
COMMENT ON FUNCTION pljobs.pause_queue_v1(text, text, text)
    IS 'Keeps workers from fetching from a queue. Driver contract, version 1.';

CREATE OR REPLACE FUNCTION pljobs.pause_queue(
    queue text, reason text DEFAULT NULL, actor text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- What pause_queue_v1 does, for people: returns its outcome, one word.
BEGIN
    RETURN pljobs.pause_queue_v1(pause_queue.queue, pause_queue.reason, pause_queue.actor);
END
$$;
COMMENT ON FUNCTION pljobs.pause_queue(text, text, text)
    IS 'Keeps workers from fetching from a queue: SELECT pause_queue(''mail'');';

CREATE OR REPLACE FUNCTION pljobs.resume_queue_v1(
    queue text, reason text DEFAULT NULL, actor text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- Ends pause_queue: 'resumed', or 'not_paused' (unchanged).
-- Locks the queue's row. Notifies the queue's workers.
BEGIN
    UPDATE pljobs.queue AS q SET paused_at = NULL, paused_by = NULL, pause_reason = NULL
     WHERE q.name = resume_queue_v1.queue AND q.paused_at IS NOT NULL;
    IF NOT FOUND THEN
        RETURN 'not_paused';
    END IF;
    PERFORM pljobs._record_request('resume', NULL, resume_queue_v1.queue, NULL, resume_queue_v1.reason,
                                   resume_queue_v1.actor, 'resumed');
    PERFORM pljobs._notify_todo(ARRAY[resume_queue_v1.queue]);
    RETURN 'resumed';
END
$$;
COMMENT ON FUNCTION pljobs.resume_queue_v1(text, text, text)
    IS 'Lets workers fetch from a paused queue again. Driver contract, version 1.';

CREATE OR REPLACE FUNCTION pljobs.resume_queue(
    queue text, reason text DEFAULT NULL, actor text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- What resume_queue_v1 does, for people: returns its outcome, one word.
BEGIN
    RETURN pljobs.resume_queue_v1(resume_queue.queue, resume_queue.reason, resume_queue.actor);
END
$$;
COMMENT ON FUNCTION pljobs.resume_queue(text, text, text)
    IS 'Lets workers fetch from a paused queue again: SELECT resume_queue(''mail'');';

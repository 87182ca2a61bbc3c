CREATE OR REPLACE FUNCTION pljobs.notify_queues_v1(queues text[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- Tells workers to look for jobs of these queues: for those who deferred with notify => false, after their
-- commit, once for however many. Raises PJ010 for a queue that the caller's role may not defer to.
-- Changes and locks nothing. Notifies pljobs_todo, one message a queue.
BEGIN
    IF EXISTS (SELECT FROM pljobs.queue_limit AS l WHERE l.verb = 'defer') THEN
        PERFORM pljobs._refuse_queues('defer', notify_queues_v1.queues, 'nobody was notified');
    END IF;
    PERFORM pljobs._notify_todo(notify_queues_v1.queues);
END
$$;
COMMENT ON FUNCTION pljobs.notify_queues_v1(text[])
    IS 'Tells workers to look for jobs of these queues. Driver contract, version 1.';

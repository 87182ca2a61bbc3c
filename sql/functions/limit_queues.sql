CREATE OR REPLACE FUNCTION pljobs.limit_queues(role text, verb text, queues text[]) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- Limits a role, and all that are members of it, to deferring to ('defer') or fetching from ('fetch') these
-- queues; with queues null takes the limit away. Who is a member of several limited roles may what any of
-- them may; a role without a limit adds nothing. Operators and the owner of the schema are not limited.
-- Returns 'limited', 'unlimited', or 'unchanged' if there was nothing to take away. It holds from the next
-- call on: what is queued or runs goes on. By the role's name: who renames a role sets its limits anew.
-- Raises PJ004 for a role that does not exist, another verb, no queues, or a name not of 1 to 255 characters.
-- Locks the limit. Notifies nobody.
BEGIN
    IF limit_queues.queues IS NULL THEN
        DELETE FROM pljobs.queue_limit AS l WHERE l.role = limit_queues.role AND l.verb = limit_queues.verb;
        RETURN CASE WHEN FOUND THEN 'unlimited' ELSE 'unchanged' END;
    ELSIF NOT EXISTS (SELECT FROM pg_roles AS r WHERE r.rolname = limit_queues.role) THEN
        RAISE EXCEPTION 'role % does not exist', coalesce(quote_ident(limit_queues.role), 'null')
            USING ERRCODE = 'PJ004';
    ELSIF (limit_queues.verb IN ('defer', 'fetch')) IS NOT TRUE THEN
        RAISE EXCEPTION 'a role can be limited to defer or to fetch, not to %',
            coalesce(quote_literal(limit_queues.verb), 'null') USING ERRCODE = 'PJ004';
    ELSIF limit_queues.queues = '{}' OR EXISTS (
        SELECT FROM unnest(limit_queues.queues) AS q(name)
         WHERE (char_length(q.name) BETWEEN 1 AND 255) IS NOT TRUE
    ) THEN
        RAISE EXCEPTION 'name at least one queue, each of 1 to 255 characters' USING ERRCODE = 'PJ004',
            HINT = 'To let it into no queue at all: REVOKE the group from it.';
    END IF;
    INSERT INTO pljobs.queue_limit AS l (role, verb, queues)
    VALUES (limit_queues.role, limit_queues.verb,
            ARRAY(SELECT DISTINCT q.name FROM unnest(limit_queues.queues) AS q(name) ORDER BY 1))
        ON CONFLICT ON CONSTRAINT queue_limit_pkey DO UPDATE SET queues = EXCLUDED.queues;
    RETURN 'limited';
END
$$;
COMMENT ON FUNCTION pljobs.limit_queues(text, text, text[])
    IS 'Limits a role to queues: SELECT limit_queues(''mail_worker'', ''fetch'', ''{mail}'');';

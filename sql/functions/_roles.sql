CREATE OR REPLACE FUNCTION pljobs._own_roles(VARIADIC groups text[]) RETURNS text[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- The roles that the caller is a member of: the jobs that these have deferred are its own. Null if all jobs
-- are its to handle: for the owner of the schema, and for who has the rights of one of `groups`.
DECLARE
    v_caller text := pljobs._caller();
BEGIN
    IF EXISTS (
        SELECT FROM pg_roles AS r
         WHERE r.rolname = ANY (_own_roles.groups) AND pg_has_role(v_caller, r.oid, 'USAGE')
    ) OR EXISTS (
        SELECT FROM pg_namespace AS n
         WHERE n.nspname = 'pljobs' AND pg_has_role(v_caller, n.nspowner, 'MEMBER')
    ) THEN
        RETURN NULL;
    END IF;
    RETURN ARRAY(SELECT r.rolname::text FROM pg_roles AS r WHERE pg_has_role(v_caller, r.oid, 'MEMBER'));
END
$$;
COMMENT ON FUNCTION pljobs._own_roles(text[]) IS 'Whose jobs are the caller''s own; null: all.';

CREATE OR REPLACE FUNCTION pljobs._limit_of(role text, verb text) RETURNS text[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- The queues that a role is limited to: those of all limited roles that it is a member of. Null, no limit: if
-- it is a member of none, for operators and for the owner of the schema.
BEGIN
    IF pg_has_role(_limit_of.role, to_regrole('pljobs_operator'), 'USAGE') OR EXISTS (
        SELECT FROM pg_namespace AS n
         WHERE n.nspname = 'pljobs' AND pg_has_role(_limit_of.role, n.nspowner, 'MEMBER')
    ) THEN
        RETURN NULL;
    END IF;
    RETURN (SELECT array_agg(DISTINCT q.name)
              FROM pljobs.queue_limit AS l
              JOIN pg_roles AS r ON r.rolname = l.role
             CROSS JOIN unnest(l.queues) AS q(name)
             WHERE l.verb = _limit_of.verb AND pg_has_role(_limit_of.role, r.oid, 'MEMBER'));
END
$$;
COMMENT ON FUNCTION pljobs._limit_of(text, text) IS 'The queues that a role is limited to; null: none.';

CREATE OR REPLACE FUNCTION pljobs._allowed_queues(verb text) RETURNS text[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- The queues that the caller may 'defer' to, or 'fetch' from; null: all. Nobody gets out of a limit by SET
-- ROLE (to pljobs_producer, say): what limits the login holds as well, unless the role in force is an
-- operator or the owner of the schema.
DECLARE
    v_caller text;
    v_queues text[];
    v_of_login text[];
BEGIN
    IF NOT EXISTS (SELECT FROM pljobs.queue_limit AS l WHERE l.verb = _allowed_queues.verb)
       OR pljobs._own_roles('pljobs_operator') IS NULL THEN
        RETURN NULL;
    END IF;
    v_caller := pljobs._caller();
    v_queues := pljobs._limit_of(v_caller, _allowed_queues.verb);
    IF v_caller <> session_user THEN
        v_of_login := pljobs._limit_of(session_user, _allowed_queues.verb);
    END IF;
    IF v_queues IS NOT NULL AND v_of_login IS NOT NULL THEN
        RETURN ARRAY(SELECT q.name FROM unnest(v_queues) AS q(name) WHERE q.name = ANY (v_of_login));
    END IF;
    RETURN coalesce(v_queues, v_of_login);
END
$$;
COMMENT ON FUNCTION pljobs._allowed_queues(text) IS 'The queues that the caller is limited to; null: none.';

CREATE OR REPLACE FUNCTION pljobs._own_workers() RETURNS bigint[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- The workers that the caller may speak for: all, as null, unless it is limited to queues; then those that a
-- role of its own has registered.
BEGIN
    IF pljobs._allowed_queues('fetch') IS NULL THEN
        RETURN NULL;
    END IF;
    RETURN ARRAY(SELECT w.id FROM pljobs.worker AS w
                  WHERE w.registered_by = ANY (pljobs._own_roles('pljobs_operator')));
END
$$;
COMMENT ON FUNCTION pljobs._own_workers() IS 'The workers that the caller may speak for; null: all.';

CREATE OR REPLACE FUNCTION pljobs._refuse_queues(verb text, queues text[], what text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- Raises PJ010 if one of the queues is none that the caller may 'defer' to or 'fetch' from.
DECLARE
    v_allowed text[] := pljobs._allowed_queues(_refuse_queues.verb);
    v_refused text;
BEGIN
    IF v_allowed IS NULL THEN
        RETURN;
    END IF;
    SELECT q.name INTO v_refused FROM unnest(_refuse_queues.queues) AS q(name)
     WHERE q.name <> ALL (v_allowed) ORDER BY 1 LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION '% is limited to other queues than %: %', pljobs._caller(), quote_literal(v_refused),
            _refuse_queues.what
            USING ERRCODE = 'PJ010',
                  HINT = format('It may %s: %s. An operator changes that with limit_queues().',
                                _refuse_queues.verb, array_to_string(v_allowed, ', '));
    END IF;
END
$$;
COMMENT ON FUNCTION pljobs._refuse_queues(text, text[], text)
    IS 'Raises PJ010 for a queue that the caller is not allowed.';

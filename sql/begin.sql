-- What is set here is for the install alone: the rest of the transaction may be somebody else's, and end.sql
-- gives them back what they had.
DO $$
BEGIN
    PERFORM pg_catalog.set_config('pljobs.former_search_path',
                                  pg_catalog.current_setting('search_path'), true);
    PERFORM pg_catalog.set_config('pljobs.former_role', pg_catalog.current_setting('role'), true);
    PERFORM pg_catalog.set_config('pljobs.former_lock_timeout',
                                  pg_catalog.current_setting('lock_timeout'), true);
    PERFORM pg_catalog.set_config('pljobs.former_statement_timeout',
                                  pg_catalog.current_setting('statement_timeout'), true);
END
$$;

-- Nothing below may be found in a schema that somebody else can create in.
SET LOCAL search_path = pg_catalog, pg_temp;

-- All or nothing: outside of a transaction, this setting is gone with its statement.
DO $$
BEGIN
    PERFORM pg_catalog.set_config('pljobs.installing', 'yes', true);
END
$$;
DO $$
BEGIN
    IF pg_catalog.current_setting('pljobs.installing', true) IS DISTINCT FROM 'yes' THEN
        RAISE EXCEPTION 'this has to run in one transaction'
            USING ERRCODE = 'PJ004',
                  HINT = 'psql -1 -v ON_ERROR_STOP=1 -f ..., or between BEGIN and COMMIT. Nothing changed.';
    END IF;
END
$$;

-- What is stored is the same whoever stores it.
SET LOCAL quote_all_identifiers = off;

-- Waiting is limited below, and says for whom it waited.
SET LOCAL statement_timeout = 0;

-- One installer at a time: the others wait here, then find everything done.
SET LOCAL lock_timeout = '60s';
DO $$
BEGIN
    PERFORM pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('pljobs.install', 0));
    -- From here on, what somebody holds is waited for briefly: see _lock_relations. For longer with, say,
    -- PGOPTIONS='-c pljobs.lock_timeout=1min'.
    PERFORM pg_catalog.set_config(
        'lock_timeout',
        coalesce(nullif(pg_catalog.current_setting('pljobs.lock_timeout', true), ''), '5s'),
        true);
END
$$;

DO $$
BEGIN
    -- Functions here run with their owner's rights.
    IF EXISTS (
        SELECT FROM pg_catalog.pg_namespace AS n
         WHERE n.nspname = 'pljobs' AND NOT pg_catalog.pg_has_role(n.nspowner, 'USAGE')
    ) THEN
        RAISE EXCEPTION 'schema pljobs belongs to another role'
            USING ERRCODE = 'PJ005',
                  HINT = 'Install as the owner of the schema, or drop the schema if it is not pljobs''s.';
    END IF;
    IF EXISTS (
        SELECT FROM pg_catalog.pg_namespace AS n, LATERAL pg_catalog.aclexplode(n.nspacl) AS a
         WHERE n.nspname = 'pljobs' AND a.grantee = 0 AND a.privilege_type = 'CREATE'
    ) THEN
        RAISE EXCEPTION 'anybody may create objects in schema pljobs'
            USING ERRCODE = 'PJ005',
                  HINT = 'REVOKE CREATE ON SCHEMA pljobs FROM PUBLIC, look at what is in it, then install.';
    END IF;
END
$$;

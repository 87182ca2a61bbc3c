-- Who waits in line must then see what the one before it did, whatever the role's default is. First of all:
-- in a transaction that is otherwise, and has read something, it is an error.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;

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
    -- Of 17 and later. What waits is limited below, and says for whom it waited.
    IF pg_catalog.current_setting('transaction_timeout', true) IS NOT NULL THEN
        PERFORM pg_catalog.set_config('pljobs.former_transaction_timeout',
                                      pg_catalog.current_setting('transaction_timeout'), true);
        PERFORM pg_catalog.set_config('transaction_timeout', '0', true);
    END IF;
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
    -- A client that goes on behind an error, as psql does by default, must not get anything done.
    IF pg_catalog.current_setting('pljobs.installing', true) IS DISTINCT FROM 'yes' THEN
        PERFORM pg_catalog.set_config('default_transaction_read_only', 'on', false);
    END IF;
END
$$;
DO $$
BEGIN
    IF pg_catalog.current_setting('pljobs.installing', true) IS DISTINCT FROM 'yes' THEN
        RAISE EXCEPTION 'this has to run in one transaction'
            USING ERRCODE = 'PJ004',
                  HINT = 'psql -1 -v ON_ERROR_STOP=1 -f ..., or between BEGIN and COMMIT. Nothing changed; '
                         'this session can''t write any more until RESET default_transaction_read_only.';
    END IF;
END
$$;

-- What is stored is the same whoever stores it.
SET LOCAL quote_all_identifiers = off;
SET LOCAL standard_conforming_strings = on;

-- Waiting is limited below, and says for whom it waited.
SET LOCAL statement_timeout = 0;

-- One installer at a time: the others wait here, then find everything done.
SET LOCAL lock_timeout = '60s';
DO $$
BEGIN
    BEGIN
        PERFORM pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('pljobs.install', 0));
    EXCEPTION
        WHEN lock_not_available THEN
            RAISE EXCEPTION 'another install of pljobs has been under way for a minute'
                USING ERRCODE = '55P03',
                      HINT = 'Nothing was changed. Run it again when that one is done; pg_locks has its pid '
                             '(locktype advisory).';
    END;
    -- From here on, what somebody holds is waited for briefly: see _lock_relations. For longer with, say,
    -- PGOPTIONS='-c pljobs.lock_timeout=1min'.
    PERFORM pg_catalog.set_config(
        'lock_timeout',
        coalesce(nullif(pg_catalog.current_setting('pljobs.lock_timeout', true), ''), '5s'),
        true);
END
$$;

DO $$
DECLARE
    v_owner text := (SELECT n.nspowner::pg_catalog.regrole FROM pg_catalog.pg_namespace AS n
                      WHERE n.nspname = 'pljobs');
    v_others text;
BEGIN
    -- Functions here run with their owner's rights.
    IF NOT pg_catalog.pg_has_role(v_owner::pg_catalog.regrole, 'USAGE') THEN
        RAISE EXCEPTION 'schema pljobs belongs to another role'
            USING ERRCODE = 'PJ005',
                  HINT = 'Install as the owner of the schema, or drop the schema if it is not pljobs''s.';
    END IF;
    -- What is in it already may run now, and could get back from its owner's rights to those of this session.
    IF EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname = current_user AND r.rolsuper)
       AND EXISTS (SELECT FROM pg_catalog.pg_roles AS r
                    WHERE r.oid = v_owner::pg_catalog.regrole AND NOT r.rolsuper
                      AND r.rolname <> 'pljobs_owner') THEN
        RAISE EXCEPTION 'schema pljobs belongs to %, and % is a superuser', v_owner, current_user
            USING ERRCODE = 'PJ005',
                  HINT = pg_catalog.format('Install as %1$s. Or, only if you trust %1$s with a superuser''s '
                                           'rights: SET ROLE %1$s, then install.', v_owner);
    END IF;
    IF EXISTS (
        SELECT FROM pg_catalog.pg_namespace AS n, LATERAL pg_catalog.aclexplode(n.nspacl) AS a
         WHERE n.nspname = 'pljobs' AND a.grantee = 0 AND a.privilege_type = 'CREATE'
    ) THEN
        RAISE EXCEPTION 'anybody may create objects in schema pljobs'
            USING ERRCODE = 'PJ005',
                  HINT = 'REVOKE CREATE ON SCHEMA pljobs FROM PUBLIC, look at what is in it, then install.';
    END IF;
    SELECT pg_catalog.string_agg(pg_catalog.format('%s (of %s)', o.name, o.owner), ', ' ORDER BY o.name)
      INTO v_others
      FROM (SELECT c.oid::pg_catalog.regclass::text AS name, c.relowner::pg_catalog.regrole::text AS owner
              FROM pg_catalog.pg_class AS c WHERE c.relnamespace = pg_catalog.to_regnamespace('pljobs')
            UNION ALL
            SELECT p.oid::pg_catalog.regprocedure::text, p.proowner::pg_catalog.regrole::text
              FROM pg_catalog.pg_proc AS p
             WHERE p.pronamespace = pg_catalog.to_regnamespace('pljobs')) AS o
     WHERE o.owner <> v_owner;
    IF v_others IS NOT NULL THEN
        RAISE EXCEPTION 'in schema pljobs, which belongs to %, there are things of others: %', v_owner,
            v_others
            USING ERRCODE = 'PJ005',
                  HINT = 'Find out who made them. Drop what is not pljobs''s; of what is, make the owner of '
                         'the schema the owner: ALTER ... OWNER TO.';
    END IF;
END
$$;

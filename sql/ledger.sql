-- The schema belongs to pljobs_owner where this role may be taken, so that its functions run with nothing but
-- its rights; else to whoever installs.
DO $$
DECLARE
    v_may_become text := CASE WHEN pg_catalog.current_setting('server_version_num')::integer >= 160000
                              THEN 'SET' ELSE 'MEMBER' END;
BEGIN
    IF pg_catalog.to_regnamespace('pljobs') IS NOT NULL THEN
        RETURN;
    END IF;
    IF pg_catalog.pg_has_role(pg_catalog.to_regrole('pljobs_owner'), v_may_become) THEN
        CREATE SCHEMA pljobs AUTHORIZATION pljobs_owner;
    ELSE
        CREATE SCHEMA pljobs;
    END IF;
END
$$;

-- Whoever runs an upgrade, all of the schema stays one role's: what a superuser creates here would be hers,
-- and its functions would run with her rights.
DO $$
BEGIN
    PERFORM pg_catalog.set_config('role', r.rolname, true)
       FROM pg_catalog.pg_namespace AS n JOIN pg_catalog.pg_roles AS r ON r.oid = n.nspowner
      WHERE n.nspname = 'pljobs' AND r.rolname <> current_user;
END
$$;

DO $$
BEGIN
    -- What this role makes is nobody else's to call, not even between two statements. (Of a role that owns
    -- other things too, this is not ours to change.)
    IF current_user = 'pljobs_owner' THEN
        ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
    END IF;
END
$$;

DO $$
BEGIN
    IF pg_catalog.to_regclass('pljobs.migration') IS NULL THEN
        CREATE TABLE pljobs.migration (
            name       text        NOT NULL,
            checksum   text        NOT NULL,
            applied_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
            applied_by text        NOT NULL DEFAULT session_user,
            CONSTRAINT migration_pkey PRIMARY KEY (name)
        );
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION pljobs._migrate(name text, body text) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Runs a migration once.  Not in the ledger -> run, recorded, 'applied'.  In it with the same text ->
-- 'already_applied'. In it with another text -> PJ005: what a database has run is never edited.
DECLARE
    v_checksum text := encode(sha256(convert_to(_migrate.body, 'UTF8')), 'hex');
    v_recorded text := (SELECT m.checksum FROM pljobs.migration AS m WHERE m.name = _migrate.name);
BEGIN
    IF v_recorded = v_checksum THEN
        RETURN 'already_applied';
    ELSIF v_recorded IS NOT NULL THEN
        RAISE EXCEPTION 'migration % was edited after this database ran it', _migrate.name
            USING ERRCODE = 'PJ005',
                  DETAIL = format('recorded checksum %s, this file''s %s', v_recorded, v_checksum),
                  HINT = 'Restore the released file; put the change into a new migration.';
    END IF;
    EXECUTE _migrate.body;
    INSERT INTO pljobs.migration (name, checksum) VALUES (_migrate.name, v_checksum);
    RETURN 'applied';
END
$$;
COMMENT ON FUNCTION pljobs._migrate(text, text)
    IS 'Runs a migration once and records it; refuses an edited one (PJ005).';

CREATE OR REPLACE FUNCTION pljobs._refuse_newer(latest text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Raises PJ006 if the ledger holds a migration later than `latest`, the last one that this release knows.
DECLARE
    v_newest text := (SELECT max(m.name COLLATE "C") FROM pljobs.migration AS m);
BEGIN
    IF v_newest COLLATE "C" > _refuse_newer.latest COLLATE "C" THEN
        RAISE EXCEPTION 'this database has been migrated to %, and this release of pljobs ends at %',
            v_newest, _refuse_newer.latest
            USING ERRCODE = 'PJ006',
                  HINT = 'Install the release that made that migration, or a newer one. Nothing was changed.';
    END IF;
END
$$;
COMMENT ON FUNCTION pljobs._refuse_newer(text)
    IS 'Raises PJ006 if a newer release of pljobs has migrated this database.';

CREATE OR REPLACE FUNCTION pljobs._holders(relation regclass, since timestamptz) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Names those whose transactions have held a lock on this relation since then.
BEGIN
    RETURN coalesce((
        SELECT string_agg(DISTINCT
                   CASE WHEN l.pid IS NULL THEN 'a prepared transaction (see pg_prepared_xacts)'
                        ELSE format('pid %s (%s)', l.pid, concat_ws(', ', a.usename,
                             nullif(a.application_name, ''), a.backend_type)) END, ', ')
          FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
         WHERE l.relation = _holders.relation AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
           AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
           AND coalesce(a.xact_start, '-infinity') <= _holders.since), 'nobody that can be named');
END
$$;
COMMENT ON FUNCTION pljobs._holders(regclass, timestamptz) IS 'Names who holds a relation.';

CREATE OR REPLACE FUNCTION pljobs._refuse_held(relation regclass, since timestamptz) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Raises 55P03, naming those whose transactions have held a lock on this relation since then.
BEGIN
    RAISE EXCEPTION '% was held by others for too long: %', _refuse_held.relation,
        pljobs._holders(_refuse_held.relation, _refuse_held.since)
        USING ERRCODE = '55P03',
              HINT = 'Nothing was changed. Run it again when they are done, or wait longer: pljobs migrate '
                     '--lock-timeout 1m, or with psql PGOPTIONS=''-c pljobs.lock_timeout=1min''.';
END
$$;
COMMENT ON FUNCTION pljobs._refuse_held(regclass, timestamptz) IS 'Raises, naming who holds a relation.';

CREATE OR REPLACE FUNCTION pljobs._lock_relations(names text[] DEFAULT '{}', exclusively boolean DEFAULT true)
RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Locks the tables that are named against VACUUM, CREATE INDEX and ALTER TABLE; then, exclusively, these
-- tables and all views of pljobs, all at once or none. Gives up when lock_timeout (0: never) is over: 55P03,
-- naming who is in the way.
DECLARE
    v_limit interval := current_setting('lock_timeout')::interval;
    v_until timestamptz := clock_timestamp() + v_limit;
    v_began timestamptz := clock_timestamp();
    v_relation regclass;
    v_tables regclass[] := ARRAY(
        SELECT c.oid::regclass FROM pg_class AS c
         WHERE c.relnamespace = 'pljobs'::regnamespace AND c.relkind = 'r'
           AND c.relname = ANY (_lock_relations.names)
         ORDER BY c.relname);
    -- Not those that somebody has added.
    v_views regclass[] := ARRAY(
        SELECT c.oid::regclass FROM pljobs._manifest() AS m
          JOIN pg_class AS c ON c.relname = m.name AND c.relnamespace = 'pljobs'::regnamespace
         WHERE m.kind = 'view' AND c.relkind = 'v'
         ORDER BY c.relname);
BEGIN
    -- For this one can wait in the queue: no worker waits behind it. Where it is an autovacuum that is in the
    -- way, it gives up after a second.
    BEGIN
        FOREACH v_relation IN ARRAY v_tables LOOP
            EXECUTE format('LOCK TABLE %s IN SHARE UPDATE EXCLUSIVE MODE', v_relation);
        END LOOP;
    EXCEPTION WHEN lock_not_available THEN
        PERFORM pljobs._refuse_held(v_relation, v_began);
    END;
    IF NOT _lock_relations.exclusively THEN
        RETURN;
    END IF;
    -- Whoever waits for this one keeps all that come later waiting too: so each try waits for 100 ms at most,
    -- then lets the workers pass. Views first: no worker waits for them.
    LOOP
        BEGIN
            v_began := clock_timestamp();
            PERFORM set_config('lock_timeout', '100', true);
            FOREACH v_relation IN ARRAY v_views LOOP
                -- LOCK TABLE would lock all that the view reads; this locks it alone, and changes nothing.
                EXECUTE format('ALTER VIEW %s SET (security_barrier)', v_relation);
            END LOOP;
            FOREACH v_relation IN ARRAY v_tables LOOP
                EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', v_relation);
            END LOOP;
            PERFORM set_config('lock_timeout', extract(epoch FROM v_limit) || 's', true);
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            IF v_limit > '0' AND clock_timestamp() > v_until THEN
                PERFORM pljobs._refuse_held(v_relation, v_began);
            END IF;
        END;
        PERFORM pg_sleep(0.1 + 0.2 * random());
    END LOOP;
END
$$;
COMMENT ON FUNCTION pljobs._lock_relations(text[], boolean)
    IS 'Locks tables, and all views, without keeping workers waiting for long.';

CREATE OR REPLACE FUNCTION pljobs._create_index(table_name text, statement text) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Runs a CREATE INDEX on a table of less than 16 MiB, 'created'. On a larger one it would keep everybody from
-- writing for too long: left to sql/indexes.sql, with a NOTICE, 'later'.
BEGIN
    IF pg_relation_size(format('pljobs.%I', _create_index.table_name)::regclass) < 16 * 1024 * 1024 THEN
        EXECUTE _create_index.statement;
        RETURN 'created';
    END IF;
    RAISE NOTICE 'pljobs.% is large: its new index is not made in this transaction', _create_index.table_name
        USING HINT = 'Next, outside of a transaction: psql -f sql/indexes.sql (pljobs migrate does so).';
    RETURN 'later';
END
$$;
COMMENT ON FUNCTION pljobs._create_index(text, text)
    IS 'Makes an index now if its table is small.';

CREATE OR REPLACE FUNCTION pljobs._replace_form(was text, becomes text) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- For a migration that gives a plain function, which people call, another parameter: two forms would be one
-- too many for a call to choose from. Whom a DBA had granted the old one by hand is granted the new one,
-- which is there already; then the old one goes, 'replaced'. No old one -> 'not_there'. Where an object of
-- somebody's depends on it, this raises, names that object, and changes nothing.
DECLARE
    v_was regprocedure := to_regprocedure(_replace_form.was);
    v_drop text := format('DROP FUNCTION %s', v_was);
    v_grantee oid;
    v_detail text;
BEGIN
    IF v_was IS NULL THEN
        RETURN 'not_there';
    END IF;
    FOR v_grantee IN
        SELECT DISTINCT a.grantee FROM pg_proc AS p, aclexplode(p.proacl) AS a
         WHERE p.oid = v_was AND a.grantee NOT IN (0, p.proowner)
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', _replace_form.becomes::regprocedure,
                       v_grantee::regrole);
    END LOOP;
    EXECUTE v_drop;
    RETURN 'replaced';
EXCEPTION WHEN dependent_objects_still_exist THEN
    GET STACKED DIAGNOSTICS v_detail = PG_EXCEPTION_DETAIL;
    RAISE EXCEPTION '% gets a parameter, so its old form goes, and other objects need that: %',
        v_was::regproc, v_detail
        USING ERRCODE = '2BP01',
              HINT = 'Nothing was changed. Drop them, upgrade, and make them anew.';
END
$$;
COMMENT ON FUNCTION pljobs._replace_form(text, text)
    IS 'Moves a function''s grants to its new form, and drops the old one.';

CREATE OR REPLACE FUNCTION pljobs._refuse_old_workers(contract integer) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- For a migration that takes away what workers of an older contract call. Raises PJ009 if one of them is
-- alive, naming it. Locks the table of workers: none registers until the migration is committed.
DECLARE
    v_workers text;
BEGIN
    PERFORM pljobs._lock_relations('{worker}');
    SELECT string_agg(format('%s (%s@%s:%s, contract %s)', w.id, w.name, w.host, w.pid, w.contract), ', '
                      ORDER BY w.id)
      INTO v_workers
      FROM pljobs.worker AS w
     WHERE w.stopped_at IS NULL AND w.expires_at > clock_timestamp()
       AND w.contract < _refuse_old_workers.contract;
    IF v_workers IS NOT NULL THEN
        RAISE EXCEPTION 'workers that need what this migration takes away are alive: %', v_workers
            USING ERRCODE = 'PJ009',
                  HINT = 'Upgrade and restart them, then migrate again. Nothing was changed.';
    END IF;
END
$$;
COMMENT ON FUNCTION pljobs._refuse_old_workers(integer)
    IS 'Raises PJ009 while workers of an older contract are alive.';

-- 0003 moves grants from defer_job's first form to its second, which is no more: 0005 moves them on to the
-- third. Where 0003 is still to be run, the second one is there for as long as that takes.
DO $$
BEGIN
    IF to_regprocedure('pljobs.defer_job(text, jsonb, text, integer, text, text, timestamptz, timestamptz, '
                       'interval, interval, text, bigint)') IS NOT NULL
       AND NOT EXISTS (SELECT FROM pljobs.migration AS m WHERE m.name = '0003_expand_idempotency') THEN
        CREATE OR REPLACE FUNCTION pljobs.defer_job(
            text, jsonb, text, integer, text, text, timestamptz, timestamptz, interval, interval, text,
            bigint, text
        ) RETURNS bigint
        LANGUAGE plpgsql VOLATILE
        SET search_path = pg_catalog, pg_temp
        AS 'BEGIN RETURN NULL::bigint; END';
    END IF;
END
$$;

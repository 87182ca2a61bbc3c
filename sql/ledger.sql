-- Nothing below may be found in a schema that somebody else can create in.
SET LOCAL search_path = pg_catalog, pg_temp;

-- One installer at a time: the others wait here, then find everything done.
SET LOCAL lock_timeout = '60s';
SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('pljobs.install', 0));

-- From here on, a table that somebody holds is waited for briefly: a migration must not queue up in front of
-- the workers.
SET LOCAL lock_timeout = '5s';

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

CREATE SCHEMA IF NOT EXISTS pljobs;

-- Whoever runs an upgrade, all of the schema stays one role's: what a superuser creates here would be hers,
-- and its functions would run with her rights.
SELECT pg_catalog.set_config('role', r.rolname, true)
  FROM pg_catalog.pg_namespace AS n JOIN pg_catalog.pg_roles AS r ON r.oid = n.nspowner
 WHERE n.nspname = 'pljobs' AND r.rolname <> current_user;

CREATE TABLE IF NOT EXISTS pljobs.migration (
    name       text        NOT NULL,
    checksum   text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    applied_by text        NOT NULL DEFAULT session_user,
    CONSTRAINT migration_pkey PRIMARY KEY (name)
);

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

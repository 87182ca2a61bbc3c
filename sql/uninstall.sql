-- Removes pljobs with all its jobs. The group roles of roles.sql stay: other databases may use them.
--
--     psql -1 -v ON_ERROR_STOP=1 -f sql/uninstall.sql
DO $$
BEGIN
    -- As it was before ledger.sql changed it: else the group could not be dropped.
    IF EXISTS (SELECT FROM pg_catalog.pg_default_acl AS d
                WHERE d.defaclrole = pg_catalog.to_regrole('pljobs_owner') AND d.defaclnamespace = 0) THEN
        ALTER DEFAULT PRIVILEGES FOR ROLE pljobs_owner GRANT EXECUTE ON FUNCTIONS TO PUBLIC;
    END IF;
END
$$;
DROP SCHEMA pljobs CASCADE;

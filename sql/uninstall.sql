-- Removes pljobs with all its jobs. The group roles of roles.sql stay: other databases may use them.
--
--     psql -1 -v ON_ERROR_STOP=1 -f sql/uninstall.sql
DROP SCHEMA pljobs CASCADE;

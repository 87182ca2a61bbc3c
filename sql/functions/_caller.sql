CREATE OR REPLACE FUNCTION pljobs._caller() RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Returns the role that called: the SET ROLE in force, else the login. In a SECURITY DEFINER function
-- current_user is the owner and tells nothing. Raises 42501 where the login is not who calls: in what ANALYZE
-- (autovacuum, too), REINDEX and the like run of a table's owner, an index's function for example. They run
-- it with the owner's rights in a session of somebody else, often a superuser's.
BEGIN
    -- Does nothing, but is refused there; nothing else tells.
    UNLISTEN pljobs_nothing;
    RETURN coalesce(nullif(current_setting('role'), 'none'), session_user);
END
$$;
COMMENT ON FUNCTION pljobs._caller() IS 'The role that called, as recorded in the audit trail.';

CREATE OR REPLACE FUNCTION pljobs._caller() RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- Returns the role that called: the SET ROLE in force, else the login. In a SECURITY DEFINER function
-- current_user is the owner and tells nothing.
BEGIN
    RETURN coalesce(nullif(current_setting('role'), 'none'), session_user);
END
$$;
COMMENT ON FUNCTION pljobs._caller() IS 'The role that called, as recorded in the audit trail.';

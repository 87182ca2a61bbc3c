CREATE OR REPLACE FUNCTION pljobs._ago(older_than interval) RETURNS timestamptz
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- The time so long ago; null for null. Never raises, for its callers have not looked at it yet: cut to what
-- every client can read, 2,000 years ago, and to now.
BEGIN
    RETURN CASE WHEN _ago.older_than IS NOT NULL THEN
        clock_timestamp() - greatest(least(_ago.older_than, interval '2000 years'), interval '0') END;
END
$$;
COMMENT ON FUNCTION pljobs._ago(interval) IS 'The time so long ago.';

CREATE OR REPLACE FUNCTION pljobs._ago(older_than interval) RETURNS timestamptz
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- The time so long ago; null for null. Never raises, for its callers have not looked at it yet: cut to what
-- every client can read, 2,000 years ago, and to now.
DECLARE
    v_now timestamptz := clock_timestamp();
    v_first timestamptz := v_now - interval '2000 years';
BEGIN
    -- Compared as times: of '5000000 years -1800000000 days' a comparison of lengths says that it is nothing.
    RETURN CASE WHEN _ago.older_than IS NOT NULL THEN
        least(greatest(v_now - _ago.older_than, v_first), v_now) END;
EXCEPTION
    WHEN datetime_field_overflow THEN
        RETURN CASE WHEN _ago.older_than < interval '0' THEN v_now ELSE v_first END;
END
$$;
COMMENT ON FUNCTION pljobs._ago(interval) IS 'The time so long ago.';

CREATE OR REPLACE FUNCTION pljobs._later(than timestamptz, length interval) RETURNS timestamptz
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- The time so much later than that one: not before it, and ten years after it at most. Never raises, whatever
-- the length. Null for a null length.
DECLARE
    v_last timestamptz := _later.than + interval '10 years';
BEGIN
    RETURN CASE WHEN _later.length IS NOT NULL THEN
        greatest(least(_later.than + _later.length, v_last), _later.than) END;
EXCEPTION
    WHEN datetime_field_overflow THEN
        RETURN CASE WHEN _later.length < interval '0' THEN _later.than ELSE v_last END;
END
$$;
COMMENT ON FUNCTION pljobs._later(timestamptz, interval) IS 'The time so much later, within ten years.';

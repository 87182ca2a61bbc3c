-- While somebody holds an old snapshot, a walk passes the index entries of all that has changed since. So the
-- session keeps hints, as settings: two walks in a row were slow (one may just have had no processor), and
-- the last found nothing before this place. The next ones start there, until the hint's time is over; if the
-- next whole walk is slow again, that leaves one at once. Nothing else depends on them. Of the fetch's own
-- (pljobs.fetch_hint) see there; while that is empty, everything is looked at.

CREATE OR REPLACE FUNCTION pljobs._hint_until(ms numeric, in_vain boolean DEFAULT true) RETURNS numeric
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Until when to follow the hint of a walk that took so long, as a Unix time: for 100 times as long, so that
-- slow walks take 1 % of the session's time, and 5 s at most, for so long may wait what comes before it. For
-- 10 times as long only, if a hint before had passed over what this walk found: there will be more.
BEGIN
    RETURN extract(epoch FROM clock_timestamp())
           + least(_hint_until.ms * CASE WHEN _hint_until.in_vain THEN 0.1 ELSE 0.01 END, 5);
END
$$;
COMMENT ON FUNCTION pljobs._hint_until(numeric, boolean) IS 'Until when the hint of a slow walk is followed.';

CREATE OR REPLACE FUNCTION pljobs._hint_holds(until text) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Whether to follow a hint still. Not one that would last for longer than any does: the clock was set back.
BEGIN
    RETURN coalesce(nullif(_hint_holds.until, '')::numeric - extract(epoch FROM clock_timestamp())
                    BETWEEN 0 AND 60, false);
END
$$;
COMMENT ON FUNCTION pljobs._hint_holds(text) IS 'Whether to follow a hint still.';

CREATE OR REPLACE FUNCTION pljobs._hint_from(name text) RETURNS timestamptz
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Where a walk through times that have passed starts: pljobs.<name>_hint is '<from>|<until>', both Unix
-- times. Not at one that is still to come: the clock was set back.
DECLARE
    v_hint text := current_setting('pljobs.' || _hint_from.name || '_hint', true);
    v_from timestamptz;
BEGIN
    IF v_hint <> '' AND current_setting('pljobs.fetch_hint', true) IS DISTINCT FROM ''
       AND pljobs._hint_holds(split_part(v_hint, '|', 2)) THEN
        v_from := to_timestamp(split_part(v_hint, '|', 1)::double precision);
    END IF;
    RETURN CASE WHEN v_from <= clock_timestamp() THEN v_from ELSE '-infinity' END;
END
$$;
COMMENT ON FUNCTION pljobs._hint_from(text) IS 'Where a walk through times starts.';

CREATE OR REPLACE FUNCTION pljobs._note_walk(
    name text, began timestamptz, began_from timestamptz, found_at timestamptz
) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Keeps a hint of a walk that was slow, as the last whole one: its first is at found_at. One that followed a
-- hint moves it, and lets it end when it would have ended.
DECLARE
    v_ms numeric := 1000 * extract(epoch FROM clock_timestamp() - _note_walk.began);
    v_setting text := 'pljobs.' || _note_walk.name || '_hint';
    v_hint text := nullif(current_setting(v_setting, true), '');
BEGIN
    IF v_ms > 0.3 THEN
        PERFORM set_config(v_setting, concat_ws(
            '|', extract(epoch FROM _note_walk.found_at),
            CASE WHEN v_hint IS NULL THEN '0'
                 WHEN _note_walk.began_from = '-infinity' THEN pljobs._hint_until(v_ms)::text
                 ELSE split_part(v_hint, '|', 2) END), false);
    ELSIF v_hint IS NOT NULL AND _note_walk.began_from = '-infinity' THEN
        PERFORM set_config(v_setting, '', false);
    END IF;
END
$$;
COMMENT ON FUNCTION pljobs._note_walk(text, timestamptz, timestamptz, timestamptz)
    IS 'Keeps a hint if a walk through times was slow.';

CREATE OR REPLACE FUNCTION pljobs.drop_archive(older_than interval) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms'
AS $$
-- archived -> gone, by whole months (of UTC) that were over longer than older_than ago.  Drops their
-- partitions, all at once, and returns how many. Partitions that somebody has named otherwise, or detached,
-- or is about to detach (CONCURRENTLY), stay. Locks the archive exclusively until the transaction's end: so
-- commit at once. Tries for 5 s, each time for 0.1 s, so that nobody waits behind it for long; then raises
-- 55P03, naming who is in the way, and nothing has changed. Raises PJ004 for a null or negative older_than.
-- Notifies nobody.
DECLARE
    v_until timestamptz := clock_timestamp() + interval '5 s';
    v_before timestamp := pljobs._ago(drop_archive.older_than) AT TIME ZONE 'UTC';
    v_names text[];
    v_name text;
    v_relation regclass;
    v_began timestamptz;
BEGIN
    IF drop_archive.older_than IS NULL OR drop_archive.older_than < interval '0' THEN
        RAISE EXCEPTION 'drop_archive needs older_than, not negative' USING ERRCODE = 'PJ004',
            HINT = 'For example: SELECT drop_archive(interval ''1 year'');';
    END IF;
    LOOP
        BEGIN
            v_began := clock_timestamp();
            v_relation := 'pljobs.job_archive'::regclass;
            -- Who makes a partition has this one, too.
            PERFORM pg_advisory_xact_lock(hashtextextended('pljobs.archive', 0));
            v_names := ARRAY(
                SELECT c.relname::text FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
                 WHERE i.inhparent = 'pljobs.job_archive'::regclass
                   AND NOT i.inhdetachpending
                   -- Without backslashes: what these mean is for standard_conforming_strings to say.
                   AND c.relname ~ '^job_archive_[0-9]{4}_[0-9]{2}$'
                   AND to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month' <= v_before
                 ORDER BY 1);
            IF v_names <> '{}' THEN
                -- As who reads does: the parent first.
                LOCK TABLE ONLY pljobs.job_archive IN ACCESS EXCLUSIVE MODE;
                FOREACH v_name IN ARRAY v_names LOOP
                    v_relation := format('pljobs.%I', v_name)::regclass;
                    EXECUTE format('DROP TABLE pljobs.%I', v_name);
                END LOOP;
            END IF;
            EXIT;
        EXCEPTION WHEN lock_not_available THEN
            IF clock_timestamp() > v_until THEN
                RAISE EXCEPTION '% was held by others for too long: %', v_relation,
                    pljobs._holders(v_relation, v_began)
                    USING ERRCODE = '55P03',
                          HINT = 'Nothing was dropped. Run it again when they are done.';
            END IF;
        END;
        PERFORM pg_sleep(0.1 + 0.2 * random());
    END LOOP;
    RETURN cardinality(v_names);
END
$$;
COMMENT ON FUNCTION pljobs.drop_archive(interval)
    IS 'Drops the archive''s months that were over so long ago: SELECT drop_archive(interval ''1 year'');';

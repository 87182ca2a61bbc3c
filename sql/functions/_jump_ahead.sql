CREATE OR REPLACE FUNCTION pljobs._timeline() RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- The timeline that this server writes. Not on a standby, which writes none.
BEGIN
    RETURN ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::bigint;
END
$$;
COMMENT ON FUNCTION pljobs._timeline() IS 'The timeline that this server writes.';

CREATE OR REPLACE FUNCTION pljobs._jump_ahead() RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- After a failover, once:  all sequences jump 2^20 ahead, so that no id that the former primary drew and this
-- server has not received is drawn again: a run of then would be taken for one of now. Waits for who is about
-- to do the same, as only a fetch right after a failover is.
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('pljobs.timeline', 0));
    IF (SELECT t.last_value FROM pljobs.timeline AS t) <> pljobs._timeline() THEN
        PERFORM setval(s.seqrelid::regclass,
                       least(s.seqmax, coalesce(pg_sequence_last_value(s.seqrelid), s.seqstart) + 1048576))
           FROM pg_sequence AS s JOIN pg_class AS c ON c.oid = s.seqrelid
          WHERE c.relnamespace = 'pljobs'::regnamespace AND c.relname <> 'timeline';
        PERFORM setval('pljobs.timeline', pljobs._timeline());
    END IF;
END
$$;
COMMENT ON FUNCTION pljobs._jump_ahead() IS 'Has ids go on where no lost ones can be, after a failover.';

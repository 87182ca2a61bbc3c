CREATE OR REPLACE FUNCTION pljobs._wait_briefly() RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Has a person's call wait for each lock a second, in this transaction, unless the caller has a lock_timeout.
-- Returns what that was, to be set again at the end of the call.
DECLARE
    v_lock_timeout text := current_setting('lock_timeout');
BEGIN
    PERFORM set_config('lock_timeout', CASE v_lock_timeout WHEN '0' THEN '1s' ELSE v_lock_timeout END, true);
    RETURN v_lock_timeout;
END
$$;
COMMENT ON FUNCTION pljobs._wait_briefly() IS 'Limits how long a person''s call waits for a lock.';

CREATE OR REPLACE FUNCTION pljobs._raise_held(job_id bigint) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Returns nothing, but raises 55P03, for a person who has waited long enough for the lock of this job's row
-- (null: of one of many): which open transactions hold it, and how to end them. Where it can't be seen which
-- one does (null; the row was locked by a subtransaction that is over), these are all that have locked or
-- changed jobs for longer than a second, and don't wait themselves. Of others' sessions PostgreSQL shows more
-- to members of pg_read_all_stats.
DECLARE
    v_now timestamptz := clock_timestamp();
    v_xid xid := (SELECT l.transactionid FROM pg_locks AS l
                   WHERE l.granted
                     AND l.transactionid = (SELECT j.xmax FROM pljobs.job AS j
                                             WHERE j.id = _raise_held.job_id));
    v_holders text[];
    v_pid integer;
BEGIN
    SELECT array_agg(
               CASE WHEN h.pid IS NULL THEN 'a prepared transaction (pg_prepared_xacts)'
                    ELSE format('pid %s (%s)', h.pid, concat_ws(
                         ', ', a.usename, nullif(a.application_name, ''), a.state,
                         'its transaction open for ' || date_trunc('second', v_now - a.xact_start))) END
               ORDER BY a.xact_start, h.pid),
           (array_agg(h.pid ORDER BY a.xact_start, h.pid))[1]
      INTO v_holders, v_pid
      FROM (SELECT DISTINCT l.pid FROM pg_locks AS l
             WHERE l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
               AND CASE WHEN v_xid IS NOT NULL THEN l.transactionid = v_xid
                        ELSE l.relation = 'pljobs.job'::regclass
                             AND l.mode IN ('RowShareLock', 'RowExclusiveLock')
                             AND l.database = (SELECT d.oid FROM pg_database AS d
                                                WHERE d.datname = current_database())
                             AND NOT EXISTS (SELECT FROM pg_locks AS w
                                              WHERE w.pid = l.pid AND NOT w.granted) END) AS h
      LEFT JOIN pg_stat_activity AS a ON a.pid = h.pid
     WHERE v_xid IS NOT NULL OR (a.xact_start > v_now - interval '1 s') IS NOT TRUE;
    RAISE EXCEPTION '% is held locked by %; nothing was changed',
        coalesce('job ' || _raise_held.job_id, 'one of the jobs'),
        CASE WHEN v_holders IS NULL THEN 'another transaction'
             WHEN cardinality(v_holders) > 1 THEN 'one of these: ' ELSE '' END
        || coalesce(array_to_string(v_holders, '; '), '')
        USING ERRCODE = '55P03',
        HINT = CASE WHEN v_pid IS NULL THEN 'Ask again.'
                    WHEN cardinality(v_holders) > 1
                    THEN format('The others are at work on other jobs: end none before you know which it is. '
                                'SET lock_timeout = ''1min'', ask again, and elsewhere, meanwhile: '
                                'SELECT pg_blocking_pids(%s);', pg_backend_pid())
                    ELSE format('Let that end, or end it: SELECT pg_terminate_backend(%s); then ask again.',
                                v_pid) END;
END
$$;
COMMENT ON FUNCTION pljobs._raise_held(bigint) IS 'Says who holds a job that a person waits for.';

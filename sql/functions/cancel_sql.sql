-- A job's own SQL runs in a bracket: between enter_sql_v1 and leave_sql_v1, on one connection, which holds
-- the run's first key (a session's shared advisory lock) meanwhile. Who cancels takes the run's second key,
-- looks who holds the first, signals, and lets go; who leaves takes the second key as well. So a signal finds
-- either a statement of the bracket or the wait to leave it, never what the connection runs next. No table: a
-- lost connection leaves no trace, and entering writes nothing.
--
-- SECURITY INVOKER, all three: locks are the caller's session's; and a cancel may use whatever rights there
-- are - called by cancel_job_v1 or heartbeat_v1 those of the schema's owner, called by a worker its own.

CREATE OR REPLACE FUNCTION pljobs.enter_sql_v1(run_id bigint, client_pid integer) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- From now on, what this connection runs can be cancelled as this run's SQL: 'entered'. client_pid: the
-- server process as the client knows it; if that is not this one, a pooler is between, the next statement may
-- run elsewhere, and nothing is entered: 'pooled'.  The key is somebody else's: 'busy', not entered.  Call it
-- outside of a transaction, or commit; then run the job's SQL, end its transaction, and call leave_sql_v1.
-- Locks a key of the run for the session, without waiting. Notifies nobody.
DECLARE
    v_key bigint := (1::bigint << 62) | ((enter_sql_v1.run_id & ((1::bigint << 60) - 1)) << 1);
BEGIN
    IF enter_sql_v1.client_pid IS DISTINCT FROM pg_backend_pid() THEN
        RETURN 'pooled';
    END IF;
    RETURN CASE WHEN pg_try_advisory_lock_shared(v_key) THEN 'entered' ELSE 'busy' END;
END
$$;
COMMENT ON FUNCTION pljobs.enter_sql_v1(bigint, integer)
    IS 'Makes this connection''s statements cancellable as a run''s own. Driver contract, version 1.';

CREATE OR REPLACE FUNCTION pljobs.leave_sql_v1(run_id bigint) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Undoes enter_sql_v1: nothing that this connection runs from now on is cancelled as this run's. In a
-- transaction of its own. It may itself be cancelled (57014): call it again until it isn't; if it can't be
-- called, close the connection. Waits for whoever is cancelling the run's SQL just now. Notifies nobody.
DECLARE
    v_key bigint := (1::bigint << 62) | ((leave_sql_v1.run_id & ((1::bigint << 60) - 1)) << 1);
BEGIN
    PERFORM pg_advisory_xact_lock(v_key + 1);
    PERFORM pg_advisory_unlock_shared(v_key);
    -- Lets go of the second key here and now, as in cancel_sql_v1: in an open transaction it would keep
    -- cancellers waiting. The session's key, the first, is not taken again.
    RAISE EXCEPTION 'lets go of the key' USING ERRCODE = 'PJ000';
EXCEPTION WHEN SQLSTATE 'PJ000' THEN
    RETURN;
END
$$;
COMMENT ON FUNCTION pljobs.leave_sql_v1(bigint)
    IS 'Ends what enter_sql_v1 began. Driver contract, version 1.';

CREATE OR REPLACE FUNCTION pljobs.cancel_sql_v1(run_id bigint) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '1s'
AS $$
-- Cancels the statement that the run's own connections are running, at once and whether or not this
-- transaction commits: 'server'.  None of them is in its bracket, or runs a statement there just now: 'none',
-- try again. One that is between two statements of a transaction or a pipeline is told from one that runs
-- only if the caller may see that (it is the same role's, or pg_read_all_stats): else it counts as running.
-- The caller may not cancel theirs (another role's, and it has no pg_signal_backend): 'denied'.  Somebody has
-- been entering, leaving or cancelling for a second: 'busy', try again.  Never another's statement, nor the
-- caller's. Locks a key of the run until it returns. Notifies nobody.
DECLARE
    v_key bigint := (1::bigint << 62) | ((cancel_sql_v1.run_id & ((1::bigint << 60) - 1)) << 1);
    v_pid integer;
    v_outcome text := 'none';
BEGIN
    BEGIN
        PERFORM pg_advisory_xact_lock(v_key + 1);
        -- What this transaction saw of others' sessions before, it would be shown again.
        PERFORM pg_stat_clear_snapshot();
        FOR v_pid IN
            WITH lock AS MATERIALIZED (
                 SELECT l.pid, l.granted, l.mode,
                        CASE l.locktype WHEN 'advisory'
                             THEN l.classid::bigint << 32 | l.objid::bigint END AS key
                   FROM pg_locks AS l
                  WHERE l.pid <> pg_backend_pid()
                    AND CASE l.locktype
                        WHEN 'advisory' THEN l.objsubid = 1 AND l.database = (
                             SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
                        ELSE l.locktype = 'virtualxid' END)
            SELECT l.pid FROM lock AS l LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
             WHERE l.key = v_key AND l.granted AND l.mode = 'ShareLock'
               -- A signal to a session that runs nothing is lost, or hits its leaving, and would be taken for
               -- one that has hit.
               AND NOT EXISTS (SELECT FROM lock AS k WHERE k.pid = l.pid AND k.key = v_key + 1)
               AND CASE WHEN a.state <> 'disabled'
                        THEN a.state NOT LIKE 'idle%'
                             AND (a.wait_event IS DISTINCT FROM 'ClientRead'
                                  OR EXISTS (SELECT FROM pg_stat_progress_copy AS c WHERE c.pid = l.pid))
                        ELSE EXISTS (SELECT FROM lock AS t WHERE t.pid = l.pid AND t.key IS NULL) END
        LOOP
            BEGIN
                IF pg_cancel_backend(v_pid) THEN
                    v_outcome := 'server';
                END IF;
            EXCEPTION WHEN insufficient_privilege THEN
                v_outcome := CASE v_outcome WHEN 'server' THEN 'server' ELSE 'denied' END;
            END;
        END LOOP;
        -- The one way to let go of the key here and now, whatever happens: undo the block that took it.
        RAISE EXCEPTION 'lets go of the key' USING ERRCODE = 'PJ000';
    EXCEPTION
        WHEN SQLSTATE 'PJ000' THEN
            RETURN v_outcome;
        WHEN lock_not_available THEN
            RETURN 'busy';
    END;
END
$$;
COMMENT ON FUNCTION pljobs.cancel_sql_v1(bigint)
    IS 'Cancels the statement that a run''s own connection is running. Driver contract, version 1.';

CREATE OR REPLACE FUNCTION pljobs._cancel_sql_of_request(request_id bigint) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- Cancels the SQL of the run that the request is about, and records the way: 'server', 'busy', 'none' (kept
-- only until there was another), or 'asked' where these rights don't reach: the worker, told in its
-- heartbeat, does it with its own; 'denied' stays where its rights don't reach either, until it is asked
-- again, at each call, from level 3 on. Returns it. Locks the request.
DECLARE
    v_way text;
BEGIN
    SELECT CASE WHEN s.way = 'denied' AND (r.sql_way IS DISTINCT FROM 'denied' OR r.level >= 3) THEN 'asked'
                ELSE s.way END INTO v_way
      FROM pljobs.request AS r CROSS JOIN LATERAL pljobs.cancel_sql_v1(r.run_id) AS s(way)
     WHERE r.id = _cancel_sql_of_request.request_id;
    UPDATE pljobs.request AS r SET sql_way = v_way
     WHERE r.id = _cancel_sql_of_request.request_id
       AND CASE WHEN v_way = 'none' THEN r.sql_way IS NULL ELSE r.sql_way IS DISTINCT FROM v_way END;
    RETURN v_way;
END
$$;
COMMENT ON FUNCTION pljobs._cancel_sql_of_request(bigint)
    IS 'Cancels the SQL of a run that was asked to abort, and records the way.';

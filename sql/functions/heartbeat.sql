CREATE OR REPLACE FUNCTION pljobs.heartbeat_v1(
    worker_id bigint, run_ids bigint[] DEFAULT '{}', observed jsonb DEFAULT '[]',
    loop_lag interval DEFAULT NULL
) RETURNS TABLE (
    run_id bigint, job_id bigint, verdict text, level smallint, look_in interval, sql_way text,
    request_id bigint, source text, requested_by text, actor text, reason text, requested_at timestamptz,
    term_at timestamptz
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- One call for all that ties a worker to its runs. Renews its lease. Answers each run that it lists: 'ok';
-- 'abort', with who asked and why, for as long as the run lasts; 'kill', the same at level 4; 'lost', if that
-- run is no longer this job's (rescued, forced, deleted, or just finished): stop it, its end will be answered
-- 'stale'. An open request is answered even for a run that the worker does not list yet. Gives back to todo,
-- without charging the attempt, what it holds and does not list (a fetch whose reply was lost), never a run
-- younger than a lease.
-- `level`, of an abort: 1 ask the task to stop; 2 its SQL is cancelled (done here; where sql_way is 'asked',
-- call cancel_sql_v1 yourself, each time, and report how that went); 3 terminate it by what it can resist;
-- 4 by what it can't, or give it up (finish it as 'abandoned'). look_in: call again within that time, for the
-- run's timeout or its next level begins then. A run over its timeout is asked to abort, source 'deadline';
-- where somebody holds its row, that can't be recorded: five seconds later it is told all the same, at level
-- 1, request_id null.
-- `observed`: an array of objects {"job_id", "run_id", "handling", "sql", "progress", "progress_message"},
-- for any of the runs: whether the task is 'handling' its abort or has 'swallowed' it; the way in which the
-- worker cancelled its SQL, or why it could not ('worker', 'none', 'busy', 'denied'; 'pooled': it is in SQL
-- behind a pooler); how far it says that it is. What in it makes no sense is ignored. loop_lag: how late the
-- worker's event loop runs, for people to see. Raises PJ003 if the worker is not registered: register again
-- under the same id, then call again; or if it is another's, and the caller's role limited to queues. Locks
-- the worker; jobs and requests only where nobody else holds them. Notifies workers of what it gives back.
DECLARE
    v_now timestamptz := clock_timestamp();
    v_started_before timestamptz;
    v_own bigint[] := pljobs._own_workers();
    v_job_ids bigint[];
    v_request_ids bigint[];
    v_locks text[];
    v_id bigint;
BEGIN
    UPDATE pljobs.worker AS w
       SET heartbeat_at = v_now, expires_at = v_now + w.lease, loop_lag = heartbeat_v1.loop_lag
     WHERE w.id = heartbeat_v1.worker_id AND w.stopped_at IS NULL AND (v_own IS NULL OR w.id = ANY (v_own))
    RETURNING v_now - w.lease INTO v_started_before;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'worker % is not registered', heartbeat_v1.worker_id USING ERRCODE = 'PJ003',
            HINT = 'Its lease ran out, or it was unregistered. '
                   'Call register_worker_v2 with its id, then heartbeat_v1 again.';
    END IF;

    -- The clock was set back: else what was never received would be younger than a lease for as long.
    UPDATE pljobs.job AS j SET started_at = clock_timestamp()
     WHERE j.id = ANY (ARRAY(
           SELECT o.id FROM pljobs.job AS o
            WHERE o.worker_id = heartbeat_v1.worker_id AND o.status = 'doing'
              AND o.started_at > clock_timestamp() AND (o.run_id = ANY (heartbeat_v1.run_ids)) IS NOT TRUE
              FOR UPDATE SKIP LOCKED));
    SELECT array_agg(h.id ORDER BY h.queueing_lock, h.id), array_agg(h.lock) FILTER (WHERE h.lock IS NOT NULL)
      INTO v_job_ids, v_locks
      FROM (SELECT j.id, j.lock, j.queueing_lock FROM pljobs.job AS j
             WHERE j.worker_id = heartbeat_v1.worker_id AND j.status = 'doing'
               AND j.started_at < v_started_before
               AND (j.run_id = ANY (heartbeat_v1.run_ids)) IS NOT TRUE
             ORDER BY j.id FOR UPDATE SKIP LOCKED) AS h;
    FOREACH v_id IN ARRAY coalesce(v_job_ids, '{}') LOOP
        PERFORM pljobs._release_job(v_id, crashed => false, max_crashes => NULL);
    END LOOP;

    IF heartbeat_v1.observed @? '$[*] ? (@.progress != null || @.progress_message != null)' THEN
        PERFORM pljobs._store_progress(CASE WHEN v_own IS NULL THEN heartbeat_v1.observed ELSE (
            SELECT jsonb_agg(to_jsonb(x))
              FROM pljobs._reports(heartbeat_v1.observed) AS x
             WHERE EXISTS (SELECT FROM pljobs.job AS j WHERE j.id = x.job_id
                              AND j.worker_id = heartbeat_v1.worker_id OFFSET 0)) END);
    END IF;
    PERFORM pljobs._ask_late_runs_to_abort(heartbeat_v1.worker_id, 1000);

    v_request_ids := ARRAY(SELECT j.request_id FROM pljobs.job AS j
                            WHERE j.worker_id = heartbeat_v1.worker_id AND j.status = 'doing'
                              AND j.request_id IS NOT NULL);
    IF v_request_ids <> '{}' THEN
        PERFORM pljobs._deliver_requests(v_request_ids, heartbeat_v1.observed);
    END IF;

    -- A request that is not recorded as delivered (somebody holds it, or made it only now) is not told: else
    -- it could be rescinded after the worker has heard of it. The commit that lets go of it notifies.
    v_now := clock_timestamp();
    RETURN QUERY
    SELECT coalesce(h.run_id, j.run_id), j.id,
           CASE WHEN j.id IS NULL THEN 'lost' WHEN r.level = 4 THEN 'kill'
                WHEN r.id IS NOT NULL OR l.is_held THEN 'abort' ELSE 'ok' END,
           coalesce(r.level, CASE WHEN l.is_held THEN 1 ELSE 0 END::smallint),
           CASE WHEN l.is_held THEN interval '1 s'
                WHEN l.look_at IS NOT NULL THEN greatest(l.look_at - v_now, interval '0') END,
           r.sql_way, r.id, CASE WHEN l.is_held THEN 'deadline' ELSE r.source END, r.requested_by,
           r.actor, r.reason, r.requested_at, r.term_at
      FROM unnest(heartbeat_v1.run_ids) AS h(run_id)
      FULL JOIN (SELECT d.id, d.run_id, d.request_id, d.timeout_at FROM pljobs.job AS d
                  WHERE d.worker_id = heartbeat_v1.worker_id AND d.status = 'doing') AS j
        ON j.run_id = h.run_id
      LEFT JOIN LATERAL (
           SELECT o.id, o.level, o.sql_way, o.source, o.requested_by, o.actor, o.reason, o.requested_at,
                  o.term_at,
                  -- From level 2 on its SQL is cancelled again and again, less and less often; at level 2
                  -- until a statement was.
                  CASE WHEN o.level = 1 THEN least(o.sql_at, o.term_at)
                       WHEN o.level = 2 AND o.sql_way IN ('server', 'worker', 'denied') THEN o.term_at
                       ELSE least(CASE o.level WHEN 2 THEN o.term_at WHEN 3 THEN o.kill_at END,
                                  v_now + least(interval '1 s', greatest(interval '250 ms',
                                                (v_now - o.escalated_at) / 10))) END AS look_at
             FROM pljobs.request AS o
            WHERE o.id = j.request_id AND o.delivered_at IS NOT NULL OFFSET 0) AS r ON true
     CROSS JOIN LATERAL (
           -- A request that is not told now is asked for a second later: who lets go of it may not notify.
           SELECT least(j.timeout_at, r.look_at, CASE WHEN j.request_id IS NOT NULL AND r.id IS NULL
                                                      THEN v_now + interval '1 s' END) AS look_at,
                  -- Late, and not asked above: its own transaction perhaps, which hangs before its commit.
                  j.request_id IS NULL AND j.timeout_at <= v_now - interval '5 s' AS is_held) AS l
     WHERE h.run_id IS NOT NULL OR r.id IS NOT NULL;

    PERFORM pljobs._wake_lanes(v_locks, take_lane => true);
END
$$;
COMMENT ON FUNCTION pljobs.heartbeat_v1(bigint, bigint[], jsonb, interval)
    IS 'Renews a worker''s lease and answers for each of its runs: ok, abort, kill or lost. '
       'Driver contract, version 1.';

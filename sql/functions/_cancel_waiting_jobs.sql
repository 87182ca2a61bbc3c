CREATE OR REPLACE FUNCTION pljobs._defer_follow_ups(job_ids bigint[], status text, reason text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- - -> todo, for each of these jobs that names a task to run after it was cancelled or aborted: that task, in
-- the same queue with the same priority, of no tree, with the arguments {"job_id", "task", "args", "status",
-- "reason"} of the job that ended. In the transaction that ends it: neither is there without the other. Call
-- it while the jobs' rows still exist. Notifies the queues' workers.
DECLARE
    v_queues text[];
BEGIN
    WITH added AS (
        INSERT INTO pljobs.job (task, args, queue, priority, created_at, deferred_by)
        SELECT j.on_cancelled,
               jsonb_build_object('job_id', j.id, 'task', j.task, 'args', j.args,
                                  'status', _defer_follow_ups.status,
                                  'reason', left(_defer_follow_ups.reason, 1000)),
               j.queue, j.priority, clock_timestamp(), j.deferred_by
          FROM pljobs.job AS j
         WHERE j.id = ANY (_defer_follow_ups.job_ids) AND j.on_cancelled IS NOT NULL ORDER BY j.id
        RETURNING queue
    )
    SELECT array_agg(DISTINCT a.queue) INTO v_queues FROM added AS a;
    PERFORM pljobs._notify_todo(v_queues);
END
$$;
COMMENT ON FUNCTION pljobs._defer_follow_ups(bigint[], text, text)
    IS 'Defers what jobs name to run after they were cancelled or aborted.';

CREATE OR REPLACE FUNCTION pljobs._cancel_waiting_jobs(
    job_ids bigint[], resolution text, reason text, actor text, source text
) RETURNS TABLE (job_id bigint, queue text, task text, request_id bigint)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- todo -> cancelled, or gone for the resolution 'deleted'; each with a request, so resolved, and its
-- follow-up.  Returns them. All at once: a statement each would take ten times as long. The caller has locked
-- the rows, which are todo, and wakes their lanes.
DECLARE
    v_now timestamptz := clock_timestamp();
    v_reason text := left(_cancel_waiting_jobs.reason, 1000);
BEGIN
    RETURN QUERY
    WITH asked AS (
        INSERT INTO pljobs.request (
            kind, job_id, requested_at, resolved_at, resolution, delete_job, queue, task, requested_by,
            actor, reason, source)
        SELECT 'cancel', j.id, v_now, v_now, _cancel_waiting_jobs.resolution,
               _cancel_waiting_jobs.resolution = 'deleted', j.queue, j.task, pljobs._caller(),
               left(_cancel_waiting_jobs.actor, 1000), v_reason, _cancel_waiting_jobs.source
          FROM pljobs.job AS j WHERE j.id = ANY (_cancel_waiting_jobs.job_ids) ORDER BY j.id
        RETURNING request.job_id, request.queue, request.task, request.id
    )
    SELECT a.job_id, a.queue, a.task, a.id FROM asked AS a;
    PERFORM pljobs._defer_follow_ups(_cancel_waiting_jobs.job_ids, 'cancelled', v_reason);
    IF _cancel_waiting_jobs.resolution = 'deleted' THEN
        PERFORM pljobs._delete_jobs(_cancel_waiting_jobs.job_ids);
    ELSE
        UPDATE pljobs.job AS j
           SET status = 'cancelled', finished_at = v_now, waiting_for = NULL,
               message = v_reason, error = NULL, result = NULL
         WHERE j.id = ANY (_cancel_waiting_jobs.job_ids);
    END IF;
END
$$;
COMMENT ON FUNCTION pljobs._cancel_waiting_jobs(bigint[], text, text, text, text)
    IS 'Cancels waiting jobs, with the audit trail and follow-ups.';

CREATE OR REPLACE FUNCTION pljobs._expire_jobs(max_jobs integer) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
SET enable_sort = off
SET enable_bitmapscan = off
AS $$
-- todo, and its start_by is past -> cancelled, request 'expired'.  Returns the jobs. Skips rows that somebody
-- holds; takes no lane (what that leaves asleep, wake_lanes_v1 wakes). Notifies workers of the lanes' next.
DECLARE
    v_now timestamptz := clock_timestamp();
    v_ids bigint[];
    v_locks text[];
BEGIN
    SELECT array_agg(h.id), array_agg(DISTINCT h.lock) FILTER (WHERE h.lock IS NOT NULL) INTO v_ids, v_locks
      FROM (SELECT j.id, j.lock FROM pljobs.job AS j WHERE j.status = 'todo' AND j.start_by <= v_now
             ORDER BY j.start_by LIMIT _expire_jobs.max_jobs FOR UPDATE SKIP LOCKED) AS h;
    IF v_ids IS NOT NULL THEN
        PERFORM FROM pljobs._cancel_waiting_jobs(v_ids, 'expired', 'not started in time', NULL, 'deadline');
        PERFORM pljobs._wake_lanes(v_locks, take_lane => false);
    END IF;
    RETURN coalesce(v_ids, '{}');
END
$$;
COMMENT ON FUNCTION pljobs._expire_jobs(integer) IS 'Cancels waiting jobs whose time to start has passed.';

CREATE OR REPLACE FUNCTION pljobs.cancel_job_v1(
    job_id bigint, abort boolean DEFAULT false, delete_job boolean DEFAULT false, force boolean DEFAULT false,
    reason text DEFAULT NULL, actor text DEFAULT NULL,
    grace interval DEFAULT NULL, term_grace interval DEFAULT NULL, sql boolean DEFAULT false,
    OUT outcome text, OUT status_before text, OUT status_after text,
    OUT request_id bigint, OUT worker_id bigint, OUT run_id bigint, OUT sql_way text
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- todo -> cancelled, 'cancelled'; with delete_job -> gone, 'deleted'.
-- doing -> unchanged, 'running'.
-- doing, abort -> doing with an open request, its worker notified: 'abort_requested'; once there is one, it
--     is only made stronger (delete_job, an earlier deadline): 'abort_already_requested'. The job is never
--     retried after that.
-- doing, force -> aborted now, whatever its worker does: 'aborted'; with delete_job -> gone, 'deleted'. The
--     run is void and its worker is told to stop it; until it has, its code may still run.
-- cancelled, aborted, delete_job -> gone, 'deleted'.
-- cancelled, aborted -> unchanged, 'already_cancelled'.  succeeded, failed -> unchanged, 'already_finished'.
-- unknown id -> 'not_found', as is a job of others for a caller that has neither pljobs_canceller nor
--     pljobs_operator: its own are those that a role which it is a member of has deferred.
-- grace gives the abort a deadline: after half of it the job's own SQL is cancelled, after it the task is
-- terminated, after term_grace more (null: 5 s) killed. 0: at once; null: never. sql: cancels the job's SQL
-- now, before this transaction commits, and whether or not it does; sql_way says how that went (see
-- cancel_sql_v1; 'asked': its worker will). An SQL cancel, due once, is repeated until it has hit.
-- Null flags mean false; force implies abort. status_after is null for a deleted job. Rolled back, it never
-- happened. Raises PJ004 for a negative grace or term_grace, and a term_grace without a grace.
-- Locks the job (waiting for a fetch or finish under way), then its request. Every answer that changed
-- something leaves a row in pljobs.requests, and defers the job's on_cancelled when it ends it.
DECLARE
    v_abort boolean := coalesce(cancel_job_v1.abort, false) OR coalesce(cancel_job_v1.force, false);
    v_delete boolean := coalesce(cancel_job_v1.delete_job, false);
    v_force boolean := coalesce(cancel_job_v1.force, false);
    v_ladder record := pljobs._ladder(cancel_job_v1.grace, cancel_job_v1.term_grace, cancel_job_v1.sql);
    v_own text[] := pljobs._own_roles('pljobs_canceller', 'pljobs_operator');
    v_job record;
BEGIN
    SELECT j.status, j.queue, j.task, j.lock, j.run_id, j.worker_id, j.request_id INTO v_job
      FROM pljobs.job AS j
     WHERE j.id = cancel_job_v1.job_id AND (v_own IS NULL OR j.deferred_by = ANY (v_own)) FOR UPDATE;
    IF NOT FOUND THEN
        outcome := 'not_found';
        RETURN;
    END IF;
    status_before := v_job.status;
    status_after := v_job.status;

    IF v_job.status = 'doing' THEN
        run_id := v_job.run_id;
        worker_id := v_job.worker_id;
        request_id := v_job.request_id;
        IF NOT v_abort THEN
            outcome := 'running';
            RETURN;
        END IF;
        SELECT s.outcome, s.request_id, s.sql_way INTO outcome, request_id, sql_way
          FROM pljobs._stop_run(
               cancel_job_v1.job_id, 'user', cancel_job_v1.reason, cancel_job_v1.actor, v_delete, v_force,
               v_ladder.sql_at, v_ladder.term_at, v_ladder.kill_at, cancel_job_v1.sql) AS s;
        IF v_force THEN
            status_after := nullif(outcome, 'deleted');
            PERFORM pljobs._wake_lanes(ARRAY[v_job.lock], take_lane => false);
        END IF;
    ELSIF v_job.status = 'todo' THEN
        outcome := CASE WHEN v_delete THEN 'deleted' ELSE 'cancelled' END;
        status_after := CASE WHEN NOT v_delete THEN 'cancelled' END;
        SELECT c.request_id INTO request_id
          FROM pljobs._cancel_waiting_jobs(
               ARRAY[cancel_job_v1.job_id], outcome, cancel_job_v1.reason, cancel_job_v1.actor, 'user') AS c;
        PERFORM pljobs._wake_lanes(ARRAY[v_job.lock], take_lane => false);
    ELSIF v_delete AND v_job.status IN ('cancelled', 'aborted') THEN
        outcome := 'deleted';
        status_after := NULL;
        request_id := pljobs._record_request(
            'delete', cancel_job_v1.job_id, v_job.queue, v_job.task,
            cancel_job_v1.reason, cancel_job_v1.actor, 'deleted', true);
        PERFORM pljobs._delete_jobs(ARRAY[cancel_job_v1.job_id]);
    ELSE
        outcome := CASE WHEN v_job.status IN ('cancelled', 'aborted') THEN 'already_cancelled'
                        ELSE 'already_finished' END;
    END IF;
END
$$;
COMMENT ON FUNCTION pljobs.cancel_job_v1(
    bigint, boolean, boolean, boolean, text, text, interval, interval, boolean
) IS 'Cancels a waiting job, or asks a running one to abort; answers a row that says what happened. '
     'Driver contract, version 1.';

CREATE OR REPLACE FUNCTION pljobs.cancel_job(
    job_id bigint, abort boolean DEFAULT false, delete_job boolean DEFAULT false, force boolean DEFAULT false,
    reason text DEFAULT NULL, actor text DEFAULT NULL,
    grace interval DEFAULT NULL, term_grace interval DEFAULT NULL, sql boolean DEFAULT false
) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- What cancel_job_v1 does, for people: returns its outcome, one word; for a running job that was left alone a
-- NOTICE that says how to stop it, and with sql one that says what became of its statement. Waits a second
-- for whoever holds the job, or for the caller's lock_timeout, where there is one: then raises 55P03, with
-- who that is and how to end it.
DECLARE
    v_lock_timeout text := pljobs._wait_briefly();
    v_answer record;
BEGIN
    SELECT c.outcome, c.sql_way INTO v_answer FROM pljobs.cancel_job_v1(
        cancel_job.job_id, cancel_job.abort, cancel_job.delete_job, cancel_job.force, cancel_job.reason,
        cancel_job.actor, cancel_job.grace, cancel_job.term_grace, cancel_job.sql) AS c;
    IF v_answer.outcome = 'running' THEN
        RAISE NOTICE 'job % is running, and was left alone; to stop it: SELECT cancel_job(%, abort => true);',
            cancel_job.job_id, cancel_job.job_id;
    ELSIF v_answer.sql_way IS NOT NULL THEN
        RAISE NOTICE 'job %: %', cancel_job.job_id, CASE v_answer.sql_way
            WHEN 'server' THEN 'the statement that it was running was cancelled'
            WHEN 'asked' THEN 'its statement will be cancelled by its worker, for the owner of pljobs may '
                               'not: GRANT pg_signal_backend to it'
            WHEN 'busy' THEN 'its SQL could not be cancelled at once; it is tried again'
            ELSE 'it is in no statement that can be cancelled, on no connection of context.connection(), '
                 'or behind a pooler; it is tried again'
        END;
    END IF;
    PERFORM set_config('lock_timeout', v_lock_timeout, true);
    RETURN v_answer.outcome;
EXCEPTION
    WHEN lock_not_available THEN
        RETURN pljobs._raise_held(cancel_job.job_id);
END
$$;
COMMENT ON FUNCTION pljobs.cancel_job(
    bigint, boolean, boolean, boolean, text, text, interval, interval, boolean
) IS 'Cancels a waiting job; with abort => true also asks a running one to stop, with grace => ''10 s'' '
     'by force after that: SELECT cancel_job(33, abort => true);';

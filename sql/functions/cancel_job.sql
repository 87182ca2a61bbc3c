CREATE OR REPLACE FUNCTION pljobs.cancel_job_v1(
    job_id bigint, abort boolean DEFAULT false, delete_job boolean DEFAULT false, force boolean DEFAULT false,
    reason text DEFAULT NULL, actor text DEFAULT NULL,
    OUT outcome text, OUT status_before text, OUT status_after text,
    OUT request_id bigint, OUT worker_id bigint, OUT run_id bigint
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
--     is only made stronger (delete_job added): 'abort_already_requested'. The job is never retried after
--     that.
-- doing, force -> aborted now, whatever its worker does: 'aborted'; with delete_job -> gone, 'deleted'. The
--     run is void and its worker is told to stop it; until it has, its code may still run.
-- cancelled, aborted, delete_job -> gone, 'deleted'.
-- cancelled, aborted -> unchanged, 'already_cancelled'.  succeeded, failed -> unchanged, 'already_finished'.
-- unknown id -> 'not_found'.
-- Null flags mean false; force implies abort. status_after is null for a deleted job. Rolled back, it never
-- happened.
-- Locks the job (waiting for a fetch or finish under way), then its request. Every answer that changed
-- something leaves a row in pljobs.requests.
DECLARE
    v_abort boolean := coalesce(cancel_job_v1.abort, false) OR coalesce(cancel_job_v1.force, false);
    v_delete boolean := coalesce(cancel_job_v1.delete_job, false);
    v_force boolean := coalesce(cancel_job_v1.force, false);
    v_job record;
BEGIN
    SELECT j.status, j.queue, j.task, j.lock, j.run_id, j.worker_id, j.request_id INTO v_job
      FROM pljobs.job AS j WHERE j.id = cancel_job_v1.job_id FOR UPDATE;
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
        IF request_id IS NULL THEN
            request_id := pljobs._record_request(
                'abort', cancel_job_v1.job_id, v_job.queue, v_job.task, cancel_job_v1.reason,
                cancel_job_v1.actor, NULL, v_delete, v_force, v_job.run_id, v_job.worker_id);
            UPDATE pljobs.job AS j SET request_id = cancel_job_v1.request_id
             WHERE j.id = cancel_job_v1.job_id;
            outcome := 'abort_requested';
        ELSE
            UPDATE pljobs.request AS r SET delete_job = r.delete_job OR v_delete, force = r.force OR v_force
             WHERE r.id = cancel_job_v1.request_id AND (v_delete > r.delete_job OR v_force > r.force);
            outcome := 'abort_already_requested';
        END IF;
        PERFORM pljobs._notify_worker(v_job.worker_id);
        IF v_force THEN
            outcome := pljobs._abort_job(cancel_job_v1.job_id, cancel_job_v1.request_id, 'forced',
                                         coalesce(left(cancel_job_v1.reason, 1000), 'aborted by force'));
            status_after := nullif(outcome, 'deleted');
            PERFORM pljobs._wake_lanes(ARRAY[v_job.lock], take_lane => false);
        END IF;
    ELSIF v_job.status = 'todo' OR (v_delete AND v_job.status IN ('cancelled', 'aborted')) THEN
        outcome := CASE WHEN v_delete THEN 'deleted' ELSE 'cancelled' END;
        status_after := CASE WHEN NOT v_delete THEN 'cancelled' END;
        request_id := pljobs._record_request(
            CASE v_job.status WHEN 'todo' THEN 'cancel' ELSE 'delete' END,
            cancel_job_v1.job_id, v_job.queue, v_job.task,
            cancel_job_v1.reason, cancel_job_v1.actor, outcome, v_delete);
        IF v_delete THEN
            PERFORM pljobs._delete_jobs(ARRAY[cancel_job_v1.job_id]);
        ELSE
            PERFORM pljobs._end_job(cancel_job_v1.job_id, 'cancelled', left(cancel_job_v1.reason, 1000));
        END IF;
        PERFORM pljobs._wake_lanes(ARRAY[v_job.lock], take_lane => false);
    ELSE
        outcome := CASE WHEN v_job.status IN ('cancelled', 'aborted') THEN 'already_cancelled'
                        ELSE 'already_finished' END;
    END IF;
END
$$;
COMMENT ON FUNCTION pljobs.cancel_job_v1(bigint, boolean, boolean, boolean, text, text)
    IS 'Cancels a waiting job, or asks a running one to abort; answers a row that says what happened. '
       'Driver contract, version 1.';

CREATE OR REPLACE FUNCTION pljobs.cancel_job(
    job_id bigint, abort boolean DEFAULT false, delete_job boolean DEFAULT false, force boolean DEFAULT false,
    reason text DEFAULT NULL, actor text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- What cancel_job_v1 does, for people: returns its outcome, one word, and for a running job a NOTICE that
-- says how to stop it.
DECLARE
    v_outcome text;
BEGIN
    SELECT c.outcome INTO v_outcome FROM pljobs.cancel_job_v1(
        cancel_job.job_id, cancel_job.abort, cancel_job.delete_job, cancel_job.force, cancel_job.reason,
        cancel_job.actor) AS c;
    IF v_outcome = 'running' THEN
        RAISE NOTICE 'job % is running, and was left alone; to stop it: SELECT cancel_job(%, abort => true);',
            cancel_job.job_id, cancel_job.job_id;
    END IF;
    RETURN v_outcome;
END
$$;
COMMENT ON FUNCTION pljobs.cancel_job(bigint, boolean, boolean, boolean, text, text)
    IS 'Cancels a waiting job; with abort => true also asks a running one to stop: '
       'SELECT cancel_job(33, abort => true);';

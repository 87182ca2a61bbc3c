CREATE OR REPLACE FUNCTION pljobs.rescind_request_v1(
    job_id bigint, reason text DEFAULT NULL, actor text DEFAULT NULL, OUT outcome text, OUT request_id bigint
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- doing with an open request that its worker has not heard of -> doing without, 'rescinded': the request is
-- resolved so, with who took it back and why in a request of its own.  Delivered already, or its SQL was
-- cancelled -> unchanged, 'already_delivered' (the task may be stopping).  Nothing open -> unchanged,
-- 'no_request'.  Unknown id, or another's job for who is neither canceller nor operator -> 'not_found'. A run
-- whose timeout had joined a person's request is asked anew, for its timeout; where only its timeout asked,
-- it has all the time it wants. One that was asked by cancel_tree may have children again; those that were
-- cancelled stay so. request_id is the request that is, or was, open. Locks the job, then its request,
-- waiting for a heartbeat that is delivering it: heartbeat_v1 answers no request that it could not record as
-- delivered. Notifies nobody.
DECLARE
    v_own text[] := pljobs._own_roles('pljobs_canceller', 'pljobs_operator');
    v_job record;
    v_source text;
BEGIN
    SELECT j.request_id, j.run_id, j.worker_id, j.queue, j.task INTO v_job
      FROM pljobs.job AS j
     WHERE j.id = rescind_request_v1.job_id AND (v_own IS NULL OR j.deferred_by = ANY (v_own)) FOR UPDATE;
    IF NOT FOUND THEN
        outcome := 'not_found';
        RETURN;
    END IF;
    request_id := v_job.request_id;
    IF request_id IS NULL THEN
        outcome := 'no_request';
        RETURN;
    END IF;
    UPDATE pljobs.request AS r SET resolved_at = clock_timestamp(), resolution = 'rescinded'
     WHERE r.id = rescind_request_v1.request_id
       AND r.delivered_at IS NULL AND r.sql_way IS DISTINCT FROM 'server'
    RETURNING r.source INTO v_source;
    IF NOT FOUND THEN
        outcome := 'already_delivered';
        RETURN;
    END IF;
    UPDATE pljobs.job AS j
       SET request_id = NULL,
           timeout_at = CASE WHEN v_source <> 'deadline'
                             THEN coalesce(j.timeout_at, j.started_at + j.timeout) END
     WHERE j.id = rescind_request_v1.job_id;
    -- What runs is marked only by a cancel_tree that asked for this, or joined who did.
    DELETE FROM pljobs.closed_tree AS t WHERE t.job_id = rescind_request_v1.job_id;
    PERFORM pljobs._record_request('rescind', rescind_request_v1.job_id, v_job.queue, v_job.task,
                                   rescind_request_v1.reason, rescind_request_v1.actor, 'rescinded',
                                   run_id => v_job.run_id, worker_id => v_job.worker_id);
    outcome := 'rescinded';
END
$$;
COMMENT ON FUNCTION pljobs.rescind_request_v1(bigint, text, text)
    IS 'Takes back a request to abort that its worker has not heard of. Driver contract, version 1.';

CREATE OR REPLACE FUNCTION pljobs.rescind_request(
    job_id bigint, reason text DEFAULT NULL, actor text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- What rescind_request_v1 does, for people: returns its outcome, one word.
BEGIN
    RETURN (SELECT r.outcome FROM pljobs.rescind_request_v1(
        rescind_request.job_id, rescind_request.reason, rescind_request.actor) AS r);
END
$$;
COMMENT ON FUNCTION pljobs.rescind_request(bigint, text, text)
    IS 'Takes back a request to abort, if its worker has not heard of it: SELECT rescind_request(33);';

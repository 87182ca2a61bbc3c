CREATE OR REPLACE FUNCTION pljobs._requeue_job(
    job_id bigint, kind text, message text, error text, charged boolean DEFAULT true,
    crashes integer DEFAULT 0, scheduled_at timestamptz DEFAULT NULL, queue text DEFAULT NULL,
    priority integer DEFAULT NULL, lock text DEFAULT NULL, ended_run_id bigint DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET lock_timeout = '500ms'
AS $$
-- any state but todo -> todo.  Writes how the attempt before ended as a job_event of `kind`, and notifies the
-- queue's workers if the job can run within a minute. `charged` false takes the attempt back. A queueing lock
-- that another waiting job holds meanwhile is given up: else a bulk rescue could never succeed. So is one
-- that a transaction has been inserting for longer than the lock_timeout above, once in the caller's
-- transaction, and from then on for longer than a moment: no person's open transaction may stop a worker's
-- heartbeat, of however many jobs. Only a job that no worker received keeps its start_by. Who requeues many
-- does so in order of queueing_lock. The caller holds the job's row locked, and wakes the lane that it was
-- in.
DECLARE
    v_now timestamptz := clock_timestamp();
    v_waiting_for text;
    v_queue text;
    v_queueing_lock text;
BEGIN
    INSERT INTO pljobs.job_event (job_id, run_id, worker_id, at, started_at, attempt, kind, message, error)
    SELECT j.id, coalesce(j.run_id, j.last_run_id), j.worker_id, coalesce(j.finished_at, v_now), j.started_at,
           j.attempts, _requeue_job.kind, _requeue_job.message, _requeue_job.error
      FROM pljobs.job AS j WHERE j.id = _requeue_job.job_id;
    SELECT j.queueing_lock INTO v_queueing_lock FROM pljobs.job AS j WHERE j.id = _requeue_job.job_id;
    -- Not above: who only makes a table longer waits for others, too.
    IF v_queueing_lock IS NOT NULL AND current_setting('pljobs.has_waited', true) = 'yes' THEN
        SET LOCAL lock_timeout = '20ms';
    END IF;
    LOOP
        BEGIN
            UPDATE pljobs.job AS j
               SET status = 'todo', run_id = NULL, request_id = NULL, worker_id = NULL,
                   started_at = NULL, finished_at = NULL, timeout_at = NULL,
                   start_by = CASE WHEN _requeue_job.kind = 'given_back' THEN j.start_by END,
                   last_run_id = coalesce(_requeue_job.ended_run_id, j.last_run_id),
                   waiting_for = CASE WHEN _requeue_job.scheduled_at > v_now THEN 'schedule'
                                      WHEN j.fairness_key IS NOT NULL THEN 'turn' END,
                   scheduled_at = _requeue_job.scheduled_at,
                   attempts = j.attempts - (NOT _requeue_job.charged)::integer,
                   crashes = _requeue_job.crashes,
                   queue = coalesce(_requeue_job.queue, j.queue),
                   priority = coalesce(_requeue_job.priority, j.priority),
                   lock = coalesce(_requeue_job.lock, j.lock),
                   queueing_lock = v_queueing_lock,
                   message = _requeue_job.message, error = _requeue_job.error, result = NULL
             WHERE j.id = _requeue_job.job_id
            RETURNING j.waiting_for, j.queue INTO v_waiting_for, v_queue;
            EXIT;
        EXCEPTION
            WHEN unique_violation THEN
                v_queueing_lock := NULL;
            WHEN lock_not_available THEN
                v_queueing_lock := NULL;
                PERFORM set_config('pljobs.has_waited', 'yes', true);
        END;
    END LOOP;
    -- Due soon: who sleeps learns when.
    IF v_waiting_for IS DISTINCT FROM 'schedule' OR _requeue_job.scheduled_at < v_now + interval '1 min' THEN
        PERFORM pljobs._notify_todo(ARRAY[v_queue]);
    END IF;
END
$$;
COMMENT ON FUNCTION pljobs._requeue_job(
    bigint, text, text, text, boolean, integer, timestamptz, text, integer, text, bigint)
    IS 'Puts a job back to todo and records how the attempt before ended.';

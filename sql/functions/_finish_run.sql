CREATE OR REPLACE FUNCTION pljobs._finish_run(
    job_id bigint, run_id bigint, outcome text, result jsonb, message text, error text, delete_job boolean,
    retry_at timestamptz, retry_queue text, retry_priority integer, retry_lock text, sql_cancelled boolean
) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- One run's end, decided from what the worker saw and what was asked; see finish_jobs_v1. Returns the status
-- written, or 'deleted', 'stale', 'not_found'. The caller has locked the job's row in an earlier statement,
-- and wakes its lane.
DECLARE
    v_job record;
    v_request record;
    v_outcome text := _finish_run.outcome;
    v_message text := _finish_run.message;
    v_retry boolean := _finish_run.retry_at IS NOT NULL;
BEGIN
    SELECT j.status, j.run_id, j.last_run_id, j.request_id, j.crashes, j.worker_id, j.queue, j.task,
           j.timeout, j.timeout_at INTO v_job
      FROM pljobs.job AS j WHERE j.id = _finish_run.job_id;
    IF NOT FOUND THEN
        RETURN 'not_found';
    ELSIF (v_job.run_id = _finish_run.run_id) IS NOT TRUE THEN
        RETURN coalesce(
            -- That run ended, and the job has been put back since: what that run wrote is in its event.
            (SELECT CASE WHEN e.kind IN ('failed', 'aborted') THEN e.kind ELSE 'todo' END
               FROM pljobs.job_event AS e
              WHERE e.job_id = _finish_run.job_id AND e.run_id = _finish_run.run_id
                AND (e.kind IN ('retried', 'interrupted', 'failed', 'aborted')
                     -- One that was never received is given back by its worker's heartbeat, and no last run.
                     OR e.kind = 'given_back' AND v_job.last_run_id = _finish_run.run_id)
              ORDER BY e.at LIMIT 1),
            CASE WHEN v_job.last_run_id = _finish_run.run_id THEN v_job.status END,
            'stale');
    END IF;

    -- Locked: whoever has just cancelled its statement may not have committed yet that it did.
    SELECT r.source, r.reason,
           r.sql_way IN ('server', 'worker', 'asked') OR r.level >= 2 OR r.sql_at <= clock_timestamp()
           AS cancels_sql INTO v_request
      FROM pljobs.request AS r WHERE r.id = v_job.request_id FOR NO KEY UPDATE;
    IF v_outcome = 'failed' AND _finish_run.sql_cancelled AND v_request.cancels_sql THEN
        v_outcome := 'aborted';
    END IF;
    IF v_outcome = 'aborted' AND v_job.request_id IS NULL AND v_job.timeout_at <= clock_timestamp() THEN
        -- Its worker was told to stop it while somebody held its row, so that it could not be recorded.
        v_request.source := 'deadline';
        v_request.reason := format('ran longer than its timeout of %s', v_job.timeout);
        v_job.request_id := pljobs._record_request(
            'abort', _finish_run.job_id, v_job.queue, v_job.task, v_request.reason, NULL, NULL,
            run_id => v_job.run_id, worker_id => v_job.worker_id, source => v_request.source);
    END IF;
    IF v_outcome = 'abandoned' THEN
        UPDATE pljobs.worker AS w SET tainted_at = coalesce(w.tainted_at, clock_timestamp())
         WHERE w.id = v_job.worker_id;
        v_retry := false;
    END IF;

    IF v_request.source IN ('user', 'tree') AND v_outcome NOT IN ('succeeded', 'failed') THEN
        v_outcome := pljobs._abort_job(
            _finish_run.job_id, v_job.request_id,
            CASE WHEN v_outcome IN ('interrupted', 'unstarted') THEN 'aborted' ELSE v_outcome END,
            coalesce(v_message, v_request.reason), _finish_run.error, _finish_run.run_id);
        IF v_outcome = 'aborted' AND _finish_run.delete_job THEN
            PERFORM pljobs._delete_jobs(ARRAY[_finish_run.job_id]);
            RETURN 'deleted';
        END IF;
        RETURN v_outcome;
    ELSIF v_job.request_id IS NOT NULL THEN
        PERFORM pljobs._resolve_request(v_job.request_id, CASE v_outcome
            WHEN 'succeeded' THEN 'finished_first' WHEN 'failed' THEN 'failed_first'
            WHEN 'abandoned' THEN 'abandoned' ELSE 'timeout' END);
        v_retry := v_retry AND v_request.source = 'deadline';
        IF v_outcome IN ('aborted', 'killed') THEN
            v_outcome := 'failed';
            v_message := concat_ws(': ', 'timeout', coalesce(v_message, v_request.reason));
        END IF;
    ELSIF v_outcome = 'aborted' THEN
        v_outcome := 'failed';
        v_message := concat_ws(': ', 'cancelled from inside, nobody asked', v_message);
    END IF;

    IF v_outcome IN ('interrupted', 'unstarted') THEN
        PERFORM pljobs._requeue_job(_finish_run.job_id,
                                    CASE v_outcome WHEN 'unstarted' THEN 'given_back' ELSE v_outcome END,
                                    v_message, _finish_run.error,
                                    charged => v_job.request_id IS NOT NULL, crashes => v_job.crashes,
                                    ended_run_id => _finish_run.run_id);
        RETURN 'todo';
    ELSIF v_outcome <> 'succeeded' AND v_retry THEN
        PERFORM pljobs._requeue_job(
            _finish_run.job_id, 'retried', v_message, _finish_run.error, crashes => v_job.crashes,
            scheduled_at => greatest(least(_finish_run.retry_at, '9999-12-30 00:00+00'),
                                     '0001-01-02 00:00+00'),
            queue => _finish_run.retry_queue,
            priority => nullif(_finish_run.retry_priority, -2147483648),
            lock => _finish_run.retry_lock, ended_run_id => _finish_run.run_id);
        RETURN 'todo';
    ELSIF _finish_run.delete_job THEN
        PERFORM pljobs._delete_jobs(ARRAY[_finish_run.job_id]);
        RETURN 'deleted';
    END IF;
    v_outcome := CASE v_outcome WHEN 'succeeded' THEN 'succeeded' ELSE 'failed' END;
    PERFORM pljobs._end_job(_finish_run.job_id, v_outcome, v_message, _finish_run.error, _finish_run.result,
                            _finish_run.run_id);
    RETURN v_outcome;
END
$$;
COMMENT ON FUNCTION pljobs._finish_run(
    bigint, bigint, text, jsonb, text, text, boolean, timestamptz, text, integer, text, boolean
) IS 'Ends one run, as finish_jobs_v1 says.';

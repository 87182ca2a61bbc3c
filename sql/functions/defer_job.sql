CREATE OR REPLACE FUNCTION pljobs.defer_job(
    task text, args jsonb DEFAULT '{}', queue text DEFAULT 'default', priority integer DEFAULT 0,
    lock text DEFAULT NULL, queueing_lock text DEFAULT NULL, scheduled_at timestamptz DEFAULT NULL,
    start_by timestamptz DEFAULT NULL, timeout interval DEFAULT NULL, grace interval DEFAULT NULL,
    on_cancelled text DEFAULT NULL, parent_id bigint DEFAULT NULL, idempotency_key text DEFAULT NULL,
    fairness_key text DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- - -> todo.  Returns the new job's id; with an idempotency_key that was used before, that job's id. Raises
-- as defer_jobs_v3 does, which it calls: PJ002 for a job that can't be deferred, PJ001 if a waiting job holds
-- the queueing lock, PJ007 if its parent's tree was cancelled, PJ012 for a key that was used for another job.
-- Locks nothing. Notifies the queue's workers.
BEGIN
    RETURN (SELECT d.job_id FROM pljobs.defer_jobs_v3(jsonb_build_array(jsonb_build_object(
        'task', defer_job.task, 'args', defer_job.args, 'queue', defer_job.queue,
        'priority', defer_job.priority, 'lock', defer_job.lock, 'queueing_lock', defer_job.queueing_lock,
        'scheduled_at', defer_job.scheduled_at, 'start_by', defer_job.start_by,
        'timeout', defer_job.timeout, 'grace', defer_job.grace, 'on_cancelled', defer_job.on_cancelled,
        'parent_id', defer_job.parent_id, 'idempotency_key', defer_job.idempotency_key,
        'fairness_key', defer_job.fairness_key))) AS d);
END
$$;
COMMENT ON FUNCTION pljobs.defer_job(
    text, jsonb, text, integer, text, text, timestamptz, timestamptz, interval, interval, text, bigint, text,
    text
) IS 'Defers one job and returns its id: '
       'SELECT defer_job(''task'', ''{"key": "value"}'', queue => ''default'');';

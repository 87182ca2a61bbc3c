CREATE OR REPLACE FUNCTION pljobs.retry_job_v1(
    job_id bigint, scheduled_at timestamptz DEFAULT NULL, queue text DEFAULT NULL,
    priority integer DEFAULT NULL, lock text DEFAULT NULL, reason text DEFAULT NULL, actor text DEFAULT NULL,
    OUT outcome text, OUT status text
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- failed, cancelled, aborted -> todo, 'requeued', clean of its former request, its crashes and its start_by
-- forgotten, its attempts counted on, even if the tree that it belongs to was cancelled; to run at once or at
-- scheduled_at, in another queue, priority or lock if given. todo -> unchanged, 'todo'.  doing -> unchanged,
-- 'running'.  succeeded -> unchanged, 'succeeded'. Unknown id, or another's job for who is no operator ->
-- 'not_found'.  `status` is the one before. Raises PJ004 for a name that is not of 1 to 255 characters, or a
-- time outside of the years 1 to 9999; PJ010 for a queue, given or its own, that the caller's role may not
-- defer to. Locks the job. Notifies the queue's workers.
DECLARE
    v_own text[] := pljobs._own_roles('pljobs_operator');
    v_job record;
BEGIN
    IF NOT char_length(retry_job_v1.queue) BETWEEN 1 AND 255
       OR NOT char_length(retry_job_v1.lock) BETWEEN 1 AND 255
       OR retry_job_v1.scheduled_at NOT BETWEEN '0001-01-02 00:00+00' AND '9999-12-30 00:00+00'
       OR retry_job_v1.priority = -2147483648 THEN
        RAISE EXCEPTION 'job % can''t be retried so: queue and lock have 1 to 255 characters, '
                        'scheduled_at is in the years 1 to 9999, priority is above -2147483648',
            retry_job_v1.job_id USING ERRCODE = 'PJ004';
    END IF;
    SELECT j.status, j.queue, j.task, j.message, j.error INTO v_job
      FROM pljobs.job AS j
     WHERE j.id = retry_job_v1.job_id AND (v_own IS NULL OR j.deferred_by = ANY (v_own)) FOR UPDATE;
    status := v_job.status;
    IF status IS NULL THEN
        outcome := 'not_found';
    ELSIF status = 'doing' THEN
        outcome := 'running';
    ELSIF status IN ('todo', 'succeeded') THEN
        outcome := status;
    ELSE
        PERFORM pljobs._refuse_queues('defer', ARRAY[coalesce(retry_job_v1.queue, v_job.queue)],
                                      'nothing was put back');
        outcome := 'requeued';
        PERFORM pljobs._record_request('retry', retry_job_v1.job_id, v_job.queue, v_job.task,
                                       retry_job_v1.reason, retry_job_v1.actor, 'requeued');
        -- It may defer jobs again.
        DELETE FROM pljobs.closed_tree AS t WHERE t.job_id = retry_job_v1.job_id;
        PERFORM pljobs._requeue_job(retry_job_v1.job_id, status, v_job.message, v_job.error,
                                    scheduled_at => retry_job_v1.scheduled_at, queue => retry_job_v1.queue,
                                    priority => retry_job_v1.priority, lock => retry_job_v1.lock);
    END IF;
END
$$;
COMMENT ON FUNCTION pljobs.retry_job_v1(bigint, timestamptz, text, integer, text, text, text)
    IS 'Puts a failed, cancelled or aborted job back to todo. Driver contract, version 1.';

CREATE OR REPLACE FUNCTION pljobs.retry_job(
    job_id bigint, scheduled_at timestamptz DEFAULT NULL, queue text DEFAULT NULL,
    priority integer DEFAULT NULL, lock text DEFAULT NULL, reason text DEFAULT NULL, actor text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- What retry_job_v1 does, for people: returns its outcome, one word.
BEGIN
    RETURN (SELECT r.outcome FROM pljobs.retry_job_v1(
        retry_job.job_id, retry_job.scheduled_at, retry_job.queue, retry_job.priority, retry_job.lock,
        retry_job.reason, retry_job.actor) AS r);
END
$$;
COMMENT ON FUNCTION pljobs.retry_job(bigint, timestamptz, text, integer, text, text, text)
    IS 'Puts a failed, cancelled or aborted job back: SELECT retry_job(33);';

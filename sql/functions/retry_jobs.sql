CREATE OR REPLACE FUNCTION pljobs.retry_jobs_v1(
    job_ids bigint[] DEFAULT NULL, queue text DEFAULT NULL, task text DEFAULT NULL, lock text DEFAULT NULL,
    args jsonb DEFAULT NULL, older_than interval DEFAULT NULL, status text DEFAULT NULL,
    parent_id bigint DEFAULT NULL, reason text DEFAULT NULL, actor text DEFAULT NULL,
    dry_run boolean DEFAULT true, max_jobs integer DEFAULT 10000, after_id bigint DEFAULT NULL
) RETURNS TABLE (job_id bigint, queue_name text, task_name text, status_before text, outcome text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- What retry_job_v1 does, for each job that is failed, cancelled or aborted (status: only these) and
-- matches all the filters that are given; see cancel_jobs_v1, whose filters, dry_run, max_jobs and after_id
-- these are (its own, for who is no operator). Returns a row for each of them, in no order: requeued, or with
-- dry_run, the default, would_requeue; or 'changed', 'not_found' for one that matched until it was locked,
-- and was left alone. Raises PJ004 without a filter, for another status, a max_jobs below 1, a negative
-- older_than; PJ010 as retry_job_v1 does. Locks the jobs by ascending id, waiting for each. Notifies the
-- queues' workers.
DECLARE
    v_statuses text[] := CASE WHEN retry_jobs_v1.status IS NULL THEN '{failed,cancelled,aborted}'::text[]
                              ELSE ARRAY[retry_jobs_v1.status] END;
    v_own text[] := pljobs._own_roles('pljobs_operator');
    v_ids bigint[];
    v_changed bigint[];
BEGIN
    IF retry_jobs_v1.status NOT IN ('failed', 'cancelled', 'aborted') THEN
        RAISE EXCEPTION 'only jobs that failed, or were cancelled or aborted, can be retried, not %',
            quote_literal(retry_jobs_v1.status) USING ERRCODE = 'PJ004';
    END IF;
    v_ids := pljobs._matching_own_jobs(
        retry_jobs_v1.job_ids, retry_jobs_v1.queue, retry_jobs_v1.task, v_statuses, retry_jobs_v1.lock,
        retry_jobs_v1.args, retry_jobs_v1.older_than, retry_jobs_v1.parent_id, retry_jobs_v1.after_id,
        retry_jobs_v1.max_jobs, v_own);
    IF retry_jobs_v1.dry_run IS NOT FALSE THEN
        RETURN QUERY
        SELECT j.id, j.queue, j.task, j.status, 'would_requeue' FROM pljobs.job AS j WHERE j.id = ANY (v_ids);
        RETURN;
    END IF;

    SELECT l.matching, l.others INTO v_ids, v_changed
      FROM pljobs._lock_matching_own_jobs(
           v_ids, retry_jobs_v1.queue, retry_jobs_v1.task, v_statuses, retry_jobs_v1.lock, retry_jobs_v1.args,
           retry_jobs_v1.older_than, retry_jobs_v1.parent_id, v_own) AS l;
    RETURN QUERY
    -- In order of queueing_lock, as _requeue_job asks.
    SELECT j.id, j.queue, j.task, r.status, r.outcome
      FROM (SELECT h.id, h.queue, h.task FROM pljobs.job AS h WHERE h.id = ANY (v_ids)
             ORDER BY h.queueing_lock, h.id OFFSET 0) AS j
     CROSS JOIN LATERAL pljobs.retry_job_v1(
           j.id, reason => retry_jobs_v1.reason, actor => retry_jobs_v1.actor) AS r;
    RETURN QUERY
    SELECT c.job_id, c.queue_name, c.task_name, c.status_before, c.outcome
      FROM pljobs._changed_jobs(v_changed) AS c;
END
$$;
COMMENT ON FUNCTION pljobs.retry_jobs_v1(
    bigint[], text, text, text, jsonb, interval, text, bigint, text, text, boolean, integer, bigint
) IS 'Puts all jobs that match back; by default only shows what it would do. Driver contract, version 1.';

CREATE OR REPLACE FUNCTION pljobs.retry_jobs(
    job_ids bigint[] DEFAULT NULL, queue text DEFAULT NULL, task text DEFAULT NULL, lock text DEFAULT NULL,
    args jsonb DEFAULT NULL, older_than interval DEFAULT NULL, status text DEFAULT NULL,
    parent_id bigint DEFAULT NULL, reason text DEFAULT NULL, actor text DEFAULT NULL,
    dry_run boolean DEFAULT true, max_jobs integer DEFAULT 10000, after_id bigint DEFAULT NULL
) RETURNS TABLE (job_id bigint, queue_name text, task_name text, status_before text, outcome text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- What retry_jobs_v1 does, for people: by ascending id; with a NOTICE where nothing was changed (dry_run),
-- and where max_jobs was reached.
DECLARE
    v_jobs bigint;
BEGIN
    RETURN QUERY
    SELECT r.job_id, r.queue_name, r.task_name, r.status_before, r.outcome
      FROM pljobs.retry_jobs_v1(
           retry_jobs.job_ids, retry_jobs.queue, retry_jobs.task, retry_jobs.lock, retry_jobs.args,
           retry_jobs.older_than, retry_jobs.status, retry_jobs.parent_id, retry_jobs.reason,
           retry_jobs.actor, retry_jobs.dry_run, retry_jobs.max_jobs, retry_jobs.after_id) AS r
     ORDER BY r.job_id;
    GET DIAGNOSTICS v_jobs = ROW_COUNT;
    IF retry_jobs.dry_run IS NOT FALSE THEN
        RAISE NOTICE '% jobs match, and nothing was changed; to do it: dry_run => false', v_jobs;
    END IF;
    IF v_jobs = retry_jobs.max_jobs THEN
        RAISE NOTICE 'there may be more than these % (max_jobs): %', v_jobs,
            CASE WHEN retry_jobs.dry_run IS NOT FALSE THEN 'after_id, the last one''s id, shows the next'
                 ELSE 'call again' END;
    END IF;
END
$$;
COMMENT ON FUNCTION pljobs.retry_jobs(
    bigint[], text, text, text, jsonb, interval, text, bigint, text, text, boolean, integer, bigint
) IS 'Shows which jobs it would put back; with dry_run => false does: '
     'SELECT * FROM retry_jobs(task => ''mail'');';

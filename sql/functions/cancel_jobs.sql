CREATE OR REPLACE FUNCTION pljobs.cancel_jobs_v1(
    job_ids bigint[] DEFAULT NULL, queue text DEFAULT NULL, task text DEFAULT NULL, lock text DEFAULT NULL,
    args jsonb DEFAULT NULL, older_than interval DEFAULT NULL, status text DEFAULT NULL,
    parent_id bigint DEFAULT NULL, abort boolean DEFAULT false, delete_job boolean DEFAULT false,
    force boolean DEFAULT false, reason text DEFAULT NULL, actor text DEFAULT NULL,
    grace interval DEFAULT NULL, term_grace interval DEFAULT NULL, sql boolean DEFAULT false,
    dry_run boolean DEFAULT true, max_jobs integer DEFAULT 10000, after_id bigint DEFAULT NULL
) RETURNS TABLE (job_id bigint, queue_name text, task_name text, status_before text, outcome text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- What cancel_job_v1 does, for each job that is waiting or running (status: only these) and matches all the
-- filters that are given: ids, queue, task, lock, args (contained in the job's), older_than (deferred longer
-- ago), parent_id (deferred by that job itself; its whole tree: cancel_tree_v1); and is the caller's own, for
-- who has neither pljobs_canceller nor, which it takes for others' args, pljobs_operator. At most max_jobs,
-- those of the lowest ids; the next call goes on behind after_id, the highest id answered. Returns a row for
-- each of them, in no order, with cancel_job's words; or 'changed', 'not_found' for one that matched until it
-- was locked, and was left alone. dry_run, the default: changes and locks nothing, and answers would_cancel,
-- would_delete, would_abort, would_force, or running (left alone: abort is not asked for). Raises PJ004
-- without a filter, for a status that is not todo or doing, a max_jobs below 1, a negative older_than, and as
-- cancel_job_v1 does. Locks the jobs by ascending id, waiting for each. Notifies each worker concerned once.
DECLARE
    v_abort boolean := coalesce(cancel_jobs_v1.abort, false) OR coalesce(cancel_jobs_v1.force, false);
    v_delete boolean := coalesce(cancel_jobs_v1.delete_job, false);
    v_statuses text[] := CASE WHEN cancel_jobs_v1.status IS NULL THEN '{todo,doing}'::text[]
                              ELSE ARRAY[cancel_jobs_v1.status] END;
    -- Who may cancel any job but not see its arguments does not find them out by a filter, either.
    v_own text[] := CASE WHEN cancel_jobs_v1.args IS NULL
                         THEN pljobs._own_roles('pljobs_canceller', 'pljobs_operator')
                         ELSE pljobs._own_roles('pljobs_operator') END;
    v_ids bigint[];
    v_changed bigint[];
    v_todo bigint[];
    v_doing bigint[];
    v_locks text[];
    v_resolution text := CASE WHEN cancel_jobs_v1.delete_job THEN 'deleted' ELSE 'cancelled' END;
BEGIN
    IF cancel_jobs_v1.status NOT IN ('todo', 'doing') THEN
        RAISE EXCEPTION 'only jobs that are todo or doing can be cancelled, not %',
            quote_literal(cancel_jobs_v1.status) USING ERRCODE = 'PJ004';
    END IF;
    v_ids := pljobs._matching_own_jobs(
        cancel_jobs_v1.job_ids, cancel_jobs_v1.queue, cancel_jobs_v1.task, v_statuses, cancel_jobs_v1.lock,
        cancel_jobs_v1.args, cancel_jobs_v1.older_than, cancel_jobs_v1.parent_id, cancel_jobs_v1.after_id,
        cancel_jobs_v1.max_jobs, v_own);
    PERFORM pljobs._ladder(cancel_jobs_v1.grace, cancel_jobs_v1.term_grace, cancel_jobs_v1.sql);

    IF cancel_jobs_v1.dry_run IS NOT FALSE THEN
        RETURN QUERY
        SELECT j.id, j.queue, j.task, j.status,
               CASE WHEN j.status = 'doing' AND NOT v_abort THEN 'running'
                    WHEN j.status = 'doing' AND cancel_jobs_v1.force THEN 'would_force'
                    WHEN j.status = 'doing' THEN 'would_abort'
                    WHEN v_delete THEN 'would_delete'
                    ELSE 'would_cancel' END
          FROM pljobs.job AS j WHERE j.id = ANY (v_ids);
        RETURN;
    END IF;

    SELECT l.matching, l.others INTO v_ids, v_changed
      FROM pljobs._lock_matching_own_jobs(
           v_ids, cancel_jobs_v1.queue, cancel_jobs_v1.task, v_statuses, cancel_jobs_v1.lock,
           cancel_jobs_v1.args, cancel_jobs_v1.older_than, cancel_jobs_v1.parent_id, v_own) AS l;
    SELECT array_agg(j.id) FILTER (WHERE j.status = 'todo'),
           array_agg(j.id) FILTER (WHERE j.status = 'doing'),
           array_agg(DISTINCT j.lock) FILTER (WHERE j.status = 'todo' AND j.lock IS NOT NULL)
      INTO v_todo, v_doing, v_locks
      FROM pljobs.job AS j WHERE j.id = ANY (v_ids);

    RETURN QUERY
    SELECT c.job_id, c.queue, c.task, 'todo', v_resolution
      FROM pljobs._cancel_waiting_jobs(
           v_todo, v_resolution, cancel_jobs_v1.reason, cancel_jobs_v1.actor, 'user') AS c;
    RETURN QUERY
    SELECT j.id, j.queue, j.task, c.status_before, c.outcome
      FROM (SELECT h.id, h.queue, h.task FROM pljobs.job AS h WHERE h.id = ANY (v_doing)
             ORDER BY h.id OFFSET 0) AS j
     CROSS JOIN LATERAL pljobs.cancel_job_v1(
           j.id, cancel_jobs_v1.abort, v_delete, cancel_jobs_v1.force, cancel_jobs_v1.reason,
           cancel_jobs_v1.actor, cancel_jobs_v1.grace, cancel_jobs_v1.term_grace, cancel_jobs_v1.sql) AS c;
    RETURN QUERY
    SELECT c.job_id, c.queue_name, c.task_name, c.status_before, c.outcome
      FROM pljobs._changed_jobs(v_changed) AS c;
    PERFORM pljobs._wake_lanes(v_locks, take_lane => false);
END
$$;
COMMENT ON FUNCTION pljobs.cancel_jobs_v1(
    bigint[], text, text, text, jsonb, interval, text, bigint, boolean, boolean, boolean, text, text,
    interval, interval, boolean, boolean, integer, bigint
) IS 'Cancels all jobs that match; by default only shows what it would do. Driver contract, version 1.';

CREATE OR REPLACE FUNCTION pljobs.cancel_jobs(
    job_ids bigint[] DEFAULT NULL, queue text DEFAULT NULL, task text DEFAULT NULL, lock text DEFAULT NULL,
    args jsonb DEFAULT NULL, older_than interval DEFAULT NULL, status text DEFAULT NULL,
    parent_id bigint DEFAULT NULL, abort boolean DEFAULT false, delete_job boolean DEFAULT false,
    force boolean DEFAULT false, reason text DEFAULT NULL, actor text DEFAULT NULL,
    grace interval DEFAULT NULL, term_grace interval DEFAULT NULL, sql boolean DEFAULT false,
    dry_run boolean DEFAULT true, max_jobs integer DEFAULT 10000, after_id bigint DEFAULT NULL
) RETURNS TABLE (job_id bigint, queue_name text, task_name text, status_before text, outcome text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- What cancel_jobs_v1 does, for people: by ascending id; with a NOTICE where nothing was changed (dry_run),
-- where running jobs are left alone, and where max_jobs was reached. Waits for each lock as cancel_job
-- does.
DECLARE
    v_lock_timeout text := pljobs._wait_briefly();
    v_jobs integer := 0;
    v_running integer := 0;
BEGIN
    FOR job_id, queue_name, task_name, status_before, outcome IN
        SELECT c.job_id, c.queue_name, c.task_name, c.status_before, c.outcome
          FROM pljobs.cancel_jobs_v1(
               cancel_jobs.job_ids, cancel_jobs.queue, cancel_jobs.task, cancel_jobs.lock, cancel_jobs.args,
               cancel_jobs.older_than, cancel_jobs.status, cancel_jobs.parent_id, cancel_jobs.abort,
               cancel_jobs.delete_job, cancel_jobs.force, cancel_jobs.reason, cancel_jobs.actor,
               cancel_jobs.grace, cancel_jobs.term_grace, cancel_jobs.sql, cancel_jobs.dry_run,
               cancel_jobs.max_jobs, cancel_jobs.after_id) AS c
         ORDER BY c.job_id
    LOOP
        v_jobs := v_jobs + 1;
        v_running := v_running + (outcome = 'running')::integer;
        RETURN NEXT;
    END LOOP;
    IF v_running > 0 THEN
        RAISE NOTICE '% jobs run, and are left alone; to stop them: abort => true', v_running;
    END IF;
    IF cancel_jobs.dry_run IS NOT FALSE THEN
        RAISE NOTICE '% jobs match, and nothing was changed; to do it: dry_run => false', v_jobs;
    END IF;
    IF v_jobs = cancel_jobs.max_jobs THEN
        RAISE NOTICE 'there may be more than these % (max_jobs): CALL cancel_jobs_in_batches takes all',
            v_jobs;
    END IF;
    PERFORM set_config('lock_timeout', v_lock_timeout, true);
EXCEPTION
    WHEN lock_not_available THEN
        PERFORM pljobs._raise_held(NULL);
END
$$;
COMMENT ON FUNCTION pljobs.cancel_jobs(
    bigint[], text, text, text, jsonb, interval, text, bigint, boolean, boolean, boolean, text, text,
    interval, interval, boolean, boolean, integer, bigint
) IS 'Shows which jobs it would cancel; with dry_run => false cancels them: '
     'SELECT * FROM cancel_jobs(task => ''mail'');';

CREATE OR REPLACE PROCEDURE pljobs.cancel_jobs_in_batches(
    job_ids bigint[] DEFAULT NULL, queue text DEFAULT NULL, task text DEFAULT NULL, lock text DEFAULT NULL,
    args jsonb DEFAULT NULL, older_than interval DEFAULT NULL, status text DEFAULT NULL,
    parent_id bigint DEFAULT NULL, abort boolean DEFAULT false, delete_job boolean DEFAULT false,
    force boolean DEFAULT false, reason text DEFAULT NULL, actor text DEFAULT NULL,
    grace interval DEFAULT NULL, term_grace interval DEFAULT NULL, sql boolean DEFAULT false,
    batch integer DEFAULT 1000, INOUT jobs bigint DEFAULT 0
)
LANGUAGE plpgsql
AS $$
-- What cancel_jobs_v1 does with dry_run => false, for any number of jobs, in batches that are committed one
-- by one, so that workers never wait for long; interrupted, what is committed stays. Jobs deferred
-- meanwhile are taken too. `jobs`: how many were cancelled, deleted, aborted or asked to; with a NOTICE
-- where running ones are left alone. Not inside a transaction. With the caller's rights and no settings of
-- its own, for PostgreSQL lets nothing else commit: all names are qualified.
DECLARE
    v_after bigint;
    v_seen bigint;
    v_done bigint;
    v_left bigint;
    v_running bigint := 0::pg_catalog.int8;
BEGIN
    jobs := 0;
    LOOP
        SELECT pg_catalog.max(c.job_id), pg_catalog.count(*), pg_catalog.count(*) FILTER (
                   WHERE c.outcome OPERATOR(pg_catalog.<>) ALL ('{running,changed,not_found}')),
               pg_catalog.count(*) FILTER (WHERE c.outcome OPERATOR(pg_catalog.=) 'running')
          INTO v_after, v_seen, v_done, v_left
          FROM pljobs.cancel_jobs_v1(
               cancel_jobs_in_batches.job_ids, cancel_jobs_in_batches.queue, cancel_jobs_in_batches.task,
               cancel_jobs_in_batches.lock, cancel_jobs_in_batches.args, cancel_jobs_in_batches.older_than,
               cancel_jobs_in_batches.status, cancel_jobs_in_batches.parent_id, cancel_jobs_in_batches.abort,
               cancel_jobs_in_batches.delete_job, cancel_jobs_in_batches.force,
               cancel_jobs_in_batches.reason, cancel_jobs_in_batches.actor, cancel_jobs_in_batches.grace,
               cancel_jobs_in_batches.term_grace, cancel_jobs_in_batches.sql,
               dry_run => false, max_jobs => cancel_jobs_in_batches.batch, after_id => v_after) AS c;
        jobs := jobs OPERATOR(pg_catalog.+) v_done;
        v_running := v_running OPERATOR(pg_catalog.+) v_left;
        COMMIT;
        EXIT WHEN v_seen OPERATOR(pg_catalog.<) cancel_jobs_in_batches.batch;
    END LOOP;
    IF v_running OPERATOR(pg_catalog.>) 0 THEN
        RAISE NOTICE '% jobs run, and were left alone; to stop them: abort => true', v_running;
    END IF;
END
$$;
COMMENT ON PROCEDURE pljobs.cancel_jobs_in_batches(
    bigint[], text, text, text, jsonb, interval, text, bigint, boolean, boolean, boolean, text, text,
    interval, interval, boolean, integer, bigint
) IS 'Cancels any number of jobs, at once, committing each batch: '
     'CALL cancel_jobs_in_batches(task => ''mail'');';

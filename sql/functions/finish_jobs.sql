CREATE OR REPLACE FUNCTION pljobs.finish_jobs_v1(runs jsonb, wait boolean DEFAULT true)
RETURNS TABLE (job_id bigint, run_id bigint, status text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- Ends runs. `runs`: a JSON array of objects {"job_id", "run_id", "outcome", "result", "message", "error",
-- "delete_job", "retry_at", "retry_in", "retry_queue", "retry_priority", "retry_lock", "sql_cancelled",
-- "progress", "progress_message"}. The worker says what happened; what is written depends on whether somebody
-- had asked for an abort:
--   succeeded               -> succeeded; asked: the request is resolved 'finished_first'
--   failed                  -> failed, or todo at retry_at, else after retry_in;
--                              asked: failed, never retried, 'failed_first'
--   aborted, killed         -> asked: aborted, or gone if deletion was asked; nobody asked: as failed
--   abandoned (its code may still run)  -> asked: aborted; nobody asked: failed, never retried. The worker is
--                              tainted: it is given no more jobs
--   interrupted (shutdown)  -> todo at once, attempt not charged; asked: aborted
--   unstarted (given back before its body began)  -> as interrupted, its start_by stays, and it has not used
--                              up any of its rates
-- Where it was its timeout that asked, and nobody else: failed, aborted and killed -> failed, or todo as for
-- failed, 'timeout' (failed: 'failed_first'); interrupted -> todo, attempt charged; abandoned -> failed. So
-- is aborted where the timeout is over and nobody could ask, for somebody held the row.
-- sql_cancelled: it failed because a statement was cancelled; if its request cancelled one, that is
-- 'aborted'. retry_in: an interval from now, by the database's clock, cut to ten years; a negative one, or
-- what is no interval, means at once: it never keeps the call from ending its runs. delete_job: gone, where
-- it would have ended, aborted ones too. Returns the status written, or 'deleted', for each run. A run that
-- isn't this job's changes nothing: it is answered the status then written if that run itself ended the job
-- (so a lost reply can be replayed), else 'stale'; 'not_found' if the job is gone, or its worker another's
-- and the caller's role limited to queues; such a role retries a job in none but these, or in the job's own
-- queue. With wait => false a job that somebody else holds locked (a person's open transaction) is left as
-- it is, and answered 'locked': report it again a little later. Message and error are cut at 1,000 and
-- 16,384 characters, a result of more than 1 MiB is left out: what a task produced never keeps it from
-- ending. Raises PJ004 for an unknown outcome or a retry's queue or lock not of 1 to 255 characters. Locks
-- the jobs by ascending id, then their requests, then their lanes, then the throttles of what is unstarted,
-- for which it waits for a second at most. Notifies workers of retries, of lanes' next, and of the queues
-- that have room again: throttled ones, and those where jobs of an ended one's task are at its limit.
DECLARE
    v_now timestamptz := clock_timestamp();
    v_own bigint[] := pljobs._own_workers();
    v_allowed text[];
    v_places bigint[];
    v_ids bigint[];
    v_plain_jobs bigint[];
    v_plain_runs bigint[];
    v_left_of jsonb;                              -- run -> its result and message, if it left any
    v_unstarted boolean;
    v_progress boolean;
    v_mine bigint[];
    v_held bigint[];
    v_done_jobs bigint[];
    v_done_runs bigint[];
    v_locks text[];
    v_queues text[];
    v_tasks text[];
    v_unused jsonb;
    v_run record;
    v_retry_at timestamptz;
    v_retry_in interval;
BEGIN
    IF v_own IS NOT NULL THEN
        -- Once, for what follows are statements of their own: a run is theirs in all of them, or in none.
        -- Theirs is also what one of their workers has ended by a retry: it may be said again.
        v_places := ARRAY(
            SELECT e.place
              FROM jsonb_array_elements(finish_jobs_v1.runs) WITH ORDINALITY AS e(run, place)
             CROSS JOIN LATERAL (  -- one by one, whatever the statistics say
                   SELECT FROM pljobs.job AS j
                    WHERE j.id = (e.run ->> 'job_id')::bigint AND j.worker_id = ANY (v_own)
                    UNION ALL
                   SELECT FROM pljobs.job_event AS v
                    WHERE v.job_id = (e.run ->> 'job_id')::bigint AND v.run_id = (e.run ->> 'run_id')::bigint
                      AND v.worker_id = ANY (v_own)
                    LIMIT 1) AS is_theirs);
        RETURN QUERY
        SELECT (e.run ->> 'job_id')::bigint, (e.run ->> 'run_id')::bigint, 'not_found'
          FROM jsonb_array_elements(finish_jobs_v1.runs) WITH ORDINALITY AS e(run, place)
         WHERE e.place <> ALL (v_places);
        -- Better put back to its own queue than not at all; but into no other by a role that is kept from it.
        v_allowed := pljobs._allowed_queues('fetch');
        runs := coalesce((
            SELECT jsonb_agg(CASE WHEN e.run ->> 'retry_queue' = ANY (v_allowed) THEN e.run
                                  ELSE e.run - 'retry_queue' END)
              FROM jsonb_array_elements(finish_jobs_v1.runs) WITH ORDINALITY AS e(run, place)
             WHERE e.place = ANY (v_places)), '[]');
    END IF;
    -- Read once: most runs have just succeeded, and need no more than these.
    SELECT array_agg(x.job_id), array_agg(x.job_id) FILTER (WHERE x.plain),
           array_agg(x.run_id) FILTER (WHERE x.plain),
           jsonb_object_agg(x.run_id, jsonb_build_object(
               'result', CASE WHEN octet_length(x.result::text) <= 1048576 THEN x.result END,
               'message', left(x.message, 1000)))
               FILTER (WHERE x.plain AND x.run_id IS NOT NULL AND num_nonnulls(x.result, x.message) > 0),
           bool_or(x.outcome = 'unstarted'), bool_or(num_nonnulls(x.progress, x.progress_message) > 0)
      INTO v_ids, v_plain_jobs, v_plain_runs, v_left_of, v_unstarted, v_progress
      FROM (SELECT r.*, r.outcome = 'succeeded' AND r.delete_job IS NOT TRUE AS plain
              FROM jsonb_to_recordset(finish_jobs_v1.runs) AS r(
                   job_id bigint, run_id bigint, outcome text, result jsonb, message text, delete_job boolean,
                   progress jsonb, progress_message jsonb)) AS x;
    -- A bulk UPDATE locks in the order of its plan, and two of them deadlock: lock first, in order.
    IF finish_jobs_v1.wait IS NOT FALSE THEN
        SELECT array_agg(m.lock) FILTER (WHERE m.lock IS NOT NULL),
               array_agg(DISTINCT m.queue) FILTER (WHERE m.throttled),
               array_agg(DISTINCT m.task) FILTER (WHERE m.throttled)
          INTO v_locks, v_queues, v_tasks
          FROM (SELECT j.lock, j.queue, j.task, j.throttled FROM pljobs.job AS j
                 WHERE j.id = ANY (v_ids) ORDER BY j.id FOR UPDATE) AS m;
    ELSE
        SELECT array_agg(m.id), array_agg(m.lock) FILTER (WHERE m.lock IS NOT NULL),
               array_agg(DISTINCT m.queue) FILTER (WHERE m.throttled),
               array_agg(DISTINCT m.task) FILTER (WHERE m.throttled)
          INTO v_mine, v_locks, v_queues, v_tasks
          FROM (SELECT j.id, j.lock, j.queue, j.task, j.throttled FROM pljobs.job AS j
                 WHERE j.id = ANY (v_ids) ORDER BY j.id FOR UPDATE SKIP LOCKED) AS m;
        IF coalesce(cardinality(v_mine), 0) < cardinality(v_ids) THEN
            v_held := ARRAY(SELECT j.id FROM pljobs.job AS j
                             WHERE j.id = ANY (v_ids) AND (j.id = ANY (v_mine)) IS NOT TRUE);
        END IF;
    END IF;

    IF v_unstarted AND EXISTS (SELECT FROM pljobs.throttle AS t WHERE t.rate IS NOT NULL) THEN
        SELECT jsonb_agg(jsonb_build_object('queue', j.queue, 'key', coalesce(j.fairness_key, ''),
                                            'task', j.task, 'started_at', j.started_at)) INTO v_unused
          FROM (SELECT DISTINCT x.job_id, x.run_id
                  FROM jsonb_to_recordset(finish_jobs_v1.runs) AS x(
                       job_id bigint, run_id bigint, outcome text)
                 WHERE x.outcome = 'unstarted') AS u
          JOIN pljobs.job AS j ON j.id = u.job_id AND j.run_id = u.run_id AND j.throttled
         WHERE j.id = ANY (v_ids) AND (j.id = ANY (v_held)) IS NOT TRUE;
    END IF;
    IF v_progress THEN
        -- Not of what is held: a heartbeat may be storing the same, and this wait for that worker below.
        PERFORM pljobs._store_progress(CASE WHEN v_held IS NULL THEN finish_jobs_v1.runs ELSE (
            SELECT jsonb_agg(e.run) FROM jsonb_array_elements(finish_jobs_v1.runs) AS e(run)
             WHERE ((e.run ->> 'job_id')::bigint = ANY (v_held)) IS NOT TRUE) END);
    END IF;
    WITH ended AS (
        UPDATE pljobs.job AS j
           SET status = 'succeeded', finished_at = v_now, run_id = NULL, last_run_id = j.run_id,
               timeout_at = NULL,
               message = v_left_of -> j.run_id::text ->> 'message', error = NULL,
               result = nullif(v_left_of -> j.run_id::text -> 'result', 'null')
         WHERE j.id = ANY (v_plain_jobs) AND j.request_id IS NULL AND (j.id = ANY (v_held)) IS NOT TRUE
           -- IS TRUE: looked up in a hash table. A join may compare each with each, where the planner
           -- believes that there are few, or walk all jobs there are.
           AND ((j.id, j.run_id) IN (SELECT x.job_id, x.run_id
                                       FROM unnest(v_plain_jobs, v_plain_runs) AS x(job_id, run_id))) IS TRUE
        RETURNING j.id, j.last_run_id
    )
    SELECT coalesce(array_agg(e.id), '{}'), coalesce(array_agg(e.last_run_id), '{}')
      INTO v_done_jobs, v_done_runs FROM ended AS e;

    IF cardinality(v_done_runs) < jsonb_array_length(finish_jobs_v1.runs) THEN
        -- In order of queueing lock: going back to todo waits for whoever is inserting the same one. Before
        -- those the ends that mark their worker: its heartbeat may be waiting for a queueing lock.
        FOR v_run IN
            SELECT x.* FROM jsonb_to_recordset(finish_jobs_v1.runs) AS x(
                   job_id bigint, run_id bigint, outcome text, result jsonb, message text, error text,
                   delete_job boolean, retry_at timestamptz, retry_in text, retry_queue text,
                   retry_priority integer, retry_lock text, sql_cancelled boolean)
             WHERE (x.run_id = ANY (v_done_runs)) IS NOT TRUE
             ORDER BY (SELECT j.worker_id FROM pljobs.job AS j
                        WHERE j.id = x.job_id AND x.outcome = 'abandoned'),
                      (SELECT j.queueing_lock FROM pljobs.job AS j WHERE j.id = x.job_id), x.job_id
        LOOP
            IF v_run.outcome IS NULL OR v_run.outcome NOT IN (
                   'succeeded', 'failed', 'aborted', 'killed', 'abandoned', 'interrupted', 'unstarted')
               OR char_length(v_run.retry_queue) NOT BETWEEN 1 AND 255
               OR char_length(v_run.retry_lock) NOT BETWEEN 1 AND 255 THEN
                RAISE EXCEPTION 'job %, run %: the outcome must be succeeded, failed, aborted, killed, '
                                'abandoned, interrupted or unstarted, and the queue and lock of a retry have '
                                '1 to 255 characters',
                    v_run.job_id, v_run.run_id USING ERRCODE = 'PJ004', HINT = 'Nothing was changed.';
            END IF;
            job_id := v_run.job_id;
            run_id := v_run.run_id;
            IF job_id = ANY (v_held) THEN
                status := 'locked';
                RETURN NEXT;
                CONTINUE;
            END IF;
            v_retry_at := v_run.retry_at;
            IF v_retry_at IS NULL AND v_run.retry_in IS NOT NULL THEN
                BEGIN
                    v_retry_in := v_run.retry_in::interval;
                EXCEPTION
                    WHEN invalid_datetime_format THEN
                        v_retry_in := interval '0';
                    WHEN data_exception THEN
                        -- Longer than an interval can be.
                        v_retry_in := CASE WHEN v_run.retry_in LIKE '%-%' THEN interval '0'
                                           ELSE interval '10 years' END;
                END;
                v_retry_at := pljobs._later(v_now, v_retry_in);
            END IF;
            status := pljobs._finish_run(
                v_run.job_id, v_run.run_id, v_run.outcome,
                CASE WHEN octet_length(v_run.result::text) <= 1048576 THEN v_run.result END,
                left(v_run.message, 1000), left(v_run.error, 16384), v_run.delete_job IS TRUE,
                v_retry_at, v_run.retry_queue, v_run.retry_priority, v_run.retry_lock,
                v_run.sql_cancelled IS TRUE);
            RETURN NEXT;
        END LOOP;
    END IF;

    IF v_locks IS NOT NULL THEN
        PERFORM pljobs._wake_lanes(v_locks, take_lane => true);
    END IF;
    IF v_queues IS NOT NULL THEN
        PERFORM pljobs._notify_room(v_queues, v_tasks);
    END IF;
    IF v_unused IS NOT NULL THEN
        PERFORM pljobs._refill_buckets(v_unused);
    END IF;
    RETURN QUERY SELECT d.job_id, d.run_id, 'succeeded'
                   FROM unnest(v_done_jobs, v_done_runs) AS d(job_id, run_id);
END
$$;
COMMENT ON FUNCTION pljobs.finish_jobs_v1(jsonb, boolean)
    IS 'Ends runs and answers the status written for each. Driver contract, version 1.';

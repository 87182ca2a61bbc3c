CREATE OR REPLACE FUNCTION pljobs._notify_worker(worker_id bigint) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Tells a worker to look at its runs (heartbeat_v1), on channel pljobs_worker_<id>. The payload is empty, so
-- that any number of requests in one transaction is one notification.
BEGIN
    PERFORM pg_notify('pljobs_worker_' || _notify_worker.worker_id, '');
END
$$;
COMMENT ON FUNCTION pljobs._notify_worker(bigint) IS 'Tells a worker to look at its runs.';

CREATE OR REPLACE FUNCTION pljobs._notify_todo(queues text[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Tells workers that these queues have jobs to run, on channel pljobs_todo: one message a queue. The payload
-- is the md5 of the queue's name in UTF-8, for a name may be longer than what a notification should carry. A
-- server in FIPS mode refuses md5, and a name of which no encoding is known (SQL_ASCII) need not be UTF-8:
-- there one empty message wakes the workers of all queues.
BEGIN
    PERFORM pg_notify('pljobs_todo', md5(convert_to(q.name, 'UTF8')))
       FROM unnest(_notify_todo.queues) AS q(name);
EXCEPTION WHEN internal_error OR out_of_memory OR character_not_in_repertoire THEN  -- 14's FIPS: the second
    PERFORM pg_notify('pljobs_todo', '');
END
$$;
COMMENT ON FUNCTION pljobs._notify_todo(text[]) IS 'Tells workers that these queues have jobs to run.';

CREATE OR REPLACE FUNCTION pljobs._notify_of(job_ids bigint[], but bigint[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- Tells workers of the queues of these jobs, without those of `but`.
BEGIN
    PERFORM pljobs._notify_todo(ARRAY(
        SELECT DISTINCT j.queue
          FROM unnest(_notify_of.job_ids) AS i(id)
         CROSS JOIN LATERAL (SELECT q.queue FROM pljobs.job AS q WHERE q.id = i.id OFFSET 0) AS j
         WHERE i.id NOT IN (SELECT b.id FROM unnest(_notify_of.but) AS b(id))));
END
$$;
COMMENT ON FUNCTION pljobs._notify_of(bigint[], bigint[]) IS 'Tells workers of the queues of these jobs.';

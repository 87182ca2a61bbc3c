CREATE OR REPLACE FUNCTION pljobs.prune_jobs_v1(
    older_than interval, statuses text[] DEFAULT '{succeeded,failed,cancelled,aborted}',
    queue text DEFAULT NULL, max_jobs integer DEFAULT 10000
) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
AS $$
-- succeeded, failed, cancelled, aborted -> gone, for jobs that finished longer than older_than ago, with one
-- of `statuses`, in `queue` (null: all), oldest first.  Returns how many, at most max_jobs: call again until
-- it returns 0, each call in a transaction of its own. A role limited to fetching from some queues prunes in
-- these. The requests stay (prune_history_v1). Raises PJ004 for
-- a null or negative older_than, or a status that is not final. Locks those jobs, skipping those that
-- somebody holds. Notifies nobody.
DECLARE
    -- A variable: an index can't be searched for a volatile value.
    v_before timestamptz := clock_timestamp() - prune_jobs_v1.older_than;
    v_allowed text[] := pljobs._allowed_queues('fetch');
    v_ids bigint[];
BEGIN
    IF prune_jobs_v1.older_than IS NULL OR prune_jobs_v1.older_than < interval '0'
       OR NOT coalesce(prune_jobs_v1.statuses <@ '{succeeded,failed,cancelled,aborted}', false) THEN
        RAISE EXCEPTION 'prune needs older_than, not negative, and statuses among succeeded, failed, '
                        'cancelled, aborted'
            USING ERRCODE = 'PJ004', HINT = 'For example: SELECT prune_jobs(interval ''7 days'');';
    END IF;
    SELECT array_agg(h.id) INTO v_ids
      FROM (SELECT j.id FROM pljobs.job AS j
             WHERE j.finished_at < v_before
               AND j.status = ANY (prune_jobs_v1.statuses)
               AND (prune_jobs_v1.queue IS NULL OR j.queue = prune_jobs_v1.queue)
               AND (v_allowed IS NULL OR j.queue = ANY (v_allowed))
             ORDER BY j.finished_at LIMIT prune_jobs_v1.max_jobs FOR UPDATE SKIP LOCKED) AS h;
    PERFORM pljobs._delete_jobs(v_ids);
    RETURN coalesce(cardinality(v_ids), 0)::bigint;
END
$$;
COMMENT ON FUNCTION pljobs.prune_jobs_v1(interval, text[], text, integer)
    IS 'Deletes a batch of old finished jobs. Driver contract, version 1.';

CREATE OR REPLACE FUNCTION pljobs.prune_jobs(
    older_than interval, statuses text[] DEFAULT '{succeeded,failed,cancelled,aborted}',
    queue text DEFAULT NULL, max_jobs integer DEFAULT 10000
) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- What prune_jobs_v1 does, for people and pg_cron.
BEGIN
    RETURN pljobs.prune_jobs_v1(prune_jobs.older_than, prune_jobs.statuses, prune_jobs.queue,
                                prune_jobs.max_jobs);
END
$$;
COMMENT ON FUNCTION pljobs.prune_jobs(interval, text[], text, integer)
    IS 'Deletes a batch of old finished jobs; returns how many: SELECT prune_jobs(interval ''7 days'');';

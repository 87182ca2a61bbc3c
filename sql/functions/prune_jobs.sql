CREATE OR REPLACE FUNCTION pljobs.prune_jobs_v1(
    older_than interval, statuses text[] DEFAULT '{succeeded,failed,cancelled,aborted}',
    queue text DEFAULT NULL, max_jobs integer DEFAULT 10000
) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- What prune_jobs_v2 does without an archive, always from the oldest on: returns how many are gone.
BEGIN
    RETURN (SELECT p.pruned FROM pljobs.prune_jobs_v2(prune_jobs_v1.older_than, prune_jobs_v1.statuses,
                                                      prune_jobs_v1.queue, prune_jobs_v1.max_jobs) AS p);
END
$$;
COMMENT ON FUNCTION pljobs.prune_jobs_v1(interval, text[], text, integer)
    IS 'Deletes a batch of old finished jobs. Driver contract, version 1.';

CREATE OR REPLACE FUNCTION pljobs.prune_jobs_v2(
    older_than interval, statuses text[] DEFAULT '{succeeded,failed,cancelled,aborted}',
    queue text DEFAULT NULL, max_jobs integer DEFAULT 10000, archive boolean DEFAULT false,
    since timestamptz DEFAULT NULL, OUT pruned bigint, OUT reached_at timestamptz
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
SET enable_sort = off
SET enable_bitmapscan = off
-- A worker's line must not wait for who holds the archive (drop_archive, in an open transaction).
SET lock_timeout = '500ms'
AS $$
-- succeeded, failed, cancelled, aborted -> gone, for jobs that finished longer than older_than ago, with one
-- of `statuses`, in `queue` (null: all), oldest first.  With `archive` they move to the archive, the view
-- pljobs.archive, in the same transaction. Returns how many, at most max_jobs: call again until it is 0, each
-- call in a transaction of its own, with `since` => the reached_at of the call before: then it does not pass
-- again over what those before it have deleted, and vacuum has not yet taken away (or over jobs of other
-- statuses). What somebody held, or finished late, it leaves to a call without `since`: once an hour, say.
-- A role limited to fetching from some queues prunes in these. The requests stay (prune_history_v2). Raises
-- PJ004 for a null or negative older_than, a max_jobs below 1, a status that is not final, or a null
-- `archive`; 55P03 if the archive is locked for more than 0.5 s. Locks those jobs, skipping those that
-- somebody holds; leaves jobs whose month has no partition yet while another is making one. Notifies nobody.
DECLARE
    -- Variables: an index can't be searched for a volatile value.
    v_before timestamptz := pljobs._ago(prune_jobs_v2.older_than);
    v_since timestamptz := coalesce(prune_jobs_v2.since, '-infinity');
    v_allowed text[] := pljobs._allowed_queues('fetch');
    v_ids bigint[];
    v_found integer;
BEGIN
    IF prune_jobs_v2.older_than IS NULL OR prune_jobs_v2.older_than < interval '0'
       OR NOT coalesce(prune_jobs_v2.statuses <@ '{succeeded,failed,cancelled,aborted}', false)
       OR prune_jobs_v2.archive IS NULL OR coalesce(prune_jobs_v2.max_jobs, 0) < 1 THEN
        RAISE EXCEPTION 'prune needs older_than, not negative, statuses among succeeded, failed, cancelled, '
                        'aborted, and max_jobs of at least 1; archive is true or false'
            USING ERRCODE = 'PJ004', HINT = 'For example: SELECT prune_jobs(interval ''7 days'');';
    END IF;
    SELECT coalesce(array_agg(h.id), '{}'), max(h.finished_at) INTO v_ids, reached_at
      FROM (SELECT j.id, j.finished_at FROM pljobs.job AS j
             WHERE j.finished_at >= v_since AND j.finished_at < v_before
               AND j.status = ANY (prune_jobs_v2.statuses)
               AND (prune_jobs_v2.queue IS NULL OR j.queue = prune_jobs_v2.queue)
               AND (v_allowed IS NULL OR j.queue = ANY (v_allowed))
             ORDER BY j.finished_at LIMIT prune_jobs_v2.max_jobs FOR UPDATE SKIP LOCKED) AS h;
    v_found := cardinality(v_ids);
    IF prune_jobs_v2.archive THEN
        v_ids := pljobs._archive_jobs(v_ids);
    END IF;
    PERFORM pljobs._delete_jobs(v_ids);
    pruned := cardinality(v_ids)::bigint;
    IF pruned < v_found THEN
        reached_at := prune_jobs_v2.since;
    ELSIF v_found < prune_jobs_v2.max_jobs THEN
        reached_at := greatest(v_before, v_since);
    END IF;
END
$$;
COMMENT ON FUNCTION pljobs.prune_jobs_v2(interval, text[], text, integer, boolean, timestamptz)
    IS 'Deletes or archives a batch of old finished jobs. Driver contract, version 2.';

CREATE OR REPLACE FUNCTION pljobs.prune_jobs(
    older_than interval, statuses text[] DEFAULT '{succeeded,failed,cancelled,aborted}',
    queue text DEFAULT NULL, max_jobs integer DEFAULT 10000, archive boolean DEFAULT false
) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- What prune_jobs_v2 does, for people and pg_cron, always from the oldest on: returns how many are gone, or
-- in the archive.
BEGIN
    RETURN (SELECT p.pruned FROM pljobs.prune_jobs_v2(prune_jobs.older_than, prune_jobs.statuses,
                                                      prune_jobs.queue, prune_jobs.max_jobs,
                                                      prune_jobs.archive) AS p);
END
$$;
COMMENT ON FUNCTION pljobs.prune_jobs(interval, text[], text, integer, boolean)
    IS 'Deletes or archives a batch of old finished jobs: SELECT prune_jobs(interval ''7 days'');';

CREATE OR REPLACE FUNCTION pljobs.rescue_jobs_v1(max_jobs integer DEFAULT 1000, max_crashes integer DEFAULT 3)
RETURNS TABLE (job_id bigint, outcome text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- doing under a worker whose lease ran out, or that is gone:  asked to abort -> aborted, or gone if deletion
-- was asked; lost fewer than max_crashes times -> todo;  else -> failed, 'worker lost N times'.  Returns each
-- job that it changed and what it became: todo, failed, aborted, deleted. Such workers are marked stopped:
-- they must register again.
-- Anybody may call it, as often as they like: one call works at a time, the others return nothing at once.
-- Raises PJ004 for a max_crashes or max_jobs below 1. Locks the jobs, skipping those that somebody holds,
-- then the workers. Notifies the queues' workers.
DECLARE
    v_ids bigint[];
    v_locks text[];
BEGIN
    IF coalesce(rescue_jobs_v1.max_jobs, 0) < 1 OR coalesce(rescue_jobs_v1.max_crashes, 0) < 1 THEN
        RAISE EXCEPTION 'max_jobs and max_crashes must be at least 1' USING ERRCODE = 'PJ004';
    END IF;
    IF NOT pg_try_advisory_xact_lock(hashtextextended('pljobs.rescue_jobs', 0)) THEN
        RETURN;
    END IF;
    SELECT array_agg(h.id ORDER BY h.queueing_lock, h.id), array_agg(h.lock) FILTER (WHERE h.lock IS NOT NULL)
      INTO v_ids, v_locks
      FROM (SELECT j.id, j.lock, j.queueing_lock FROM pljobs.job AS j
             WHERE j.status = 'doing' AND NOT EXISTS (
                   SELECT FROM pljobs.worker AS w
                    WHERE w.id = j.worker_id AND w.stopped_at IS NULL AND w.expires_at > clock_timestamp())
             ORDER BY j.id LIMIT rescue_jobs_v1.max_jobs FOR UPDATE OF j SKIP LOCKED) AS h;
    FOREACH job_id IN ARRAY coalesce(v_ids, '{}') LOOP
        outcome := pljobs._release_job(job_id, crashed => true, max_crashes => rescue_jobs_v1.max_crashes);
        RETURN NEXT;
    END LOOP;
    UPDATE pljobs.worker AS w SET stopped_at = clock_timestamp()
     WHERE w.stopped_at IS NULL AND w.expires_at <= clock_timestamp();
    -- Longer than a lease is: the clock was set back. A worker that has died since is lost by its lease.
    UPDATE pljobs.worker AS w SET expires_at = clock_timestamp() + w.lease
     WHERE w.stopped_at IS NULL AND w.expires_at > clock_timestamp() + w.lease;
    PERFORM pljobs._wake_lanes(v_locks, take_lane => true);
END
$$;
COMMENT ON FUNCTION pljobs.rescue_jobs_v1(integer, integer)
    IS 'Rescues the jobs of lost workers. Driver contract, version 1.';

CREATE OR REPLACE FUNCTION pljobs.rescue_jobs() RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- What rescue_jobs_v1 does, for people and pg_cron: returns how many jobs it rescued.
BEGIN
    RETURN (SELECT count(*) FROM pljobs.rescue_jobs_v1());
END
$$;
COMMENT ON FUNCTION pljobs.rescue_jobs()
    IS 'Rescues the jobs of lost workers; returns how many: SELECT rescue_jobs();';

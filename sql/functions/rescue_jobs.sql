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
-- A worker whose heartbeat or registration is under way is not lost: nothing of it is rescued.
-- Raises PJ004 for a max_crashes or max_jobs below 1. Locks the jobs, then the workers, skipping those that
-- somebody holds. Notifies the queues' workers.
DECLARE
    v_jobs bigint[];
    v_lost bigint[];
    v_ids bigint[];
    v_locks text[];
BEGIN
    IF coalesce(rescue_jobs_v1.max_jobs, 0) < 1 OR coalesce(rescue_jobs_v1.max_crashes, 0) < 1 THEN
        RAISE EXCEPTION 'max_jobs and max_crashes must be at least 1' USING ERRCODE = 'PJ004';
    END IF;
    IF NOT pg_try_advisory_xact_lock(hashtextextended('pljobs.rescue_jobs', 0)) THEN
        RETURN;
    END IF;
    v_jobs := ARRAY(
        SELECT j.id FROM pljobs.job AS j
         WHERE j.status = 'doing' AND NOT EXISTS (
               SELECT FROM pljobs.worker AS w
                WHERE w.id = j.worker_id AND w.stopped_at IS NULL AND w.expires_at > clock_timestamp())
         -- The order of the index of what runs, so that no statistics can make this walk all jobs.
         ORDER BY j.worker_id LIMIT rescue_jobs_v1.max_jobs FOR UPDATE OF j SKIP LOCKED);
    -- Locked, so that no heartbeat that is under way answers 'ok' for what is put back here.
    v_lost := ARRAY(
        SELECT w.id FROM pljobs.worker AS w
         WHERE w.stopped_at IS NULL AND w.expires_at <= clock_timestamp()
            OR w.stopped_at IS NOT NULL AND w.id IN (
               SELECT j.worker_id FROM pljobs.job AS j WHERE j.id = ANY (v_jobs))
         ORDER BY w.id FOR NO KEY UPDATE SKIP LOCKED);
    SELECT array_agg(j.id ORDER BY j.queueing_lock, j.id), array_agg(j.lock) FILTER (WHERE j.lock IS NOT NULL)
      INTO v_ids, v_locks
      FROM pljobs.job AS j
     WHERE j.id = ANY (v_jobs)
       AND (j.worker_id = ANY (v_lost)
            OR NOT EXISTS (SELECT FROM pljobs.worker AS w WHERE w.id = j.worker_id));
    FOREACH job_id IN ARRAY coalesce(v_ids, '{}') LOOP
        outcome := pljobs._release_job(job_id, crashed => true, max_crashes => rescue_jobs_v1.max_crashes);
        RETURN NEXT;
    END LOOP;
    UPDATE pljobs.worker AS w SET stopped_at = clock_timestamp()
     WHERE w.id = ANY (v_lost) AND w.stopped_at IS NULL;
    -- Longer than a lease is: the clock was set back. A worker that has died since is lost by its lease.
    UPDATE pljobs.worker AS w SET expires_at = clock_timestamp() + w.lease
     WHERE w.id = ANY (ARRAY(
           SELECT o.id FROM pljobs.worker AS o
            WHERE o.stopped_at IS NULL AND o.expires_at > clock_timestamp() + o.lease
            ORDER BY o.id FOR NO KEY UPDATE SKIP LOCKED));
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

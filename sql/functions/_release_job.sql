CREATE OR REPLACE FUNCTION pljobs._release_job(job_id bigint, crashed boolean, max_crashes integer)
RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
AS $$
-- doing under a worker that doesn't have it (any more):
-- asked to abort -> aborted or gone, request 'worker_lost'; by its timeout alone: as if not asked;
-- not crashed (the worker never received it) -> todo, attempt not charged;
-- crashed below the cap -> todo;  at the cap -> failed.
-- Returns todo, failed, aborted or deleted. Notifies workers of the room that it leaves, if it was throttled.
-- The caller has locked the job's row in an earlier statement (this one must see a request that committed
-- while the caller waited for the lock), and wakes its lane.
DECLARE
    v_job record;
BEGIN
    SELECT j.request_id, j.crashes, j.worker_id, r.source INTO v_job
      FROM pljobs.job AS j
      LEFT JOIN LATERAL (
           SELECT o.source FROM pljobs.request AS o WHERE o.id = j.request_id OFFSET 0) AS r ON true
     WHERE j.id = _release_job.job_id;
    IF v_job.source = 'deadline' THEN
        PERFORM pljobs._resolve_request(v_job.request_id, 'worker_lost');
    ELSIF v_job.request_id IS NOT NULL THEN
        RETURN pljobs._abort_job(
            _release_job.job_id, v_job.request_id, 'worker_lost',
            format('worker %s was lost while the job was asked to abort', v_job.worker_id));
    END IF;
    IF NOT _release_job.crashed THEN
        PERFORM pljobs._notify_room_of(_release_job.job_id);
        PERFORM pljobs._requeue_job(_release_job.job_id, 'given_back', 'the worker never received it', NULL,
                                    charged => false, crashes => v_job.crashes);
        RETURN 'todo';
    ELSIF v_job.crashes + 1 < _release_job.max_crashes THEN
        PERFORM pljobs._notify_room_of(_release_job.job_id);
        PERFORM pljobs._requeue_job(_release_job.job_id, 'rescued',
                                    format('worker %s was lost', v_job.worker_id), NULL,
                                    crashes => v_job.crashes + 1);
        RETURN 'todo';
    END IF;
    UPDATE pljobs.job AS j SET crashes = v_job.crashes + 1 WHERE j.id = _release_job.job_id;
    PERFORM pljobs._end_job(_release_job.job_id, 'failed', format('worker lost %s times', v_job.crashes + 1));
    RETURN 'failed';
END
$$;
COMMENT ON FUNCTION pljobs._release_job(bigint, boolean, integer)
    IS 'Ends a run whose worker doesn''t have it (any more).';

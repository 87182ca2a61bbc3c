CREATE OR REPLACE FUNCTION pljobs._end_job(
    job_id bigint, status text, message text, error text DEFAULT NULL, result jsonb DEFAULT NULL,
    ended_run_id bigint DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
AS $$
-- doing -> the given final status. `ended_run_id` is the run that ended by its own finish, null where
-- it was ended from outside: its finish is then answered 'stale', and workers are told if it was throttled.
-- The caller holds the job's row locked, has closed its request, and wakes its lane.
BEGIN
    IF _end_job.ended_run_id IS NULL THEN
        PERFORM pljobs._notify_room_of(_end_job.job_id);
    END IF;
    UPDATE pljobs.job AS j
       SET status = _end_job.status, finished_at = clock_timestamp(),
           run_id = NULL, request_id = NULL, timeout_at = NULL,
           last_run_id = coalesce(_end_job.ended_run_id, j.last_run_id),
           message = _end_job.message, error = _end_job.error, result = _end_job.result
     WHERE j.id = _end_job.job_id;
END
$$;
COMMENT ON FUNCTION pljobs._end_job(bigint, text, text, text, jsonb, bigint)
    IS 'Writes a job''s final status.';

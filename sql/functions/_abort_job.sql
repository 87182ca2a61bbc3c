CREATE OR REPLACE FUNCTION pljobs._resolve_request(request_id bigint, resolution text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Closes an open request. The caller holds the job's row locked, and lets it point there no longer.
BEGIN
    UPDATE pljobs.request AS r SET resolved_at = clock_timestamp(), resolution = _resolve_request.resolution
     WHERE r.id = _resolve_request.request_id;
END
$$;
COMMENT ON FUNCTION pljobs._resolve_request(bigint, text) IS 'Closes a request.';

CREATE OR REPLACE FUNCTION pljobs._abort_job(
    job_id bigint, request_id bigint, resolution text, message text, error text DEFAULT NULL,
    ended_run_id bigint DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET jit = off
AS $$
-- doing with an open request -> aborted, or gone if the request asks for deletion; the request is closed as
-- `resolution`, and the job's on_cancelled deferred.  Returns 'aborted' or 'deleted'. The caller holds the
-- job's row locked, and wakes its lane.
BEGIN
    PERFORM pljobs._resolve_request(_abort_job.request_id, _abort_job.resolution);
    PERFORM pljobs._defer_follow_ups(ARRAY[_abort_job.job_id], 'aborted', _abort_job.message);
    IF (SELECT r.delete_job FROM pljobs.request AS r WHERE r.id = _abort_job.request_id) THEN
        IF _abort_job.ended_run_id IS NULL THEN
            PERFORM pljobs._notify_room_of(_abort_job.job_id);
        END IF;
        PERFORM pljobs._delete_jobs(ARRAY[_abort_job.job_id]);
        RETURN 'deleted';
    END IF;
    PERFORM pljobs._end_job(_abort_job.job_id, 'aborted', _abort_job.message, _abort_job.error,
                            ended_run_id => _abort_job.ended_run_id);
    RETURN 'aborted';
END
$$;
COMMENT ON FUNCTION pljobs._abort_job(bigint, bigint, text, text, text, bigint)
    IS 'Ends a running job as its abort request asks.';

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
-- `resolution`.  Returns 'aborted' or 'deleted'. The caller holds the job's row locked, and wakes its lane.
DECLARE
    v_delete_job boolean;
BEGIN
    UPDATE pljobs.request AS r SET resolved_at = clock_timestamp(), resolution = _abort_job.resolution
     WHERE r.id = _abort_job.request_id RETURNING r.delete_job INTO v_delete_job;
    IF v_delete_job THEN
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

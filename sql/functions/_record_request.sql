CREATE OR REPLACE FUNCTION pljobs._record_request(
    kind text, job_id bigint, queue text, task text, reason text, actor text, resolution text,
    delete_job boolean DEFAULT false, force boolean DEFAULT false, run_id bigint DEFAULT NULL,
    worker_id bigint DEFAULT NULL, source text DEFAULT 'user', sql_at timestamptz DEFAULT NULL,
    term_at timestamptz DEFAULT NULL, kill_at timestamptz DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Writes one row of the audit trail and returns its id; `resolution` null leaves it open. A reason or actor
-- longer than 1,000 characters is cut: nobody is kept from stopping a job by the length of the explanation.
DECLARE
    v_now timestamptz := clock_timestamp();
    v_id bigint;
BEGIN
    INSERT INTO pljobs.request (
        kind, job_id, run_id, worker_id, requested_at, resolved_at, resolution, delete_job, force,
        queue, task, requested_by, actor, reason, source, sql_at, term_at, kill_at)
    VALUES (
        _record_request.kind, _record_request.job_id, _record_request.run_id, _record_request.worker_id,
        v_now, CASE WHEN _record_request.resolution IS NOT NULL THEN v_now END, _record_request.resolution,
        _record_request.delete_job, _record_request.force, _record_request.queue, _record_request.task,
        pljobs._caller(), left(_record_request.actor, 1000), left(_record_request.reason, 1000),
        _record_request.source, _record_request.sql_at, _record_request.term_at, _record_request.kill_at)
    RETURNING id INTO v_id;
    RETURN v_id;
END
$$;
COMMENT ON FUNCTION pljobs._record_request(
    text, bigint, text, text, text, text, text, boolean, boolean, bigint, bigint, text, timestamptz,
    timestamptz, timestamptz
) IS 'Writes one row of the audit trail.';

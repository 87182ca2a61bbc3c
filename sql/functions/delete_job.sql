CREATE OR REPLACE FUNCTION pljobs.delete_job_v1(
    job_id bigint, reason text DEFAULT NULL, actor text DEFAULT NULL, OUT outcome text, OUT status text
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- succeeded, failed, cancelled, aborted -> gone, 'deleted'; the requests about it stay.  todo -> unchanged,
-- 'todo' (cancel it: cancel_job with delete_job).  doing -> unchanged, 'running'.  Unknown id, or another's
-- job for who is no operator -> 'not_found'. `status` is the one before, null for an unknown id. Locks the
-- job. Notifies nobody.
DECLARE
    v_own text[] := pljobs._own_roles('pljobs_operator');
    v_job record;
BEGIN
    SELECT j.status, j.queue, j.task INTO v_job
      FROM pljobs.job AS j
     WHERE j.id = delete_job_v1.job_id AND (v_own IS NULL OR j.deferred_by = ANY (v_own)) FOR UPDATE;
    status := v_job.status;
    IF status IS NULL THEN
        outcome := 'not_found';
    ELSIF status = 'todo' THEN
        outcome := 'todo';
    ELSIF status = 'doing' THEN
        outcome := 'running';
    ELSE
        outcome := 'deleted';
        PERFORM pljobs._record_request('delete', delete_job_v1.job_id, v_job.queue, v_job.task,
                                       delete_job_v1.reason, delete_job_v1.actor, 'deleted', true);
        PERFORM pljobs._delete_jobs(ARRAY[delete_job_v1.job_id]);
    END IF;
END
$$;
COMMENT ON FUNCTION pljobs.delete_job_v1(bigint, text, text)
    IS 'Deletes a finished job. Driver contract, version 1.';

CREATE OR REPLACE FUNCTION pljobs.delete_job(job_id bigint, reason text DEFAULT NULL, actor text DEFAULT NULL)
RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- What delete_job_v1 does, for people: returns its outcome, one word, and a NOTICE for a job that isn't
-- finished.
DECLARE
    v_outcome text;
BEGIN
    SELECT d.outcome INTO v_outcome
      FROM pljobs.delete_job_v1(delete_job.job_id, delete_job.reason, delete_job.actor) AS d;
    IF v_outcome IN ('todo', 'running') THEN
        RAISE NOTICE 'job % is not finished, and was left alone; to stop and delete it: '
                     'SELECT cancel_job(%, abort => true, delete_job => true);',
            delete_job.job_id, delete_job.job_id;
    END IF;
    RETURN v_outcome;
END
$$;
COMMENT ON FUNCTION pljobs.delete_job(bigint, text, text) IS 'Deletes a finished job: SELECT delete_job(33);';

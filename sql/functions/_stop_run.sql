CREATE OR REPLACE FUNCTION pljobs._stop_run(
    job_id bigint, source text, reason text, actor text, delete_job boolean, force boolean,
    sql_at timestamptz, term_at timestamptz, kill_at timestamptz, sql boolean,
    OUT outcome text, OUT request_id bigint, OUT sql_way text
)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- doing -> doing with an open request, 'abort_requested' or 'abort_already_requested'; `force` -> aborted or
-- gone, 'aborted' or 'deleted'; `sql`: the job's SQL is cancelled as well, and sql_way says how that went.
-- See cancel_job_v1. The caller holds the job's row locked, and wakes its lane.
BEGIN
    SELECT a.outcome, a.request_id INTO outcome, request_id
      FROM pljobs._ask_to_abort(
           _stop_run.job_id, _stop_run.source, _stop_run.reason, _stop_run.actor, _stop_run.delete_job,
           _stop_run.force, _stop_run.sql_at, _stop_run.term_at, _stop_run.kill_at) AS a;
    IF _stop_run.sql THEN
        -- Asked again, it begins anew: what was hit before is not what runs now.
        UPDATE pljobs.request AS r SET sql_way = NULL
         WHERE r.id = _stop_run.request_id AND r.sql_way IS NOT NULL;
        sql_way := pljobs._cancel_sql_of_request(_stop_run.request_id);
    END IF;
    IF _stop_run.force THEN
        outcome := pljobs._abort_job(_stop_run.job_id, _stop_run.request_id, 'forced',
                                     coalesce(left(_stop_run.reason, 1000), 'aborted by force'));
    END IF;
END
$$;
COMMENT ON FUNCTION pljobs._stop_run(
    bigint, text, text, text, boolean, boolean, timestamptz, timestamptz, timestamptz, boolean
) IS 'Asks a running job to stop, or ends it by force.';

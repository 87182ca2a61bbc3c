-- Who may do what. Nobody is granted anything on a table; PUBLIC is granted nothing at all. The groups are
-- those that roles.sql makes; where one doesn't exist, its grants are left out, and a later install adds
-- them. They are siblings: none is a member of another. The owner of the schema may do everything.
CREATE OR REPLACE FUNCTION pljobs._privileges() RETURNS TABLE (kind text, name text, grantees text[])
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- The functions and views that are for others than the owner, and the groups that each is granted to.
DECLARE
    c_all CONSTANT text[] := '{pljobs_reader,pljobs_producer,pljobs_worker,pljobs_canceller,pljobs_operator}';
    c_defer CONSTANT text[] := '{pljobs_producer,pljobs_operator}';
    c_cancel CONSTANT text[] := '{pljobs_producer,pljobs_canceller,pljobs_operator}';
    c_read CONSTANT text[] := '{pljobs_reader,pljobs_producer,pljobs_canceller,pljobs_operator}';
    c_work CONSTANT text[] := '{pljobs_worker,pljobs_operator}';
    c_look CONSTANT text[] := '{pljobs_reader,pljobs_worker,pljobs_canceller,pljobs_operator}';
    c_operate CONSTANT text[] := '{pljobs_operator}';
BEGIN
    RETURN QUERY VALUES
        ('schema', 'pljobs', c_all),
        ('function', 'get_contract_v1', c_all),
        -- Defer, and put back: a producer its own jobs.
        ('function', 'defer_job', c_defer), ('function', 'defer_jobs_v1', c_defer),
        ('function', 'defer_jobs_v2', c_defer),
        ('function', 'delete_job', c_defer), ('function', 'delete_job_v1', c_defer),
        ('function', 'retry_job', c_defer), ('function', 'retry_job_v1', c_defer),
        ('function', 'retry_jobs', c_defer), ('function', 'retry_jobs_v1', c_defer),
        -- Cancel: a producer its own jobs.
        ('function', 'cancel_job', c_cancel), ('function', 'cancel_job_v1', c_cancel),
        ('function', 'cancel_jobs', c_cancel), ('function', 'cancel_jobs_v1', c_cancel),
        ('function', 'cancel_jobs_in_batches', c_cancel),
        ('function', 'cancel_tree', c_cancel), ('function', 'cancel_tree_v1', c_cancel),
        ('function', 'rescind_request', c_cancel), ('function', 'rescind_request_v1', c_cancel),
        -- What became of a job: a producer of its own.
        ('function', 'get_job_statuses_v1', c_read), ('function', 'get_resolutions_v1', c_read),
        ('function', 'wait_for_job', c_read),
        -- Run jobs, and keep house.
        ('function', 'register_worker_v1', c_work), ('function', 'register_worker_v2', c_work),
        ('function', 'unregister_worker_v1', c_work), ('function', 'fetch_jobs_v1', c_work),
        ('function', 'finish_jobs_v1', c_work), ('function', 'finish_job_v1', c_work), ('function', 'heartbeat_v1', c_work),
        ('function', 'enter_sql_v1', c_work), ('function', 'leave_sql_v1', c_work),
        ('function', 'cancel_sql_v1', c_work), ('function', 'defer_periodic_job_v1', c_work),
        ('function', 'rescue_jobs', c_work), ('function', 'rescue_jobs_v1', c_work),
        ('function', 'enforce_limits', c_work), ('function', 'enforce_limits_v1', c_work),
        ('function', 'wake_lanes_v1', c_work), ('function', 'prune_jobs', c_work),
        ('function', 'prune_jobs_v1', c_work), ('function', 'prune_history_v1', c_work),
        -- Operate.
        ('function', 'pause_queue', c_operate), ('function', 'pause_queue_v1', c_operate),
        ('function', 'resume_queue', c_operate), ('function', 'resume_queue_v1', c_operate),
        ('function', 'limit_queues', c_operate),
        ('function', 'check_install', '{pljobs_reader,pljobs_operator}'),
        -- Look. Which rows, and how much of them, is decided in views.sql.
        ('view', 'jobs', c_read), ('view', 'history', c_read), ('view', 'requests', c_read),
        ('view', 'stuck_aborts', c_read), ('view', 'stalled_jobs', c_read),
        ('view', 'queues', c_all), ('view', 'workers', c_look),
        ('view', 'queue_limits', c_operate);
END
$$;
COMMENT ON FUNCTION pljobs._privileges() IS 'Who is granted what.';

REVOKE ALL ON SCHEMA pljobs FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA pljobs FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA pljobs FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA pljobs FROM PUBLIC;

DO $$
DECLARE
    v_grant record;
BEGIN
    -- What an earlier release, or somebody by hand, has granted to the groups beyond the list.
    FOR v_grant IN
        SELECT r.rolname FROM pg_catalog.pg_roles AS r
         WHERE r.rolname IN ('pljobs_reader', 'pljobs_producer', 'pljobs_worker', 'pljobs_canceller',
                             'pljobs_operator')
    LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON ALL ROUTINES IN SCHEMA pljobs FROM %I', v_grant.rolname);
        EXECUTE pg_catalog.format('REVOKE ALL ON ALL TABLES IN SCHEMA pljobs FROM %I', v_grant.rolname);
        EXECUTE pg_catalog.format('REVOKE ALL ON ALL SEQUENCES IN SCHEMA pljobs FROM %I', v_grant.rolname);
        EXECUTE pg_catalog.format('REVOKE ALL ON SCHEMA pljobs FROM %I', v_grant.rolname);
    END LOOP;
    FOR v_grant IN
        SELECT CASE g.kind WHEN 'schema' THEN 'USAGE ON SCHEMA pljobs'
                           WHEN 'view' THEN pg_catalog.format('SELECT ON pljobs.%I', g.name)
                           ELSE pg_catalog.format('EXECUTE ON ROUTINE %s', p.oid::regprocedure) END AS what,
               r.rolname AS grantee
          FROM pljobs._privileges() AS g
         CROSS JOIN LATERAL pg_catalog.unnest(g.grantees) AS t(grantee)
          JOIN pg_catalog.pg_roles AS r ON r.rolname = t.grantee
          LEFT JOIN pg_catalog.pg_proc AS p
            ON g.kind = 'function' AND p.proname = g.name AND p.pronamespace = 'pljobs'::regnamespace
         ORDER BY 1, 2
    LOOP
        EXECUTE pg_catalog.format('GRANT %s TO %I', v_grant.what, v_grant.grantee);
    END LOOP;
END
$$;

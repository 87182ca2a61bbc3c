-- Who may do what. Nobody is granted anything on a table; PUBLIC is granted nothing at all. The groups are
-- those that roles.sql makes; where one doesn't exist, its grants are left out, and a later install adds
-- them. They are siblings: none is a member of another. The owner of the schema may do everything.
CREATE OR REPLACE FUNCTION pljobs._privileges() RETURNS TABLE (kind text, name text, grantees text[])
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- The functions and views that are for others than the owner, and the groups that each is granted to.
DECLARE
    c_all CONSTANT text[] := ARRAY[
        'pljobs_reader', 'pljobs_producer', 'pljobs_worker', 'pljobs_canceller', 'pljobs_operator'];
    c_defer CONSTANT text[] := ARRAY['pljobs_producer', 'pljobs_operator'];
    c_cancel CONSTANT text[] := ARRAY['pljobs_producer', 'pljobs_canceller', 'pljobs_operator'];
    c_read CONSTANT text[] := ARRAY[
        'pljobs_reader', 'pljobs_producer', 'pljobs_canceller', 'pljobs_operator'];
    c_work CONSTANT text[] := ARRAY['pljobs_worker', 'pljobs_operator'];
    c_look CONSTANT text[] := ARRAY['pljobs_reader', 'pljobs_worker', 'pljobs_canceller', 'pljobs_operator'];
    c_watch CONSTANT text[] := ARRAY['pljobs_reader', 'pljobs_operator'];
    c_operate CONSTANT text[] := ARRAY['pljobs_operator'];
BEGIN
    RETURN QUERY VALUES
        ('schema', 'pljobs', c_all),
        ('function', 'get_contract_v1', c_all),
        -- Defer, and put back: a producer its own jobs.
        ('function', 'defer_job', c_defer), ('function', 'defer_jobs_v1', c_defer),
        ('function', 'defer_jobs_v2', c_defer), ('function', 'defer_jobs_v3', c_defer),
        ('function', 'notify_queues_v1', c_defer),
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
        ('function', 'next_fetch_v1', c_work),
        ('function', 'finish_jobs_v1', c_work), ('function', 'finish_job_v1', c_work),
        ('function', 'heartbeat_v1', c_work),
        ('function', 'enter_sql_v1', c_work), ('function', 'leave_sql_v1', c_work),
        ('function', 'cancel_sql_v1', c_work), ('function', 'defer_periodic_job_v1', c_work),
        ('function', 'rescue_jobs', c_work), ('function', 'rescue_jobs_v1', c_work),
        ('function', 'enforce_limits', c_work), ('function', 'enforce_limits_v1', c_work),
        ('function', 'wake_lanes_v1', c_work), ('function', 'prune_jobs', c_work),
        ('function', 'prune_jobs_v1', c_work), ('function', 'prune_jobs_v2', c_work),
        ('function', 'prune_history_v1', c_work), ('function', 'prune_history_v2', c_work),
        -- Operate.
        ('function', 'pause_queue', c_operate), ('function', 'pause_queue_v1', c_operate),
        ('function', 'resume_queue', c_operate), ('function', 'resume_queue_v1', c_operate),
        ('function', 'limit_queues', c_operate), ('function', 'drop_archive', c_operate),
        ('function', 'throttle_queue', c_operate), ('function', 'throttle_queue_v1', c_operate),
        ('function', 'throttle_task', c_operate), ('function', 'throttle_task_v1', c_operate),
        ('function', 'check_install', c_watch),
        -- Look. Which rows, and how much of them, is decided in views.sql.
        ('view', 'jobs', c_read), ('view', 'archive', c_read),
        ('view', 'history', c_read), ('view', 'requests', c_read),
        ('view', 'stuck_aborts', c_read), ('view', 'stalled_jobs', c_read),
        ('view', 'queues', c_all), ('view', 'throttles', c_all), ('view', 'workers', c_look),
        ('view', 'queue_limits', c_operate),
        ('view', 'health', c_watch);
END
$$;
COMMENT ON FUNCTION pljobs._privileges() IS 'Who is granted what.';

DO $$
DECLARE
    v_owner oid := (SELECT n.nspowner FROM pg_catalog.pg_namespace AS n WHERE n.nspname = 'pljobs');
    v_change record;
BEGIN
    -- What PUBLIC has; what an earlier release, or somebody by hand, has granted to the groups beyond the
    -- list; and whatever those have whom the owner's default privileges name, for these speak of the owner's
    -- own tables and functions. With what they have passed on. (Of objects that are not the owner's
    -- check_install() tells.)
    FOR v_change IN
        WITH granted AS (
            SELECT 'schema' AS kind, n.nspname::text AS name, 'SCHEMA pljobs' AS what, a.grantee,
                   a.privilege_type, a.is_grantable
              FROM pg_catalog.pg_namespace AS n
             CROSS JOIN LATERAL pg_catalog.aclexplode(n.nspacl) AS a
             WHERE n.nspname = 'pljobs'
            UNION ALL
            SELECT 'function', p.proname, pg_catalog.format('ROUTINE %s', p.oid::regprocedure), a.grantee,
                   a.privilege_type, a.is_grantable
              FROM pg_catalog.pg_proc AS p
             CROSS JOIN LATERAL pg_catalog.aclexplode(
                   coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) AS a
             WHERE p.pronamespace = 'pljobs'::regnamespace AND p.proowner = v_owner
            UNION ALL
            SELECT CASE c.relkind WHEN 'v' THEN 'view' END, c.relname,
                   pg_catalog.format('%s %s', CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END,
                                     c.oid::regclass),
                   a.grantee, a.privilege_type, a.is_grantable
              FROM pg_catalog.pg_class AS c
             CROSS JOIN LATERAL (
                   SELECT t.grantee, t.privilege_type, t.is_grantable
                     FROM pg_catalog.aclexplode(c.relacl) AS t
                   UNION ALL
                   SELECT t.grantee, 'some columns', false
                     FROM pg_catalog.pg_attribute AS b
                    CROSS JOIN LATERAL pg_catalog.aclexplode(b.attacl) AS t WHERE b.attrelid = c.oid) AS a
             WHERE c.relnamespace = 'pljobs'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S')
               AND c.relowner = v_owner
        )
        SELECT DISTINCT g.what, CASE WHEN g.grantee = 0 THEN 'PUBLIC'
                                     ELSE pg_catalog.quote_ident(r.rolname) END AS grantee
          FROM granted AS g LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = g.grantee
         WHERE g.grantee <> v_owner
           AND (g.grantee = 0 OR r.rolname IN ('pljobs_reader', 'pljobs_producer', 'pljobs_worker',
                                               'pljobs_canceller', 'pljobs_operator')
                OR g.grantee IN (SELECT a.grantee FROM pg_catalog.pg_default_acl AS d
                                  CROSS JOIN LATERAL pg_catalog.aclexplode(d.defaclacl) AS a
                                  WHERE d.defaclrole = v_owner))
           AND NOT EXISTS (
               SELECT FROM pljobs._privileges() AS l
                WHERE l.kind = g.kind AND l.name = g.name AND r.rolname = ANY (l.grantees)
                  AND NOT g.is_grantable
                  AND g.privilege_type = CASE l.kind WHEN 'schema' THEN 'USAGE' WHEN 'view' THEN 'SELECT'
                                                     ELSE 'EXECUTE' END)
         ORDER BY 1, 2
    LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON %s FROM %s CASCADE', v_change.what, v_change.grantee);
    END LOOP;

    -- Only what is missing: at this moment workers may be waiting.
    FOR v_change IN
        WITH listed AS (
            SELECT 'USAGE' AS privilege, 'SCHEMA pljobs' AS what, l.grantees, n.nspacl AS acl
              FROM pljobs._privileges() AS l JOIN pg_catalog.pg_namespace AS n ON n.nspname = l.name
             WHERE l.kind = 'schema'
            UNION ALL
            SELECT 'EXECUTE', pg_catalog.format('ROUTINE %s', p.oid::regprocedure), l.grantees, p.proacl
              FROM pljobs._privileges() AS l JOIN pg_catalog.pg_proc AS p ON p.proname = l.name
             WHERE l.kind = 'function' AND p.pronamespace = 'pljobs'::regnamespace
            UNION ALL
            SELECT 'SELECT', pg_catalog.format('TABLE %s', c.oid::regclass), l.grantees, c.relacl
              FROM pljobs._privileges() AS l JOIN pg_catalog.pg_class AS c ON c.relname = l.name
             WHERE l.kind = 'view' AND c.relnamespace = 'pljobs'::regnamespace
        )
        SELECT l.privilege, l.what, r.rolname AS grantee
          FROM listed AS l
         CROSS JOIN LATERAL pg_catalog.unnest(l.grantees) AS t(grantee)
          JOIN pg_catalog.pg_roles AS r ON r.rolname = t.grantee
         WHERE NOT EXISTS (SELECT FROM pg_catalog.aclexplode(l.acl) AS a
                            WHERE a.grantee = r.oid AND a.privilege_type = l.privilege)
         ORDER BY 1, 2, 3
    LOOP
        EXECUTE pg_catalog.format('GRANT %s ON %s TO %I', v_change.privilege, v_change.what,
                                  v_change.grantee);
    END LOOP;
END
$$;

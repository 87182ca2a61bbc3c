-- Who may do what. Nobody is granted anything on a table; PUBLIC is granted nothing at all. The roles below
-- are groups that roles.sql makes; where one doesn't exist, its grants are left out. Whoever installs owns
-- everything, and may do everything.
--
--   pljobs_reader     views, without arguments, results and errors; wait for a job
--   pljobs_producer   defer, and see, cancel, delete and retry jobs
--   pljobs_worker     run jobs: register, fetch, finish, heartbeat, rescue
--   pljobs_canceller  cancel and abort any job; see ids, states, requests (and, cancelling by filter, find
--                     out which jobs have arguments that it names)
--   pljobs_operator   all of it
REVOKE ALL ON SCHEMA pljobs FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA pljobs FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA pljobs FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA pljobs FROM PUBLIC;

DO $$
DECLARE
    v_reader text[] := '{get_job_statuses_v1,get_resolutions_v1,wait_for_job}';
    v_canceller text[] := v_reader || '{cancel_job,cancel_job_v1,cancel_jobs,cancel_jobs_v1,
                                        cancel_jobs_in_batches,cancel_tree,cancel_tree_v1,
                                        rescind_request,rescind_request_v1}'::text[];
    v_producer text[] := v_canceller || '{defer_job,defer_jobs_v1,delete_job,delete_job_v1,
                                          retry_job,retry_job_v1,retry_jobs,retry_jobs_v1}'::text[];
    v_worker text[] := '{register_worker_v1,unregister_worker_v1,fetch_jobs_v1,finish_jobs_v1,heartbeat_v1,
                         rescue_jobs,rescue_jobs_v1,enforce_limits,enforce_limits_v1,wake_lanes_v1,
                         enter_sql_v1,leave_sql_v1,cancel_sql_v1,defer_periodic_job_v1,
                         prune_jobs,prune_jobs_v1,prune_history_v1}';
    v_operator text[] := v_producer || v_worker
                         || '{pause_queue,pause_queue_v1,resume_queue,resume_queue_v1}'::text[];
    -- Without arguments, results and errors, locks and who deferred it.
    v_jobs text := 'SELECT (id, status, waiting_for, queue, task, priority, attempts, crashes, created_at, '
                   'scheduled_at, started_at, finished_at, worker_id, run_id, abort_requested, '
                   'abort_requested_at, parent_id, start_by, timeout, timeout_at, progress, progress_at) '
                   'ON pljobs.jobs';
    v_grant record;
BEGIN
    FOR v_grant IN
        SELECT g.role, p.oid::regprocedure AS routine
          FROM (VALUES ('pljobs_reader', v_reader), ('pljobs_producer', v_producer),
                       ('pljobs_worker', v_worker), ('pljobs_canceller', v_canceller),
                       ('pljobs_operator', v_operator))
               AS g(role, functions)
          JOIN pg_catalog.pg_roles AS r ON r.rolname = g.role
          JOIN pg_catalog.pg_proc AS p ON p.proname = ANY (g.functions)
         WHERE p.pronamespace = 'pljobs'::regnamespace
         ORDER BY 1, 2
    LOOP
        EXECUTE pg_catalog.format('GRANT EXECUTE ON ROUTINE %s TO %I', v_grant.routine, v_grant.role);
    END LOOP;

    FOR v_grant IN
        SELECT g.role, g.what
          FROM (VALUES
                ('pljobs_reader', 'USAGE ON SCHEMA pljobs'), ('pljobs_producer', 'USAGE ON SCHEMA pljobs'),
                ('pljobs_worker', 'USAGE ON SCHEMA pljobs'), ('pljobs_canceller', 'USAGE ON SCHEMA pljobs'),
                ('pljobs_operator', 'USAGE ON SCHEMA pljobs'),
                ('pljobs_producer', 'SELECT ON pljobs.jobs, pljobs.queues, pljobs.history'),
                ('pljobs_operator', 'SELECT ON pljobs.jobs, pljobs.workers, pljobs.queues, pljobs.requests, '
                                    'pljobs.stalled_jobs, pljobs.stuck_aborts, pljobs.history'),
                ('pljobs_worker', 'SELECT ON pljobs.workers, pljobs.queues'),
                ('pljobs_reader', 'SELECT ON pljobs.workers, pljobs.queues, pljobs.requests, '
                                  'pljobs.stuck_aborts'),
                ('pljobs_reader', v_jobs),
                ('pljobs_canceller', 'SELECT ON pljobs.requests, pljobs.stuck_aborts'),
                ('pljobs_canceller', v_jobs))
               AS g(role, what)
          JOIN pg_catalog.pg_roles AS r ON r.rolname = g.role
    LOOP
        EXECUTE pg_catalog.format('GRANT %s TO %I', v_grant.what, v_grant.role);
    END LOOP;
END
$$;

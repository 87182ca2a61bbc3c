-- What every test file starts from: jobs in each state, made by the public functions alone. To be included inside the
-- file's transaction: all of it is rolled back. The schema is this session's own, so that files run side by side; every
-- fixture makes names of its own, so that no test meets another's queue, lane or lock.
\encoding UTF8
\set QUIET 1
\set ON_ERROR_ROLLBACK 0
\set ON_ERROR_STOP 1
SET LOCAL client_min_messages = warning;
SET LOCAL TIME ZONE 'UTC';
SELECT 'test_' || pg_catalog.pg_backend_pid() AS test_schema \gset
CREATE SCHEMA :test_schema;
SELECT pg_catalog.set_config('search_path', :'test_schema' || ', ' || pg_catalog.current_setting('search_path'), true) \g /dev/null

CREATE SEQUENCE name_number;

CREATE FUNCTION a_name(what text) RETURNS text
LANGUAGE sql VOLATILE
RETURN format('%s %s.%s', what, pg_backend_pid(), nextval('name_number'));

-- Its lease lasts longer than any test, on the slowest machine.
CREATE FUNCTION a_worker(lease interval DEFAULT '1 h') RETURNS bigint
LANGUAGE sql VOLATILE
RETURN pljobs.register_worker_v1('tests', 'here', pg_backend_pid(), lease => lease);

-- As if its heartbeats had stopped some time ago. Ages the row, never the clock.
CREATE FUNCTION lose_worker(worker_id bigint) RETURNS void
LANGUAGE sql VOLATILE
AS $$
UPDATE pljobs.worker AS w SET heartbeat_at = w.heartbeat_at - interval '1 h', expires_at = w.expires_at - interval '1 h'
 WHERE w.id = lose_worker.worker_id;
$$;

-- As if all of these runs had begun an hour earlier.
CREATE FUNCTION age_runs(VARIADIC run_ids bigint[]) RETURNS void
LANGUAGE sql VOLATILE
AS $$
UPDATE pljobs.job AS j SET started_at = j.started_at - interval '1 h' WHERE j.run_id = ANY (age_runs.run_ids);
$$;

CREATE FUNCTION a_todo_job(
    lock text DEFAULT NULL, queueing_lock text DEFAULT NULL, queue text DEFAULT a_name('queue'), priority integer DEFAULT 0,
    scheduled_at timestamptz DEFAULT NULL, task text DEFAULT 'a task'
) RETURNS bigint
LANGUAGE sql VOLATILE
RETURN pljobs.defer_job(a_todo_job.task, '{"a": 1}', a_todo_job.queue, a_todo_job.priority, a_todo_job.lock,
                        a_todo_job.queueing_lock, a_todo_job.scheduled_at);

CREATE FUNCTION a_scheduled_job(queue text DEFAULT a_name('queue')) RETURNS bigint
LANGUAGE sql VOLATILE
RETURN a_todo_job(queue => a_scheduled_job.queue, scheduled_at => clock_timestamp() + interval '1 day');

-- Starts the job, which must be the first of its queue; returns its run.
CREATE FUNCTION start_job(job_id bigint, worker_id bigint DEFAULT a_worker()) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_fetched record;
BEGIN
    SELECT f.job_id, f.run_id INTO v_fetched
      FROM pljobs.job AS j, LATERAL pljobs.fetch_jobs_v1(start_job.worker_id, queues => ARRAY[j.queue]) AS f
     WHERE j.id = start_job.job_id;
    IF v_fetched.job_id IS DISTINCT FROM start_job.job_id THEN
        RAISE EXCEPTION 'start_job(%) started %', start_job.job_id, v_fetched.job_id;
    END IF;
    RETURN v_fetched.run_id;
END
$$;

CREATE FUNCTION a_doing_job(
    lock text DEFAULT NULL, queueing_lock text DEFAULT NULL, OUT job_id bigint, OUT run_id bigint, OUT worker_id bigint
)
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    worker_id := a_worker();
    job_id := a_todo_job(a_doing_job.lock, a_doing_job.queueing_lock);
    run_id := start_job(job_id, worker_id);
END
$$;

-- Running, and asked to abort.
CREATE FUNCTION an_aborting_job(
    delete_job boolean DEFAULT false, OUT job_id bigint, OUT run_id bigint, OUT worker_id bigint, OUT request_id bigint
)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_job record := a_doing_job();
BEGIN
    job_id := v_job.job_id;
    run_id := v_job.run_id;
    worker_id := v_job.worker_id;
    SELECT c.request_id INTO request_id FROM pljobs.cancel_job_v1(
        v_job.job_id, abort => true, delete_job => an_aborting_job.delete_job, reason => 'a reason', actor => 'an actor') AS c;
END
$$;

-- Running for longer than its timeout; nobody has noticed yet.
CREATE FUNCTION a_late_job(grace interval DEFAULT NULL, OUT job_id bigint, OUT run_id bigint, OUT worker_id bigint)
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    worker_id := a_worker();
    job_id := pljobs.defer_job('a task', queue => a_name('queue'), timeout => '1 h', grace => a_late_job.grace);
    run_id := start_job(job_id, worker_id);
    PERFORM age_timeouts(run_id);
END
$$;

-- As if all of these runs had been given their time two hours earlier.
CREATE FUNCTION age_timeouts(VARIADIC run_ids bigint[]) RETURNS void
LANGUAGE sql VOLATILE
AS $$
UPDATE pljobs.job AS j SET timeout_at = j.timeout_at - interval '2 h' WHERE j.run_id = ANY (age_timeouts.run_ids);
$$;

-- Running, and asked to abort by its timeout alone.
CREATE FUNCTION a_timed_out_job(OUT job_id bigint, OUT run_id bigint, OUT worker_id bigint, OUT request_id bigint)
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    SELECT d.job_id, d.run_id, d.worker_id INTO job_id, run_id, worker_id FROM a_late_job() AS d;
    PERFORM pljobs.heartbeat_v1(a_timed_out_job.worker_id, ARRAY[a_timed_out_job.run_id]);
    SELECT j.request_id INTO request_id FROM pljobs.job AS j WHERE j.id = a_timed_out_job.job_id;
END
$$;

-- As if the request had been made earlier by that much, and all that follows from it.
CREATE FUNCTION age_request(request_id bigint, by_ interval) RETURNS void
LANGUAGE sql VOLATILE
AS $$
UPDATE pljobs.request AS r SET requested_at = r.requested_at - by_, delivered_at = r.delivered_at - by_, sql_at = r.sql_at - by_, term_at = r.term_at - by_, kill_at = r.kill_at - by_
 WHERE r.id = age_request.request_id;
$$;

-- A job that waits, deferred inside of another.
CREATE FUNCTION a_child_of(parent_id bigint, lock text DEFAULT NULL, queue text DEFAULT a_name('queue'), on_cancelled text DEFAULT NULL) RETURNS bigint
LANGUAGE sql VOLATILE
RETURN pljobs.defer_job('a child', '{"a": 1}', a_child_of.queue, lock => a_child_of.lock, parent_id => a_child_of.parent_id, on_cancelled => a_child_of.on_cancelled);

-- What one run's worker is told of it.
CREATE FUNCTION verdict_of(worker_id bigint, run_id bigint, observed jsonb DEFAULT '[]', OUT verdict text, OUT level smallint, OUT look_in interval, OUT sql_way text, OUT source text, OUT term_at timestamptz)
LANGUAGE sql VOLATILE
AS $$
SELECT h.verdict, h.level, h.look_in, h.sql_way, h.source, h.term_at FROM pljobs.heartbeat_v1(verdict_of.worker_id, ARRAY[verdict_of.run_id], verdict_of.observed) AS h WHERE h.run_id = verdict_of.run_id;
$$;

-- Finishes one run; returns the status written.
CREATE FUNCTION finish_run(job_id bigint, run_id bigint, outcome text, more jsonb DEFAULT '{}') RETURNS text
LANGUAGE sql VOLATILE
AS $$
SELECT f.status FROM pljobs.finish_jobs_v1(jsonb_build_array(jsonb_build_object(
    'job_id', finish_run.job_id, 'run_id', finish_run.run_id, 'outcome', finish_run.outcome) || finish_run.more)) AS f;
$$;

CREATE FUNCTION a_finished_job(status text, lock text DEFAULT NULL, queueing_lock text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_job record;
BEGIN
    IF a_finished_job.status = 'cancelled' THEN
        v_job := ROW(a_todo_job(a_finished_job.lock, a_finished_job.queueing_lock));
        PERFORM pljobs.cancel_job_v1(v_job.f1);
        RETURN v_job.f1;
    END IF;
    v_job := a_doing_job(a_finished_job.lock, a_finished_job.queueing_lock);
    IF a_finished_job.status = 'aborted' THEN
        PERFORM pljobs.cancel_job_v1(v_job.job_id, abort => true);
    END IF;
    PERFORM finish_run(v_job.job_id, v_job.run_id, a_finished_job.status);
    RETURN v_job.job_id;
END
$$;

-- A lane of waiting jobs in one queue, deferred one call each, in order.
CREATE FUNCTION a_lane(jobs integer, OUT ids bigint[], OUT queue text, OUT lock text)
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    queue := a_name('queue');
    lock := a_name('lane');
    ids := ARRAY(SELECT a_todo_job(a_lane.lock, queue => a_lane.queue) FROM generate_series(1, a_lane.jobs));
END
$$;

CREATE FUNCTION status_of(job_id bigint) RETURNS text
LANGUAGE sql VOLATILE
RETURN coalesce((SELECT j.status FROM pljobs.job AS j WHERE j.id = status_of.job_id), 'gone');

-- 'ready', or what the waiting job waits for.
CREATE FUNCTION wait_of(job_id bigint) RETURNS text
LANGUAGE sql VOLATILE
RETURN (SELECT coalesce(j.waiting_for, 'ready') FROM pljobs.job AS j WHERE j.id = wait_of.job_id AND j.status = 'todo');

-- The ids that one fetch from one queue starts, in order.
CREATE FUNCTION fetch_ids(queue text, max_jobs integer DEFAULT 1, worker_id bigint DEFAULT a_worker()) RETURNS bigint[]
LANGUAGE sql VOLATILE
RETURN ARRAY(SELECT f.job_id FROM pljobs.fetch_jobs_v1(fetch_ids.worker_id, fetch_ids.max_jobs, ARRAY[fetch_ids.queue]) AS f);

-- Forgets the hints that slow walks of this session have left, as after a change of rows that no function would make.
CREATE FUNCTION look_at_all() RETURNS void
LANGUAGE sql VOLATILE
AS $$
SELECT set_config('pljobs.' || h.name || '_hint', '', true) FROM unnest('{fetch,due,late}'::text[]) AS h(name);
$$;

-- Housekeeping works one call at a time in the whole database: a file that tests it waits for its turn.
CREATE FUNCTION take_turns() RETURNS void
LANGUAGE sql VOLATILE
AS $$
SELECT pg_advisory_xact_lock(hashtextextended('pljobs.rescue_jobs', 0));
SELECT pg_advisory_xact_lock(hashtextextended('pljobs.wake_lanes', 0));
SELECT pg_advisory_xact_lock(hashtextextended('pljobs.enforce_limits', 0));
SELECT pg_advisory_xact_lock(hashtextextended('pljobs.archive', 0));
$$;

-- A login that is a member of these groups (or other roles), and no superuser. Each file's own, and rolled back.
CREATE FUNCTION a_login(VARIADIC groups text[] DEFAULT '{}') RETURNS text
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_login text := format('pljobs_tests_%s_%s', pg_backend_pid(), nextval('name_number'));
    v_group text;
BEGIN
    EXECUTE format('CREATE ROLE %I LOGIN', v_login);
    FOREACH v_group IN ARRAY groups LOOP
        EXECUTE format('GRANT %I TO %I', v_group, v_login);
    END LOOP;
    RETURN v_login;
END
$$;

-- What the query answers (its first column of its first row, as text) to who logs in as this, after SET ROLE, if one is
-- given; or the code of the error that it raises, and then nothing has happened.
CREATE FUNCTION as_login(login text, query text, role text DEFAULT 'none') RETURNS text
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_answer text;
BEGIN
    PERFORM set_config('session_authorization', as_login.login, true), set_config('role', as_login.role, true);
    BEGIN
        EXECUTE as_login.query INTO v_answer;
    EXCEPTION WHEN OTHERS THEN
        v_answer := SQLSTATE;
    END;
    RESET SESSION AUTHORIZATION;
    RETURN v_answer;
END
$$;

-- Runs commands as who logs in as this; an error is raised.
CREATE FUNCTION do_as(login text, commands text) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    PERFORM set_config('session_authorization', do_as.login, true);
    EXECUTE do_as.commands;
    RESET SESSION AUTHORIZATION;
END
$$;

-- Follow-ups, expiry: what these helpers alone decide. What people see of them: cancel_job.sql, fetch_jobs.sql, enforce_limits.sql.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

-- _cancel_waiting_jobs
SELECT a_todo_job() AS one, a_scheduled_job() AS two \gset
SELECT count(*) FROM pljobs._cancel_waiting_jobs(ARRAY[:one, :two]::bigint[], 'expired', 'why', 'whom', 'deadline') \g /dev/null
SELECT results_eq(format('SELECT r.kind, r.resolution, r.source, r.reason, r.actor, r.delete_job, r.requested_by = session_user, r.run_id, j.status, j.waiting_for, j.message FROM pljobs.job AS j JOIN pljobs.request AS r ON r.job_id = j.id WHERE j.id IN (%s, %s)', :one, :two),
                  $$SELECT 'cancel', 'expired', 'deadline', 'why', 'whom', false, true, NULL::bigint, 'cancelled', NULL::text, 'why' FROM generate_series(1, 2)$$, 'waiting jobs are cancelled, each with a request that says by what and why');
SELECT a_todo_job() AS one, a_todo_job() AS two \gset
SELECT results_eq(format('SELECT c.job_id, c.task FROM pljobs._cancel_waiting_jobs(ARRAY[%2$s, %1$s]::bigint[], ''deleted'', NULL, NULL, ''user'') AS c ORDER BY 1', :one, :two), format($$VALUES (%s::bigint, 'a task'), (%s, 'a task')$$, :one, :two), 'it returns them');
SELECT is(ARRAY[status_of(:one), status_of(:two)], '{gone,gone}', 'or deleted');
SELECT is(count(*), 2::bigint, 'what asked for it stays') FROM pljobs.request AS r WHERE r.job_id IN (:one, :two) AND r.delete_job AND r.resolution = 'deleted';
SELECT is_empty(format('SELECT FROM pljobs._cancel_waiting_jobs(%s, ''cancelled'', NULL, NULL, ''user'')', a), 'nothing to do: ' || a) FROM unnest(ARRAY['NULL', '''{}''', '''{-1,NULL}''']) AS a;

-- _defer_follow_ups
CREATE FUNCTION follow_ups_of(job_id bigint) RETURNS TABLE (task text, args jsonb, status text, same boolean)
LANGUAGE sql VOLATILE
AS $$
SELECT f.task, f.args, f.status, num_nonnulls(f.lock, f.queueing_lock, f.parent_id, f.scheduled_at, f.start_by, f.timeout, f.grace, f.on_cancelled) = 0
  FROM pljobs.job AS f WHERE f.args @> jsonb_build_object('job_id', follow_ups_of.job_id) AND f.task = 'tidy up';
$$;
CREATE FUNCTION a_job_with_follow_up(status text DEFAULT 'todo', OUT job_id bigint, OUT run_id bigint, OUT worker_id bigint)
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    job_id := pljobs.defer_job('a task', '{"a": 1}', a_name('queue'), 7, a_name('lane'), a_name('ql'), timeout => '1 h', grace => '1 s', on_cancelled => 'tidy up', parent_id => -1);
    IF a_job_with_follow_up.status = 'doing' THEN
        worker_id := a_worker();
        run_id := start_job(job_id, worker_id);
    END IF;
END
$$;
SELECT * FROM a_job_with_follow_up() \gset
SELECT pljobs._defer_follow_ups(ARRAY[:job_id, :job_id, -1, NULL, a_todo_job()]::bigint[], 'cancelled', repeat('r', 2000)) \g /dev/null
SELECT results_eq(format('SELECT task, args, status, same FROM follow_ups_of(%s)', :job_id),
                  format($$VALUES ('tidy up', '{"job_id": %s, "task": "a task", "args": {"a": 1}, "status": "cancelled", "reason": "%s"}'::jsonb, 'todo', true)$$, :job_id, repeat('r', 1000)), 'a follow-up knows what happened to which job, and is a job of its own');
SELECT ok(f.queue = j.queue AND f.priority = 7 AND f.deferred_by = j.deferred_by, 'in the same queue, as urgent, deferred by the same') FROM pljobs.job AS j JOIN pljobs.job AS f ON f.task = 'tidy up' AND f.args @> format('{"job_id": %s}', j.id)::jsonb WHERE j.id = :job_id;

-- Who gets one: whatever ends a job as cancelled or aborted, once.
CREATE FUNCTION ends_by(what text) RETURNS text
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_job record := a_job_with_follow_up(CASE WHEN what LIKE 'waiting,%' THEN 'todo' ELSE 'doing' END);
BEGIN
    CASE what
        WHEN 'waiting, cancelled' THEN PERFORM pljobs.cancel_job(v_job.job_id);
        WHEN 'waiting, deleted' THEN PERFORM pljobs.cancel_job(v_job.job_id, delete_job => true);
        WHEN 'waiting, many' THEN PERFORM pljobs.cancel_jobs(ARRAY[v_job.job_id], dry_run => false);
        WHEN 'waiting, shown only' THEN PERFORM pljobs.cancel_jobs(ARRAY[v_job.job_id]);
        WHEN 'waiting, tree' THEN PERFORM pljobs.cancel_tree(v_job.job_id);
        WHEN 'waiting, expired' THEN
            UPDATE pljobs.job SET start_by = now() - interval '1 h' WHERE id = v_job.job_id;
            PERFORM pljobs._expire_jobs(100000);
        WHEN 'asked, aborted' THEN PERFORM pljobs.cancel_job(v_job.job_id, abort => true), finish_run(v_job.job_id, v_job.run_id, 'aborted'), finish_run(v_job.job_id, v_job.run_id, 'aborted');
        WHEN 'asked, aborted, deleted' THEN PERFORM pljobs.cancel_job(v_job.job_id, abort => true, delete_job => true), finish_run(v_job.job_id, v_job.run_id, 'aborted');
        WHEN 'asked, interrupted' THEN PERFORM pljobs.cancel_job(v_job.job_id, abort => true), finish_run(v_job.job_id, v_job.run_id, 'interrupted');
        WHEN 'asked, killed' THEN PERFORM pljobs.cancel_job(v_job.job_id, abort => true), finish_run(v_job.job_id, v_job.run_id, 'killed');
        WHEN 'asked, abandoned' THEN PERFORM pljobs.cancel_job(v_job.job_id, abort => true), finish_run(v_job.job_id, v_job.run_id, 'abandoned');
        WHEN 'asked, succeeded' THEN PERFORM pljobs.cancel_job(v_job.job_id, abort => true), finish_run(v_job.job_id, v_job.run_id, 'succeeded');
        WHEN 'asked, failed' THEN PERFORM pljobs.cancel_job(v_job.job_id, abort => true), finish_run(v_job.job_id, v_job.run_id, 'failed');
        WHEN 'forced' THEN PERFORM pljobs.cancel_job(v_job.job_id, force => true);
        WHEN 'asked, worker lost' THEN PERFORM pljobs.cancel_job(v_job.job_id, abort => true), pljobs._release_job(v_job.job_id, true, 1);
        WHEN 'timeout' THEN PERFORM age_timeouts(v_job.run_id), pljobs._ask_late_runs_to_abort(v_job.worker_id, 1), finish_run(v_job.job_id, v_job.run_id, 'aborted');
        WHEN 'failed' THEN PERFORM finish_run(v_job.job_id, v_job.run_id, 'failed');
        WHEN 'worker lost' THEN PERFORM pljobs._release_job(v_job.job_id, true, 1);
    END CASE;
    RETURN coalesce((SELECT string_agg(f.args ->> 'status', ', ') FROM follow_ups_of(v_job.job_id) AS f), 'none');
END
$$;
SELECT is(ends_by(what), wanted, what || ': ' || wanted)
  FROM (VALUES ('waiting, cancelled', 'cancelled'), ('waiting, deleted', 'cancelled'), ('waiting, many', 'cancelled'), ('waiting, shown only', 'none'), ('waiting, tree', 'cancelled'), ('waiting, expired', 'cancelled'),
               ('asked, aborted', 'aborted'), ('asked, aborted, deleted', 'aborted'), ('asked, interrupted', 'aborted'), ('asked, killed', 'aborted'), ('asked, abandoned', 'aborted'),
               ('asked, succeeded', 'none'), ('asked, failed', 'none'), ('forced', 'aborted'), ('asked, worker lost', 'aborted'), ('timeout', 'none'), ('failed', 'none'), ('worker lost', 'none')) AS v(what, wanted);

-- _expire_jobs
CREATE FUNCTION a_job_to_start_within(seconds integer, lock text DEFAULT NULL, queue text DEFAULT a_name('queue')) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_id bigint := pljobs.defer_job('a task', queue => a_job_to_start_within.queue, lock => a_job_to_start_within.lock, start_by => now() + interval '1 day');
BEGIN
    UPDATE pljobs.job AS j SET start_by = clock_timestamp() + a_job_to_start_within.seconds * interval '1 s' WHERE j.id = v_id;
    RETURN v_id;
END
$$;
SELECT a_job_to_start_within(-20) AS late, a_job_to_start_within(-10) AS later, a_job_to_start_within(1000) AS fine, a_todo_job() AS whenever \gset
SELECT is(pljobs._expire_jobs(1), ARRAY[:late]::bigint[], 'at most so many, the latest first');
SELECT is(pljobs._expire_jobs(1000), ARRAY[:later]::bigint[], 'then the others');
SELECT is(pljobs._expire_jobs(1000), '{}', 'then none');
SELECT results_eq(format('SELECT j.status, j.message, r.kind, r.resolution, r.source, r.actor FROM pljobs.job AS j JOIN pljobs.request AS r ON r.job_id = j.id WHERE j.id = %s', :late), $$VALUES ('cancelled', 'not started in time', 'cancel', 'expired', 'deadline', NULL::text)$$, 'what did not start in time is cancelled');
SELECT is(ARRAY[status_of(:fine), status_of(:whenever)], '{todo,todo}', 'what has time, or any time, waits on');
SELECT a_name('queue') AS q, a_name('lane') AS l \gset
SELECT a_job_to_start_within(1000, :'l', :'q') AS one, a_job_to_start_within(-10, :'l', :'q') AS two, a_todo_job(:'l', queue => :'q') AS three \gset
UPDATE pljobs.job SET waiting_for = 'lock', start_by = now() - interval '1 s' WHERE id = :one;
UPDATE pljobs.job SET waiting_for = 'lock' WHERE id IN (:two, :three);
SELECT is(pljobs._expire_jobs(1000) @> ARRAY[:one, :two]::bigint[], true, 'also what waits for its lane');
SELECT is(wait_of(:three), 'ready', 'then the next of the lane is woken');
SELECT a_job_to_start_within(-10) AS scheduled \gset
UPDATE pljobs.job SET waiting_for = 'schedule', scheduled_at = now() + interval '1 day' WHERE id = :scheduled;
SELECT is(pljobs._expire_jobs(1000), ARRAY[:scheduled]::bigint[], 'and what waits for its schedule');

SELECT * FROM finish();
ROLLBACK;

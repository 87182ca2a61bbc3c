-- sql/views.sql: what people read.
BEGIN;
\ir lib/fixtures.sql
SELECT take_turns() \g /dev/null
SELECT * FROM no_plan();

-- jobs
SELECT a_scheduled_job() AS scheduled \gset
SELECT * FROM an_aborting_job() \gset
SELECT results_eq(format('SELECT status, waiting_for, abort_requested, abort_requested_at IS NULL FROM pljobs.jobs WHERE id = %s', :scheduled), $$VALUES ('todo', 'schedule', false, true)$$, 'a waiting job says what it waits for');
SELECT results_eq(format('SELECT status, worker_id, run_id, abort_requested, abort_requested_at IS NOT NULL, deferred_by = session_user FROM pljobs.jobs WHERE id = %s', :job_id),
                  format($$VALUES ('doing', %s::bigint, %s::bigint, true, true, true)$$, :worker_id, :run_id), 'a running job says where, and whether it was asked to abort');
SELECT is(ARRAY(SELECT a.attname::text FROM pg_attribute AS a WHERE a.attrelid = 'pljobs.jobs'::regclass AND a.attnum > 0 ORDER BY a.attnum),
    '{id,status,waiting_for,queue,task,args,priority,lock,queueing_lock,attempts,crashes,created_at,scheduled_at,started_at,finished_at,worker_id,run_id,abort_requested,abort_requested_at,message,error,result,deferred_by,parent_id,start_by,timeout,timeout_at,grace,on_cancelled,progress,progress_message,progress_at}'::text[],
    'the columns of jobs are those that drivers read');
SELECT is(ARRAY(SELECT a.attname::text FROM pg_attribute AS a WHERE a.attrelid = 'pljobs.stalled_jobs'::regclass AND a.attnum > 0 ORDER BY a.attnum),
          ARRAY(SELECT a.attname::text FROM pg_attribute AS a WHERE a.attrelid = 'pljobs.jobs'::regclass AND a.attnum > 0 ORDER BY a.attnum), 'stalled_jobs has the columns of jobs');

-- workers, stalled_jobs
SELECT results_eq(format('SELECT name, host, pid, state, running, concurrency FROM pljobs.workers WHERE id = %s', :worker_id), format($$VALUES ('tests', 'here', %s, 'alive', 1::bigint, 1)$$, pg_backend_pid()), 'a worker is alive');
SELECT is_empty(format('SELECT FROM pljobs.stalled_jobs WHERE id = %s', :job_id), 'the job of a living worker is not stalled');
SELECT lose_worker(:worker_id) \g /dev/null
SELECT is(w.state, 'stalled', 'a worker whose lease ran out is stalled') FROM pljobs.workers AS w WHERE w.id = :worker_id;
SELECT results_eq(format('SELECT id, abort_requested FROM pljobs.stalled_jobs WHERE id = %s', :job_id), format('VALUES (%s::bigint, true)', :job_id), 'its job is stalled');
SELECT pljobs.rescue_jobs() \g /dev/null
SELECT results_eq(format('SELECT state, running FROM pljobs.workers WHERE id = %s', :worker_id), $$VALUES ('stopped', 0::bigint)$$, 'a lost worker is stopped');
SELECT is_empty(format('SELECT FROM pljobs.stalled_jobs WHERE id = %s', :job_id), 'a rescued job is not stalled');

-- queues
SELECT a_name('queue') AS q \gset
SELECT a_todo_job(queue => :'q'), a_todo_job(queue => :'q') AS job_id, pljobs.pause_queue(:'q', 'why') \gset
SELECT pljobs.cancel_job(:job_id) \g /dev/null
SELECT results_eq(format('SELECT paused, pause_reason, todo, doing, succeeded, failed, cancelled, aborted FROM pljobs.queues WHERE queue = %L', :'q'), $$VALUES (true, 'why', 1::bigint, 0::bigint, 0::bigint, 0::bigint, 1::bigint, 0::bigint)$$,
                  'a queue says how many of its jobs are in each status, and whether it is paused');

-- requests
SELECT * FROM an_aborting_job() \gset
SELECT pljobs.heartbeat_v1(:worker_id, ARRAY[:run_id]::bigint[], jsonb_build_array(jsonb_build_object('run_id', :run_id, 'handling', 'handling'))), finish_run(:job_id, :run_id, 'aborted', '{"message": "stopped"}') \g /dev/null
SELECT results_eq(format('SELECT id, run_id, worker_id, task, kind, force, delete_job, requested_by = session_user, actor, reason, delivered_at BETWEEN requested_at AND resolved_at, handling, resolution FROM pljobs.requests WHERE job_id = %s', :job_id),
                  format($$VALUES (%s::bigint, %s::bigint, %s::bigint, 'a task', 'abort', false, false, true, 'an actor', 'a reason', true, 'handling', 'aborted')$$, :request_id, :run_id, :worker_id),
                  'a request says who asked for what, when its worker heard of it, what the task did with it, and what became of it');

-- history: one job''s whole life.
SELECT pljobs.retry_job(:job_id, reason => 'once more', actor => 'ann') \g /dev/null
SELECT a_worker() AS w2 \gset
SELECT start_job(:job_id, :w2) AS run_2 \gset
SELECT finish_run(:job_id, :run_2, 'failed', '{"retry_at": "2001-01-01T00:00:00Z", "message": "oops", "error": "trace"}') \g /dev/null
SELECT a_worker() AS w3 \gset
SELECT start_job(:job_id, :w3), lose_worker(:w3), pljobs.rescue_jobs() \g /dev/null
SELECT a_worker() AS w4 \gset
SELECT start_job(:job_id, :w4) AS run_4 \gset
SELECT finish_run(:job_id, :run_4, 'interrupted', '{"message": "shutdown"}'), pljobs.cancel_job(:job_id, reason => 'enough') \g /dev/null
SELECT pljobs.retry_job(:job_id) \g /dev/null
SELECT a_worker() AS w5 \gset
SELECT start_job(:job_id, :w5) AS run_5 \gset
SELECT finish_run(:job_id, :run_5, 'succeeded', '{"message": "done"}') \g /dev/null
SELECT results_eq(
    format('SELECT event, attempt, worker_id, detail FROM pljobs.history WHERE job_id = %s', :job_id),
    format($$VALUES ('deferred', NULL::integer, NULL::bigint, NULL::text), ('started', 1, %1$s::bigint, NULL), ('abort requested', NULL, %1$s, 'a reason'), ('abort delivered', NULL, %1$s, 'handling'),
                    ('abort resolved', NULL, %1$s, 'aborted'), ('aborted', 1, %1$s, 'stopped'), ('requeued', NULL, NULL, 'once more'), ('started', 2, %2$s, NULL), ('retried', 2, %2$s, E'oops\ntrace'),
                    ('started', 3, %3$s, NULL), ('rescued', 3, %3$s, 'worker %3$s was lost'), ('started', 4, %4$s, NULL), ('interrupted', 4, %4$s, 'shutdown'), ('cancelled', NULL, NULL, 'enough'),
                    ('requeued', NULL, NULL, NULL), ('started', 4, %5$s, NULL), ('succeeded', 4, %5$s, 'done')$$, :worker_id, :w2, :w3, :w4, :w5),
    'the history of a job tells all that happened to it, in order');
SELECT is(h.who, session_user || ' for ann', 'it says who put the job back, and for whom') FROM pljobs.history AS h WHERE h.job_id = :job_id AND h.detail = 'once more';
SELECT is(h.worker, format('tests@here:%s', pg_backend_pid()), 'it names the worker') FROM pljobs.history AS h WHERE h.job_id = :job_id AND h.event = 'succeeded';
SELECT a_todo_job() AS job_id \gset
SELECT pljobs.cancel_job(:job_id, delete_job => true, reason => 'never mind') \g /dev/null
SELECT results_eq(format('SELECT event, detail FROM pljobs.history WHERE job_id = %s', :job_id), $$VALUES ('deleted', 'never mind')$$, 'of a deleted job the history still tells who deleted it');

-- stuck_aborts
SELECT * FROM an_aborting_job() \gset
CREATE FUNCTION next_of(job_id bigint) RETURNS text LANGUAGE sql RETURN (SELECT v.next FROM pljobs.stuck_aborts AS v WHERE v.job_id = next_of.job_id);
SELECT results_eq(format('SELECT v.reason, v.actor, v.run_id, v.worker_id, v.worker, v.asked_ago BETWEEN interval ''0'' AND interval ''1 min'', v.handling, v.delivered_at IS NULL FROM pljobs.stuck_aborts AS v WHERE v.job_id = %s', :job_id),
                  format($$VALUES ('a reason', 'an actor', %s::bigint, %s::bigint, 'tests@here:%s', true, NULL::text, true)$$, :run_id, :worker_id, pg_backend_pid()), 'a job that was asked to abort and runs: since when, where, why');
SELECT alike(next_of(:job_id), 'its worker will hear of it%', 'not yet delivered');
SELECT pljobs.heartbeat_v1(:worker_id, ARRAY[:run_id]::bigint[]) \g /dev/null
SELECT alike(next_of(:job_id), 'the task was told%', 'delivered');
SELECT pljobs.heartbeat_v1(:worker_id, ARRAY[:run_id]::bigint[], jsonb_build_array(jsonb_build_object('run_id', :run_id, 'handling', 'swallowed'))) \g /dev/null
SELECT alike(next_of(:job_id), 'the task ignored it%', 'swallowed');
SELECT pljobs.cancel_job(:job_id, abort => true, grace => '1 h') \g /dev/null
SELECT request_id FROM pljobs.job WHERE id = :job_id \gset
SELECT matches(next_of(:job_id), '^its SQL is cancelled at .*; it is terminated at .*; it is killed at .*$', 'with a deadline: what is next, and when');
SELECT age_request(:request_id, '40 min') \g /dev/null
SELECT pljobs.heartbeat_v1(:worker_id, ARRAY[:run_id]::bigint[]) \g /dev/null
SELECT matches(next_of(:job_id), '^it is terminated at .*; it is killed at .*$', 'its SQL was cancelled');
SELECT age_request(:request_id, '20 min') \g /dev/null
SELECT pljobs.heartbeat_v1(:worker_id, ARRAY[:run_id]::bigint[]) \g /dev/null
SELECT matches(next_of(:job_id), '^it is killed at .*$', 'it was terminated');
SELECT age_request(:request_id, '10 min') \g /dev/null
SELECT pljobs.heartbeat_v1(:worker_id, ARRAY[:run_id]::bigint[]) \g /dev/null
SELECT alike(next_of(:job_id), 'its worker kills it%', 'it is to be killed');
SELECT results_eq(format('SELECT v.source, v.level, v.escalated_at IS NOT NULL, v.sql_way FROM pljobs.stuck_aborts AS v WHERE v.job_id = %s', :job_id), $$VALUES ('user', 4::smallint, true, 'none')$$, 'at which level it is, since when, and what became of its SQL');
SELECT lose_worker(:worker_id) \g /dev/null
SELECT alike(next_of(:job_id), 'its worker is lost%', 'its worker lost');
DELETE FROM pljobs.worker WHERE id = :worker_id;
SELECT results_eq(format('SELECT v.worker, v.next LIKE ''its worker is lost%%'' FROM pljobs.stuck_aborts AS v WHERE v.job_id = %s', :job_id), 'VALUES (NULL::text, true)', 'its worker forgotten');
SELECT pljobs.cancel_job(:job_id, force => true) \g /dev/null
SELECT is_empty(format('SELECT FROM pljobs.stuck_aborts WHERE job_id = %s', :job_id), 'what is resolved is not stuck');

-- Limits, trees, levels, progress.
SELECT pljobs.defer_job('a task', queue => a_name('queue'), start_by => '2040-01-01', timeout => '1 h', grace => '20 s', on_cancelled => 'tidy up', parent_id => 7) AS job_id, a_worker() AS worker_id \gset
SELECT start_job(:job_id, :worker_id) AS run_id \gset
SELECT pljobs.heartbeat_v1(:worker_id, ARRAY[:run_id]::bigint[], format('[{"job_id": %s, "run_id": %s, "progress": 0.25, "progress_message": "a quarter"}]', :job_id, :run_id)::jsonb) \g /dev/null
SELECT results_eq(format('SELECT parent_id, start_by, timeout, timeout_at - started_at BETWEEN interval ''1 h'' AND interval ''1 h 1 s'', grace, on_cancelled, progress, progress_message, progress_at >= started_at FROM pljobs.jobs WHERE id = %s', :job_id),
                  $$VALUES (7::bigint, '2040-01-01'::timestamptz, interval '1 h', true, interval '20 s', 'tidy up', 0.25::real, 'a quarter', true)$$, 'a job says what limits it has, and how far it is');
SELECT age_timeouts(:run_id) \g /dev/null
SELECT pljobs.heartbeat_v1(:worker_id, ARRAY[:run_id]::bigint[]) \g /dev/null
SELECT request_id FROM pljobs.job WHERE id = :job_id \gset
SELECT age_request(:request_id, '20 s') \g /dev/null
UPDATE pljobs.job SET created_at = created_at - interval '1 h', started_at = started_at - interval '1 h' WHERE id = :job_id;
SELECT pljobs.heartbeat_v1(:worker_id, ARRAY[:run_id]::bigint[]) \g /dev/null
SELECT finish_run(:job_id, :run_id, 'abandoned', '{"message": "abandoned: code may still run"}') \g /dev/null
SELECT results_eq(format('SELECT kind, source, level, escalated_at > delivered_at, term_at - sql_at, kill_at - term_at, sql_way, resolution FROM pljobs.requests WHERE job_id = %s', :job_id),
                  $$VALUES ('abort', 'deadline', 3::smallint, true, interval '10 s', interval '5 s', 'none', 'abandoned')$$, 'a request says who or what asked, and how far it was taken');
SELECT results_eq(format('SELECT event, detail FROM pljobs.history WHERE job_id = %s', :job_id),
                  $$VALUES ('deferred', NULL::text), ('started', NULL), ('abort requested', 'ran longer than its timeout of 01:00:00'), ('abort delivered', NULL), ('abort escalated', 'terminate, SQL: none'), ('abort resolved', 'abandoned'),
                           ('failed', 'abandoned: code may still run')$$, 'a history tells of timeouts and levels');
SELECT results_eq(format('SELECT tainted_at IS NOT NULL, state FROM pljobs.workers WHERE id = %s', :worker_id), $$VALUES (true, 'alive')$$, 'a worker says that it gave up a job');
SELECT a_child_of(:job_id) AS child \gset
SELECT count(*) FROM pljobs.cancel_tree(:job_id, reason => 'enough') \g /dev/null
SELECT results_eq(format('SELECT event, detail FROM pljobs.history WHERE job_id = %s', :child), $$VALUES ('deferred', NULL::text), ('cancelled', 'enough')$$, 'a history tells of a cancelled tree');
SELECT a_todo_job() AS overdue \gset
UPDATE pljobs.job SET start_by = now() WHERE id = :overdue;
SELECT pljobs.enforce_limits() \g /dev/null
SELECT results_eq(format('SELECT event, detail FROM pljobs.history WHERE job_id = %s', :overdue), $$VALUES ('deferred', NULL::text), ('expired', 'not started in time')$$, 'and of what did not start in time');

SELECT * FROM finish();
ROLLBACK;

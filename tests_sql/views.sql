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
    '{id,status,waiting_for,queue,task,args,priority,lock,queueing_lock,attempts,crashes,created_at,scheduled_at,started_at,finished_at,worker_id,run_id,abort_requested,abort_requested_at,message,error,result,deferred_by,parent_id,start_by,timeout,timeout_at,grace,on_cancelled,progress,progress_message,progress_at,fairness_key}'::text[],
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
SAVEPOINT seen;
UPDATE pljobs.worker SET heartbeat_at = heartbeat_at - 0.5 * lease WHERE id = :worker_id;
SELECT matches(next_of(:job_id), format('^its worker was last seen 00:30:\d\d ago: .* its lease ends in 00:\d\d:\d\d, then the job is aborted; or: kill -9 %s on here$', pg_backend_pid()), 'nor soon, for its worker is out of reach');
ROLLBACK TO seen;
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


-- Who sees which rows, and how much of them.
SELECT a_login('pljobs_producer') AS ann, a_login('pljobs_producer') AS bob, a_login('pljobs_reader') AS eve, a_login('pljobs_canceller') AS guard, a_login('pljobs_operator') AS ops, a_login('pljobs_worker') AS hand \gset
SELECT a_login('pljobs_producer', 'pljobs_reader') AS both, a_login('pljobs_producer', :'ann') AS pool, a_login('pljobs_owner') AS dba, a_name('queue') AS q \gset
CREATE FUNCTION seen(login text, query text, role text DEFAULT 'none') RETURNS text LANGUAGE sql VOLATILE
RETURN as_login(login, format('SELECT array_agg(v.x ORDER BY v.x) FROM (%s) AS v(x)', query), role);
SELECT as_login(who, format('SELECT pljobs.defer_job(%L, ''{"secret": 1}'', queue => %L)', who, :'q')) FROM unnest(ARRAY[:'ann', :'bob', :'both']) AS w(who) \g /dev/null
SELECT max(j.id) FILTER (WHERE j.deferred_by = :'ann') AS anns, max(j.id) FILTER (WHERE j.deferred_by = :'bob') AS bobs, max(j.id) FILTER (WHERE j.deferred_by = :'both') AS boths, a_worker() AS w FROM pljobs.job AS j \gset
SELECT f.run_id AS anns_run FROM pljobs.fetch_jobs_v1(:w, 1, ARRAY[:'q']) AS f \gset
SELECT pljobs.heartbeat_v1(:w, ARRAY[:anns_run]::bigint[], format('[{"job_id": %s, "run_id": %s, "progress": 0.5, "progress_message": "secret"}]', :anns, :anns_run)::jsonb),
       finish_run(:anns, :anns_run, 'failed', '{"message": "secret", "error": "secret", "retry_in": "0 s"}') \g /dev/null
SELECT f.run_id AS anns_run FROM pljobs.fetch_jobs_v1(:w, 1, ARRAY[:'q']) AS f \gset
SELECT finish_run(:anns, :anns_run, 'failed', '{"message": "secret", "error": "secret"}') \g /dev/null
SELECT f.run_id AS bobs_run FROM pljobs.fetch_jobs_v1(:w, 1, ARRAY[:'q']) AS f \gset
SELECT finish_run(:bobs, :bobs_run, 'succeeded', '{"message": "secret", "result": "secret"}') \g /dev/null
SELECT f.run_id AS boths_run FROM pljobs.fetch_jobs_v1(:w, 1, ARRAY[:'q']) AS f \gset
SELECT lose_worker(:w) \g /dev/null

SELECT is(seen(who, format('SELECT id FROM pljobs.jobs WHERE queue = %L', :'q'))::bigint[], ids::bigint[], what || ' sees the rows of ' || whose)
  FROM (VALUES (:'ann', ARRAY[:anns], 'a producer', 'its own jobs'), (:'bob', ARRAY[:bobs], 'a producer', 'its own jobs'), (:'pool', ARRAY[:anns], 'a member of another role', 'that one''s'),
               (:'eve', ARRAY[:anns, :bobs, :boths], 'a reader', 'all jobs'), (:'guard', ARRAY[:anns, :bobs, :boths], 'a canceller', 'all jobs'), (:'ops', ARRAY[:anns, :bobs, :boths], 'an operator', 'all jobs'),
               (:'both', ARRAY[:anns, :bobs, :boths], 'a producer who is a reader', 'all jobs'), (:'dba', ARRAY[:anns, :bobs, :boths], 'a member of the owner', 'all jobs')) AS w(who, ids, what, whose);
SELECT is(seen(:'pool', format('SELECT id FROM pljobs.jobs WHERE queue = %L', :'q'), :'ann')::bigint[], ARRAY[:anns]::bigint[], 'after SET ROLE those of that role');
SELECT is(seen(:'ann', format('SELECT id FROM pljobs.jobs WHERE queue = %L', :'q'), 'pljobs_producer'), NULL, 'of a group none');
SELECT is(seen(:'hand', 'SELECT id FROM pljobs.jobs'), '42501', 'a worker sees none');
SELECT is(seen(a_login(), 'SELECT id FROM pljobs.jobs'), '42501', 'who has no group sees nothing');

CREATE FUNCTION secrets(login text, id bigint) RETURNS text LANGUAGE sql VOLATILE
RETURN as_login(login, format('SELECT format(''%%s %%s %%s %%s %%s'', args, result, message, error, progress_message) FROM pljobs.jobs WHERE id = %s', id));
SELECT is(secrets(who, :anns), CASE WHEN all_of_it THEN '{"secret": 1}  secret secret secret' ELSE '    ' END, format('%s: args, message, error, progress_message', what))
  FROM (VALUES (:'ann', true, 'its own'), (:'pool', true, 'a role''s that it is a member of'), (:'ops', true, 'an operator, anybody''s'), (:'dba', true, 'a member of the owner, anybody''s'), (current_user::text, true, 'a superuser, anybody''s'),
               (:'eve', false, 'a reader, none'), (:'guard', false, 'a canceller, none'), (:'both', false, 'a reader who is a producer, none of others')) AS w(who, all_of_it, what);
SELECT is(secrets(who, :bobs), word, 'result: ' || what) FROM (VALUES (:'bob', '{"secret": 1} "secret" secret  ', 'its own'), (:'ops', '{"secret": 1} "secret" secret  ', 'an operator'), (:'eve', '    ', 'a reader, none')) AS w(who, word, what);
SELECT is(secrets(:'both', :boths), '{"secret": 1}    ', 'a reader who is a producer sees what is in its own');
SELECT is(seen(who, format('SELECT id FROM pljobs.stalled_jobs WHERE queue = %L', :'q'))::bigint[], ids::bigint[], 'stalled jobs: ' || what)
  FROM (VALUES (:'both', ARRAY[:boths], 'its own'), (:'ann', NULL, 'not another''s'), (:'eve', ARRAY[:boths], 'a reader, all')) AS w(who, ids, what);
SELECT is(seen(:'eve', format('SELECT args::text FROM pljobs.stalled_jobs WHERE queue = %L', :'q')), '{NULL}', 'without what is in them');

-- A filter finds out no more than the columns show.
SELECT is(seen(who, $$SELECT id FROM pljobs.jobs WHERE args @> '{"secret": 1}' OR args::text ~ 'secret' OR error = 'secret' OR message = 'secret' OR result IS NOT NULL OR progress_message ~ 'secret'$$), NULL, what)
  FROM (VALUES (:'eve', 'a reader'), (:'guard', 'a canceller'), (a_login('pljobs_producer'), 'another producer')) AS w(who, what);
SELECT do_as(:'ann', 'CREATE FUNCTION pg_temp.peep(x anyelement) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS $$BEGIN RAISE EXCEPTION USING ERRCODE = ''TS001''; END$$') \g /dev/null
SELECT is(as_login(:'ann', format('SELECT count(*) FROM pljobs.jobs AS j WHERE j.id = %s AND pg_temp.peep(j.task)', :bobs)), '0', 'however cheap, a function of its own sees no row that the view hides');
SELECT is(as_login(:'ann', format('SELECT count(*) FROM pljobs.jobs AS j WHERE j.id = %s AND pg_temp.peep(j.task)', :anns)), 'TS001', 'only its own');

-- History.
SELECT is(seen(who, format('SELECT DISTINCT job_id FROM pljobs.history WHERE job_id IN (%s, %s)', :anns, :bobs))::bigint[], ids::bigint[], 'history: ' || what)
  FROM (VALUES (:'ann', ARRAY[:anns], 'of its own jobs'), (:'eve', ARRAY[:anns, :bobs], 'a reader, of all'), (:'guard', ARRAY[:anns, :bobs], 'a canceller, of all'), (:'ops', ARRAY[:anns, :bobs], 'an operator, of all')) AS w(who, ids, what);
SELECT is(as_login(who, format('SELECT count(*) FROM pljobs.history WHERE job_id = %s AND detail ~ ''secret''', :anns)), n::text, 'messages and errors of it: ' || what)
  FROM (VALUES (:'ann', 2, 'its own'), (:'ops', 2, 'an operator'), (:'eve', 0, 'a reader, none'), (:'guard', 0, 'a canceller, none')) AS w(who, n, what);
SELECT is(as_login(:'hand', 'SELECT count(*) FROM pljobs.history'), '42501', 'a worker reads no history');

-- Requests.
SELECT as_login(:'ann', format('SELECT pljobs.defer_job(''t'', queue => %L)', a_name('queue'))) AS anns, as_login(:'bob', format('SELECT pljobs.defer_job(''t'', queue => %L)', a_name('queue'))) AS bobs \gset
SELECT start_job(:anns), start_job(:bobs) \g /dev/null
SELECT as_login(:'guard', format('SELECT request_id FROM pljobs.cancel_job_v1(%s, abort => true, reason => ''why'')', :anns)) AS of_anns, as_login(:'bob', format('SELECT request_id FROM pljobs.cancel_job_v1(%s, abort => true)', :bobs)) AS of_bobs \gset
CREATE TABLE asked AS
SELECT w.* FROM (VALUES (:'ann', ARRAY[:of_anns]::bigint[], ARRAY[:anns]::bigint[], 'about its own job, whoever asked'), (:'bob', ARRAY[:of_bobs], ARRAY[:bobs], 'about its own job'), (:'eve', ARRAY[:of_anns, :of_bobs], ARRAY[:anns, :bobs], 'a reader, all'),
                        (:'guard', ARRAY[:of_anns, :of_bobs], ARRAY[:anns, :bobs], 'a canceller, all'), (:'ops', ARRAY[:of_anns, :of_bobs], ARRAY[:anns, :bobs], 'an operator, all')) AS w(who, ids, jobs, what);
SELECT is(seen(a.who, format('SELECT id FROM pljobs.requests WHERE id IN (%s, %s)', :of_anns, :of_bobs))::bigint[], a.ids, 'requests: ' || a.what) FROM asked AS a;
SELECT is(seen(a.who, format('SELECT job_id FROM pljobs.stuck_aborts WHERE job_id IN (%s, %s)', :anns, :bobs))::bigint[], a.jobs, 'aborts under way: ' || a.what) FROM asked AS a;
SELECT is(seen(a_login('pljobs_producer'), 'SELECT id FROM pljobs.requests'), NULL, 'another producer: none');
SELECT as_login(:'bob', format('SELECT pljobs.cancel_job(%s, force => true, delete_job => true)', :bobs)) \g /dev/null
SELECT is(seen(:'bob', format('SELECT id FROM pljobs.requests WHERE id = %s', :of_bobs))::bigint[], ARRAY[:of_bobs]::bigint[], 'who asked still sees it when the job is gone');

-- Queues and workers, to who may look at all.
SELECT is(as_login(who, format('SELECT count(*) FROM pljobs.queues WHERE queue = %L', :'q')), '1', 'queues: all of them') FROM unnest(ARRAY[:'ann', :'eve', :'guard', :'ops', :'hand']) AS w(who);
SELECT is(as_login(who, format('SELECT count(*) FROM pljobs.workers WHERE id = %s', :w)), '1', 'workers: all of them') FROM unnest(ARRAY[:'eve', :'guard', :'ops', :'hand']) AS w(who);
SELECT is(as_login(who, view), '42501', what) FROM (VALUES (:'ann', 'SELECT 1 FROM pljobs.workers', 'a producer sees no workers'), (:'ann', 'SELECT 1 FROM pljobs.queue_limits', 'nor limits'), (:'eve', 'SELECT 1 FROM pljobs.queue_limits', 'limits are for operators'),
       (:'ops', 'SELECT 1 FROM pljobs.job', 'nobody reads a table'), (:'ops', 'SELECT 1 FROM pljobs._scope', 'nor a helper'), (:'ops', 'DELETE FROM pljobs.queue_limits RETURNING 1', 'nor writes through a view')) AS w(who, view, what);
SELECT pljobs.limit_queues(:'ann', 'defer', '{a}') \g /dev/null
SELECT is(as_login(:'ops', format('SELECT queues FROM pljobs.queue_limits WHERE role = %L', :'ann')), '{a}', 'an operator sees the limits');

SELECT * FROM finish();
ROLLBACK;

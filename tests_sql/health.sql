-- sql/health.sql: each item brought about, and gone again. What takes other sessions is in tests_py/test_doctor.py.
BEGIN;
\ir lib/fixtures.sql
SELECT take_turns() \g /dev/null
SELECT * FROM no_plan();

CREATE FUNCTION found(item text) RETURNS text
LANGUAGE sql VOLATILE
AS $$
SELECT string_agg(concat_ws(' ', h.severity, h.subject), '; ') FROM pljobs.health AS h WHERE h.item = found.item AND h.severity <> 'ok';
$$;
CREATE FUNCTION said(item text) RETURNS text
LANGUAGE sql VOLATILE
AS $$
SELECT string_agg(concat_ws(' | ', h.detail, h.action), '; ') FROM pljobs.health AS h WHERE h.item = said.item;
$$;
CREATE FUNCTION age_jobs(by_ interval, VARIADIC ids bigint[]) RETURNS void
LANGUAGE sql VOLATILE
AS $$
UPDATE pljobs.job AS j SET created_at = j.created_at - by_, scheduled_at = j.scheduled_at - by_, start_by = j.start_by - by_ WHERE j.id = ANY (age_jobs.ids);
$$;
CREATE FUNCTION a_new_worker(queues text[] DEFAULT NULL) RETURNS bigint
LANGUAGE sql VOLATILE
RETURN pljobs.register_worker_v2('tests', 'here', 1, 3, 'tests 1.0', a_new_worker.queues);
CREATE FUNCTION stop_workers() RETURNS void
LANGUAGE sql VOLATILE
AS $$
UPDATE pljobs.worker AS w SET stopped_at = least(w.started_at, w.expires_at - interval '1 s') WHERE w.stopped_at IS NULL OR w.stopped_at >= w.expires_at;
$$;

-- What it is.
SELECT columns_are('pljobs', 'health', '{item,severity,subject,detail,action}'::name[], 'the columns of health');
CREATE TABLE items AS SELECT DISTINCT h.item FROM pljobs.health AS h;
SELECT is((SELECT count(*) FROM items), 28::bigint, 'every item is there, whatever was found');
SELECT is_empty($$SELECT h.item FROM pljobs.health AS h WHERE h.severity = 'ok' AND (h.detail IS NULL OR h.subject IS NOT NULL OR h.action IS NOT NULL)$$, 'an ok row says what was looked at, and nothing to do');
SELECT is_empty($$SELECT h.item FROM pljobs.health AS h WHERE h.severity <> 'ok' AND (h.subject IS NULL OR h.detail IS NULL OR h.action IS NULL)$$, 'a finding says what about, what is so, and what to do');
SELECT is_empty($$SELECT c.relname, m FROM pg_class AS c, regexp_matches(replace(pg_get_viewdef(c.oid), 'a.query ~~ ''%pljobs.heartbeat_v1%''::text', ''), '\.(?:query|args|result|error|message|progress_message)\M', 'g') AS m WHERE c.relnamespace = 'pljobs'::regnamespace AND c.relname ~ 'health'$$, 'nothing shows what a session runs (but that it is a heartbeat), nor what jobs carry');
SELECT is_empty($$SELECT c.relname, m FROM pg_class AS c, regexp_matches(pg_get_viewdef(c.oid), 'pljobs\.[a-z_0-9]+\(', 'g') AS m WHERE c.relnamespace = 'pljobs'::regnamespace AND c.relname ~ 'health' AND m[1] !~ '^pljobs\.(rescue_jobs|enforce_limits|cancel_job|resume_queue|limit_queues)\($'$$,
                'it calls no function of pljobs, which would take a right of its own: it only names what people call');
SELECT matches(pg_get_viewdef('pljobs._health_workers'::regclass), format('contract < %s\)', newest), 'the newest contract is that of get_contract_v1') FROM pljobs.get_contract_v1();

-- A healthy busy system: all ok. (What settings this server has is another matter.)
SELECT a_new_worker() AS w, a_name('queue') AS q \gset
SELECT pljobs.defer_jobs_v1((SELECT jsonb_agg(jsonb_build_object('task', 'a task', 'queue', :'q', 'lock', CASE WHEN n > 40 THEN 'lane ' || n % 3 END, 'start_within', '1 h', 'timeout', '1 h', 'priority', n % 3)) FROM generate_series(1, 60) AS n)),
       a_scheduled_job(), pljobs.pause_queue('an empty queue') \g /dev/null
SELECT count(*) FROM pljobs.fetch_jobs_v1(:w, 20, ARRAY[:'q']) \g /dev/null
SELECT f.job_id, f.run_id FROM pljobs.fetch_jobs_v1(:w, 1, ARRAY[:'q']) AS f \gset
SELECT pljobs.cancel_job(:job_id, abort => true), pljobs.heartbeat_v1(:w, (SELECT array_agg(j.run_id) FROM pljobs.job AS j WHERE j.status = 'doing')) \g /dev/null
SELECT is_empty($$SELECT h.item, h.severity, h.detail FROM pljobs.health AS h WHERE h.severity <> 'ok' AND h.item NOT IN ('settings', 'grants', 'roles')$$, 'a healthy busy system is all ok');
SELECT is(found('grants'), NULL, 'the groups have what they need');
UPDATE pljobs.job AS j SET status = 'succeeded', finished_at = clock_timestamp() - interval '1 h', run_id = NULL, request_id = NULL, timeout_at = NULL, waiting_for = NULL WHERE j.status IN ('todo', 'doing');
UPDATE pljobs.request AS r SET resolved_at = clock_timestamp(), resolution = 'aborted' WHERE r.resolved_at IS NULL;
SELECT stop_workers() \g /dev/null

-- expired_leases
SELECT * FROM a_doing_job() \gset
SELECT is(found('expired_leases'), NULL, 'a worker with a lease is fine');
UPDATE pljobs.worker AS w SET expires_at = clock_timestamp() - interval '5 s' WHERE w.id = :worker_id;
SELECT is(found('expired_leases'), format('notice tests@here:%s', pg_backend_pid()), 'a lease that has just run out is noticed');
SELECT lose_worker(:worker_id) \g /dev/null
SELECT is(found('expired_leases'), format('warning tests@here:%s', pg_backend_pid()), 'one whose jobs nobody has taken back for a minute is a warning');
SELECT matches(said('expired_leases'), 'lost for 01:00:0.*jobs: 1 \| SELECT pljobs.rescue_jobs\(\);', 'it says how many jobs, and what to do');
SELECT pljobs.rescue_jobs() \g /dev/null
SELECT is(found('expired_leases'), NULL, 'rescued, it is fine');
SELECT start_job(:job_id) AS run_id \gset
UPDATE pljobs.job AS j SET worker_id = 999999999 WHERE j.id = :job_id;
SELECT is(found('expired_leases'), 'warning worker 999999999', 'a running job of a worker that nobody knows is a warning');
SELECT pljobs.rescue_jobs() \g /dev/null

-- lost_workers
SELECT stop_workers() \g /dev/null
SELECT is(found('lost_workers'), NULL, 'workers that stopped are not lost');
SELECT a_worker() AS w1 \gset
SELECT lose_worker(:w1), pljobs.rescue_jobs() \g /dev/null
SELECT is(found('lost_workers'), 'notice 1 worker', 'one lost in the last hour is noticed');
SELECT a_worker() AS w2, a_worker() AS w3 \gset
SELECT lose_worker(:w2), lose_worker(:w3), pljobs.rescue_jobs() \g /dev/null
SELECT is(found('lost_workers'), 'warning 3 workers', 'three are a warning');
UPDATE pljobs.worker AS w SET stopped_at = w.stopped_at - interval '2 h', expires_at = w.expires_at - interval '2 h' WHERE w.id IN (:w1, :w2, :w3);
SELECT is(found('lost_workers'), NULL, 'after an hour they are history');

-- killer_jobs
UPDATE pljobs.job_event AS e SET at = e.at - interval '2 h' WHERE e.kind = 'rescued';
SELECT a_todo_job(task => 'deadly') AS job_id, a_worker() AS w1 \gset
SELECT start_job(:job_id, :w1), lose_worker(:w1), pljobs.rescue_jobs() \g /dev/null
SELECT is(found('killer_jobs'), NULL, 'a job that was lost once just happened to be there');
SELECT a_worker() AS w2 \gset
SELECT start_job(:job_id, :w2), lose_worker(:w2), pljobs.rescue_jobs() \g /dev/null
SELECT is(found('killer_jobs'), 'warning task deadly', 'one that was lost twice is a suspect');
SELECT matches(said('killer_jobs'), format('of its jobs 1 were lost in the last hour, with 2 workers; job %s 2 times', :job_id), 'it says which');
SELECT a_worker() AS w3 \gset
SELECT start_job(:job_id, :w3), lose_worker(:w3), pljobs.rescue_jobs() \g /dev/null
SELECT is(found('killer_jobs'), 'warning task deadly', 'and still is when it has failed for good');
UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'pljobs.job_event_rescued'::regclass;
SELECT is(found('killer_jobs'), 'notice pljobs.job_event_rescued', 'without its index it is not looked at, and says so');
SELECT is(found('invalid_indexes'), 'warning pljobs.job_event_rescued', 'an index that is not valid is a warning');
SELECT matches(said('invalid_indexes'), 'REINDEX INDEX CONCURRENTLY pljobs.job_event_rescued;', 'to be made again');
UPDATE pg_index SET indisvalid = true WHERE indexrelid = 'pljobs.job_event_rescued'::regclass;
SELECT is(found('invalid_indexes'), NULL, 'a valid one is fine');
UPDATE pljobs.job_event AS e SET at = e.at - interval '2 h' WHERE e.kind = 'rescued';
SELECT is(found('killer_jobs'), NULL, 'after an hour it is history');
DO $$
DECLARE
    v_worker bigint;
BEGIN
    FOR v_n IN 1..3 LOOP
        v_worker := a_worker();
        PERFORM start_job(a_todo_job(task => 'hungry'), v_worker), lose_worker(v_worker), pljobs.rescue_jobs();
    END LOOP;
END
$$;
SELECT is(found('killer_jobs'), 'notice task hungry', 'different jobs of a task, lost with three workers, are noticed');

-- stuck_aborts
SELECT stop_workers() \g /dev/null
UPDATE pljobs.job AS j SET status = 'succeeded', finished_at = clock_timestamp() - interval '1 h', run_id = NULL, request_id = NULL, timeout_at = NULL, waiting_for = NULL WHERE j.status IN ('todo', 'doing');
SELECT * FROM an_aborting_job() \gset
SELECT is(found('stuck_aborts'), NULL, 'an abort that was just asked for is not stuck');
SELECT age_request(:request_id, '2 min') \g /dev/null
SELECT is(found('stuck_aborts'), 'warning task a task', 'one that its worker has not heard of for a minute is a warning');
SELECT matches(said('stuck_aborts'), format('still running: 1; job %s for 00:02:0., by %s for an actor, at level 0 \| its worker, tests@here:.* has not heard', :job_id, session_user), 'it says who asked, and what about the worker');
SELECT verdict FROM verdict_of(:worker_id, :run_id) \g /dev/null
SELECT is(found('stuck_aborts'), 'notice task a task', 'one that the task was told of is noticed');
SELECT matches(said('stuck_aborts'), 'grace => ''10 s''\);', 'with what stops it by force');
SELECT verdict FROM verdict_of(:worker_id, :run_id, jsonb_build_array(jsonb_build_object('job_id', :job_id, 'run_id', :run_id, 'handling', 'swallowed'))) \g /dev/null
SELECT is(found('stuck_aborts'), 'warning task a task', 'one that the task ignores is a warning');
SELECT verdict FROM verdict_of(:worker_id, :run_id, jsonb_build_array(jsonb_build_object('job_id', :job_id, 'run_id', :run_id, 'handling', 'handling'))) \g /dev/null
SELECT is(found('stuck_aborts'), 'notice task a task', 'one that cleans up is noticed');
SELECT age_request(:request_id, '10 min') \g /dev/null
SELECT is(found('stuck_aborts'), 'warning task a task', 'but not for ten minutes');
SELECT age_request(:request_id, '-10 min'), pljobs.cancel_job(:job_id, abort => true, grace => '1 h') \g /dev/null
SELECT matches(said('stuck_aborts'), 'it is stopped by force at', 'one with a deadline needs nothing');
SELECT age_request(:request_id, '3 h') \g /dev/null
SELECT matches(said('stuck_aborts'), 'end its worker, tests@here:[0-9]+: it can''t stop the task', 'past its deadline, the worker is the trouble');
SELECT lose_worker(:worker_id) \g /dev/null
SELECT matches(said('stuck_aborts'), 'its worker is lost: SELECT pljobs.rescue_jobs\(\);', 'where the worker is lost, it says so');
SELECT pljobs.rescue_jobs() \g /dev/null
SELECT is(found('stuck_aborts'), NULL, 'resolved, it is fine');

-- tainted_workers, late_loops, old_workers
SELECT stop_workers() \g /dev/null
SELECT * FROM a_doing_job() \gset
SELECT is(found('old_workers'), 'notice contract 1', 'a worker that speaks an old contract is noticed');
SELECT is(found('tainted_workers'), NULL, 'a worker that has given up nothing is fine');
SELECT finish_run(:job_id, :run_id, 'abandoned') \g /dev/null
SELECT is(found('tainted_workers'), format('notice tests@here:%s', pg_backend_pid()), 'one that has given up a job is noticed');
UPDATE pljobs.worker AS w SET tainted_at = w.tainted_at - interval '20 min' WHERE w.id = :worker_id;
SELECT is(found('tainted_workers'), format('warning tests@here:%s', pg_backend_pid()), 'and is a warning where it doesn''t leave');
SELECT pljobs.unregister_worker_v1(:worker_id) \g /dev/null
SELECT is(found('tainted_workers'), NULL, 'stopped, it is fine');
SELECT is(found('old_workers'), NULL, 'so is an old one');
SELECT a_new_worker() AS w \gset
SELECT pljobs.heartbeat_v1(:w, loop_lag => '0.5 s') \g /dev/null
SELECT is(found('late_loops'), NULL, 'a loop that is late by less than a second is fine');
SELECT is(found('old_workers'), NULL, 'a worker that speaks the newest contract is fine');
SELECT pljobs.heartbeat_v1(:w, loop_lag => '2 s') \g /dev/null
SELECT is(found('late_loops'), 'notice tests@here:1', 'one that is late by seconds is noticed');
SELECT pljobs.heartbeat_v1(:w, loop_lag => '20 s') \g /dev/null
SELECT is(found('late_loops'), 'warning tests@here:1', 'by more than ten, it is a warning');
SELECT stop_workers() \g /dev/null

-- unserved_queues, paused_queues
SELECT a_name('queue') AS q \gset
SELECT a_todo_job(queue => :'q') AS job_id \gset
SELECT is(found('unserved_queues'), NULL, 'a job that has just become ready may wait for a worker to start');
SELECT age_jobs('2 min', :job_id) \g /dev/null
SELECT is(found('unserved_queues'), 'critical queue ' || :'q', 'a minute without any worker is critical');
SELECT a_new_worker('{another}') AS w \gset
SELECT is(found('unserved_queues'), 'warning queue ' || :'q', 'a queue that no worker serves is a warning');
SELECT pljobs.pause_queue(:'q', 'a reason') \g /dev/null
SELECT is(found('unserved_queues'), NULL, 'a paused one is not');
SELECT is(found('paused_queues'), 'notice queue ' || :'q', 'it is noticed');
SELECT matches(said('paused_queues'), format('paused for .* by %s: a reason \| SELECT pljobs.resume_queue\(''%s''\);', session_user, :'q'), 'with who paused it, and why');
SELECT pljobs.resume_queue(:'q'), a_new_worker(ARRAY['another', :'q']) AS w \g /dev/null
SELECT is(ARRAY[found('unserved_queues'), found('paused_queues')], ARRAY[NULL, NULL]::text[], 'a queue that somebody serves is fine');
UPDATE pljobs.worker AS w SET tainted_at = clock_timestamp() WHERE :'q' = ANY (w.queues);
SELECT is(found('unserved_queues'), 'warning queue ' || :'q', 'a worker that is tainted serves none');
UPDATE pljobs.worker AS w SET tainted_at = NULL, queues = NULL WHERE :'q' = ANY (w.queues);
SELECT is(found('unserved_queues'), NULL, 'a worker without a list serves all');

-- waiting_jobs
SELECT is(found('waiting_jobs'), NULL, 'two minutes are not long');
SELECT age_jobs('15 min', :job_id) \g /dev/null
SELECT is(found('waiting_jobs'), 'warning queue ' || :'q', 'a queue that a worker serves, and that does not move, is a warning');
SELECT matches(said('waiting_jobs'), format('job %s has been ready for 00:17:0., and nothing of this queue runs', :job_id), 'it says which job');
SELECT a_todo_job(queue => :'q', priority => 1) AS urgent \gset
SELECT start_job(:urgent) AS run_id \gset
SELECT is(found('waiting_jobs'), NULL, 'where something of the queue runs, waiting a while is usual');
SELECT finish_run(:urgent, :run_id, 'succeeded') \g /dev/null
SELECT is(found('waiting_jobs'), NULL, 'and where something has just ended');
SELECT age_jobs('1 h', :job_id) \g /dev/null
SELECT is(found('waiting_jobs'), 'notice queue ' || :'q', 'more than an hour is noticed');
SELECT count(a_todo_job(queue => :'q', priority => 5)) FROM generate_series(1, 30) \g /dev/null
SELECT is(found('waiting_jobs'), 'notice queue ' || :'q', 'also behind any number of more urgent ones');
SELECT pljobs.cancel_jobs(queue => :'q', dry_run => false) \g /dev/null
SELECT is(found('waiting_jobs'), NULL, 'cancelled, nothing waits');
SELECT a_todo_job(queue => :'q', lock => a_name('lane')) AS job_id \gset
SELECT age_jobs('3 h', :job_id) \g /dev/null
SELECT is(found('waiting_jobs'), NULL, 'how long a job of a lane has been ready is not known');
SELECT pljobs.cancel_job(:job_id), a_todo_job(queue => :'q') AS job_id \gset
SELECT age_jobs('3 h', :job_id), start_job(:job_id) AS run_id \gset
SELECT finish_run(:job_id, :run_id, 'failed', '{"retry_at": "2001-01-01T00:00:00Z"}') \g /dev/null
UPDATE pljobs.job AS j SET finished_at = j.finished_at - interval '1 h' WHERE j.finished_at IS NOT NULL;
SELECT is(found('waiting_jobs'), NULL, 'a job that failed just now, and runs again, has not waited since it was deferred');
UPDATE pljobs.job_event AS e SET at = e.at - interval '2 h' WHERE e.job_id = :job_id;
SELECT is(found('waiting_jobs'), 'warning queue ' || :'q', 'but since it failed');
SELECT pljobs.cancel_job(:job_id) \g /dev/null

-- The same of jobs that wait for their key's turn, and for their task's limit.
CREATE FUNCTION a_keyed_job(queue text, key text, priority integer DEFAULT 0, lock text DEFAULT NULL) RETURNS bigint
LANGUAGE sql VOLATILE
RETURN (SELECT d.job_id FROM pljobs.defer_jobs_v3(jsonb_build_array(jsonb_build_object('task', 'a task', 'queue', a_keyed_job.queue, 'fairness_key', a_keyed_job.key, 'priority', a_keyed_job.priority, 'lock', a_keyed_job.lock))) AS d);
SELECT stop_workers(), a_name('queue') AS q \gset
SELECT a_keyed_job(:'q', 'b') AS job_id \gset
SELECT is(found('unserved_queues'), NULL, 'a job that has just begun to wait for its turn may wait for a worker to start');
SELECT age_jobs('2 min', :job_id) \g /dev/null
SELECT is(found('unserved_queues'), 'critical queue ' || :'q', 'a queue where keys take turns is seen, too');
SELECT a_todo_job(queue => :'q') AS plain \gset
SELECT is(found('unserved_queues'), 'critical queue ' || :'q', 'once, though it has other jobs besides');
SELECT pljobs.cancel_job(:plain), pljobs.pause_queue(:'q') \g /dev/null
SELECT is(found('paused_queues'), 'notice queue ' || :'q', 'paused, it is noticed');
SELECT pljobs.resume_queue(:'q'), a_new_worker(NULL) \g /dev/null
SELECT is(ARRAY[found('unserved_queues'), found('paused_queues'), found('waiting_jobs')], ARRAY[NULL, NULL, NULL]::text[], 'served, it is fine');
UPDATE pljobs.job AS j SET finished_at = j.finished_at - interval '1 h' WHERE j.finished_at IS NOT NULL;
SELECT age_jobs('15 min', :job_id) \g /dev/null
SELECT is(found('waiting_jobs'), 'warning queue ' || :'q', 'where it does not move, it is a warning');
SELECT matches(said('waiting_jobs'), format('job %s has been ready for 00:17:0., and nothing of this queue runs', :job_id), 'it says which job');
SELECT count(a_keyed_job(:'q', 'a', priority => 5)), count(a_keyed_job(:'q', 'a')) FROM generate_series(1, 30) \g /dev/null
SELECT is(found('waiting_jobs'), 'warning queue ' || :'q', 'also behind any number of more urgent ones, and of another key');
SELECT pljobs.cancel_jobs(queue => :'q', dry_run => false) \g /dev/null
SELECT a_keyed_job(:'q', 'a', lock => a_name('lane')) AS job_id \gset
SELECT age_jobs('3 h', :job_id) \g /dev/null
SELECT is(found('waiting_jobs'), NULL, 'how long one of a lane has been ready is not known');
SELECT pljobs.cancel_job(:job_id), a_name('task') AS t \gset
SELECT pljobs.throttle_task(:'t', max_running => 1), a_todo_job(queue => :'q', task => :'t') AS running, a_todo_job(queue => :'q', task => :'t') AS job_id \gset
SELECT count(*) FROM pljobs.fetch_jobs_v1(a_worker(), 2, ARRAY[:'q']) \g /dev/null
SELECT is(j.waiting_for, 'limit', 'a job is parked') FROM pljobs.job AS j WHERE j.id = :job_id;
SELECT age_jobs('3 h', :job_id) \g /dev/null
SELECT is(found('waiting_jobs'), NULL, 'that a job waits for its task''s limit is as somebody wanted it');
SELECT is(found('unserved_queues'), NULL, 'where a worker is alive');
SELECT stop_workers() \g /dev/null
SELECT is(found('unserved_queues'), 'critical queue ' || :'q', 'and not where none is');
SELECT pljobs.throttle_task(:'t'), pljobs.cancel_job(:job_id), pljobs.cancel_job(:running, force => true) \g /dev/null

-- late_schedules, late_limits
UPDATE pljobs.job AS j SET finished_at = j.finished_at - interval '1 h' WHERE j.finished_at IS NOT NULL;
SELECT a_scheduled_job() AS job_id \gset
SELECT is(found('late_schedules'), NULL, 'a job that is scheduled for later is not late');
SELECT age_jobs('1 day 1 min', :job_id) \g /dev/null
SELECT is(found('late_schedules'), NULL, 'nor is one that was due a minute ago');
SELECT age_jobs('10 min', :job_id) \g /dev/null
SELECT matches(found('late_schedules'), '^warning queue', 'one that nobody has made ready for minutes is a warning');
SELECT a_worker() AS w, a_todo_job() AS running_job_id \gset
SELECT start_job(:running_job_id, :w) AS running_run_id \gset
SELECT is(found('late_schedules'), NULL, 'any fetch makes it ready');
SELECT pljobs.cancel_job(:job_id), a_scheduled_job() AS job_id \gset
SELECT age_jobs('1 day 10 min', :job_id) \g /dev/null
SELECT matches(found('late_schedules'), '^notice queue', 'where workers are full, it is noticed');
SELECT finish_run(:running_job_id, :running_run_id, 'succeeded'), pljobs.cancel_job(:job_id) \g /dev/null
SELECT is(found('late_schedules'), NULL, 'cancelled, it is not late');
SELECT * FROM a_late_job() \gset late_
SELECT is(found('late_limits'), format('warning timeout of job %s', :late_job_id), 'a run that should long have been asked to abort is a warning');
SELECT pljobs.defer_job('a task', queue => a_name('queue'), start_by => clock_timestamp() + interval '1 min') AS job_id \gset
SELECT age_jobs('2 min', :job_id) \g /dev/null
SELECT is(found('late_limits'), format('warning timeout of job %s', :late_job_id), 'a job that should have been cancelled a minute ago is not late yet');
SELECT age_jobs('10 min', :job_id) \g /dev/null
SELECT is(found('late_limits'), format('warning start_by of job %s; warning timeout of job %s', :job_id, :late_job_id), 'so is a job that should long have been cancelled');
SELECT pljobs.enforce_limits() \g /dev/null
SELECT is(found('late_limits'), NULL, 'enforced, both are fine');

-- dead_tuples (in Python), bloat, autovacuum, wraparound
SELECT is(ARRAY[found('dead_tuples'), found('bloat'), found('autovacuum'), found('wraparound')], ARRAY[NULL, NULL, NULL, NULL]::text[], 'small tables are fine');
CREATE FUNCTION resize(relation regclass, pages bigint, rows_ bigint) RETURNS void
LANGUAGE sql VOLATILE
AS $$
UPDATE pg_class SET relpages = pages, reltuples = rows_ WHERE oid = resize.relation;
$$;
SELECT resize('pljobs.job', 1000000, 10000000) \g /dev/null
SELECT is(found('bloat'), NULL, 'a large table of many rows is not bloated');
SELECT resize('pljobs.job', 1000000, 100000) \g /dev/null
SELECT is(found('bloat'), 'notice pljobs.job', 'one of few rows is');
SELECT matches(said('bloat'), '^7813 MB for 100000 rows, which need [0-9]+ MB or so', 'it says how much');
SELECT resize('pljobs.job', 1000, 0) \g /dev/null
SELECT is(found('bloat'), NULL, 'an empty one of some MB is not');
SELECT resize('pljobs.job_ready', 100000, 20000000) \g /dev/null
SELECT is(found('bloat'), NULL, 'an index of many entries is not bloated');
SELECT resize('pljobs.job_ready', 100000, 1000) \g /dev/null
SELECT is(found('bloat'), 'notice pljobs.job_ready', 'one of few entries is');
SELECT resize('pljobs.job_ready', 1000, 0), resize('pljobs.worker', 10000, 50) \g /dev/null
SELECT is(found('bloat'), 'notice pljobs.worker', 'of workers a few MB are many');
SELECT resize('pljobs.worker', 1, 50) \g /dev/null

ALTER TABLE pljobs.progress SET (autovacuum_enabled = off);
SELECT is(found('autovacuum'), 'warning pljobs.progress', 'a table that is not vacuumed is a warning');
ALTER TABLE pljobs.job SET (autovacuum_enabled = false);
SELECT is(found('autovacuum'), 'critical pljobs.job; warning pljobs.progress', 'the table of jobs is critical');
ALTER TABLE pljobs.job RESET (autovacuum_enabled), SET (toast.autovacuum_enabled = false);
ALTER TABLE pljobs.progress RESET (autovacuum_enabled);
SELECT is(found('autovacuum'), 'critical pljobs.job (TOAST)', 'so is what lies beside it');
ALTER TABLE pljobs.job RESET (toast.autovacuum_enabled);
SELECT is(found('autovacuum'), NULL, 'switched on again, they are fine');
SET LOCAL track_counts = off;
SELECT is(found('autovacuum'), 'critical track_counts = off', 'without counts nothing is vacuumed');
SET LOCAL track_counts = on;

CREATE FUNCTION xid_of_age(age_ bigint) RETURNS xid
LANGUAGE sql VOLATILE
RETURN ((pg_current_xact_id()::text::bigint - age_ + 2 * 4294967296) % 4294967296)::text::xid;
UPDATE pg_class SET relfrozenxid = xid_of_age(300000000) WHERE oid = 'pljobs.request'::regclass;
SELECT is(found('wraparound'), NULL, 'an age at which autovacuum has just begun to work is fine');
UPDATE pg_class SET relfrozenxid = xid_of_age(500000000) WHERE oid = 'pljobs.request'::regclass;
SELECT is(found('wraparound'), 'warning pljobs.request', 'twice that is a warning');
UPDATE pg_class SET relfrozenxid = xid_of_age(1600000000) WHERE oid = 'pljobs.request'::regclass;
SELECT is(found('wraparound'), 'critical pljobs.request', 'near the end it is critical');
UPDATE pg_class SET relfrozenxid = xid_of_age(10) WHERE oid = 'pljobs.request'::regclass;
UPDATE pg_database SET datfrozenxid = xid_of_age(500000000) WHERE datname = current_database();
SELECT is(found('wraparound'), 'warning database ' || current_database(), 'a whole database counts, too');
UPDATE pg_database SET datfrozenxid = xid_of_age(10) WHERE datname = current_database();

-- roles, grants, queue_limits, settings
SELECT is(ARRAY[found('roles'), found('grants'), found('queue_limits')], ARRAY[NULL, NULL, NULL]::text[], 'as installed, roles and rights are fine');
ALTER ROLE pljobs_canceller RENAME TO pljobs_tests_canceller;
ALTER ROLE pljobs_producer RENAME TO pljobs_tests_producer;
SELECT is(found('roles'), 'notice pljobs_canceller, pljobs_producer', 'groups that don''t exist are noticed');
ALTER ROLE pljobs_tests_canceller RENAME TO pljobs_canceller;
ALTER ROLE pljobs_tests_producer RENAME TO pljobs_producer;
REVOKE EXECUTE ON ROUTINE pljobs.fetch_jobs_v1 FROM pljobs_worker;
REVOKE USAGE ON SCHEMA pljobs FROM pljobs_worker;
REVOKE SELECT ON pljobs.health FROM pljobs_reader;
SELECT is(found('grants'), 'warning pljobs_reader; warning pljobs_worker', 'a group that lacks what it needs is a warning');
SELECT matches(said('grants'), 'lacks what it needs: SELECT on health \|.*lacks what it needs: EXECUTE on fetch_jobs_v1, USAGE on the schema \|', 'it says what');
GRANT EXECUTE ON ROUTINE pljobs.fetch_jobs_v1 TO pljobs_worker;
GRANT USAGE ON SCHEMA pljobs TO pljobs_worker;
GRANT SELECT ON pljobs.health TO pljobs_reader;
CREATE ROLE pljobs_tests_owner;
ALTER SCHEMA pljobs OWNER TO pljobs_tests_owner;
SELECT is(found('grants'), 'notice pljobs_tests_owner; notice pljobs_tests_owner', 'an owner that may neither cancel others'' statements nor see them is noticed');
GRANT pg_signal_backend TO pljobs_tests_owner;
SELECT matches(said('grants'), 'GRANT pg_read_all_stats TO pljobs_tests_owner;', 'so is one that may not see them');
GRANT pg_read_all_stats TO pljobs_tests_owner;
SELECT is(found('grants'), NULL, 'one that may is fine');
ALTER ROLE pljobs_tests_owner SUPERUSER;
SELECT is(found('grants'), 'notice pljobs_tests_owner', 'an owner that is a superuser is noticed');
ALTER SCHEMA pljobs OWNER TO pljobs_owner;
CREATE ROLE "pljobs tests limited";
SELECT pljobs.limit_queues('pljobs tests limited', 'fetch', '{mail}') \g /dev/null
SELECT is(found('queue_limits'), NULL, 'a limit of a role that exists is fine');
DROP ROLE "pljobs tests limited";
SELECT is(found('queue_limits'), 'notice pljobs tests limited', 'one of a role that doesn''t is noticed');
SELECT matches(said('queue_limits'), 'SELECT pljobs.limit_queues\(''pljobs tests limited'', ''fetch'', NULL\);', 'with what takes it away');

SET LOCAL idle_in_transaction_session_timeout = '1min';
SET LOCAL synchronous_commit = on;
SELECT is(found('settings'), (SELECT string_agg(format('critical %s = off', s), '; ') FROM unnest('{fsync,full_page_writes}'::text[]) AS s WHERE current_setting(s) = 'off'), 'a server that may lose all is critical');
SET LOCAL idle_in_transaction_session_timeout = 0;
SET LOCAL synchronous_commit = off;
SET LOCAL track_activities = off;
SELECT matches(found('settings'), 'warning track_activities = off; notice idle_in_transaction_session_timeout = 0; notice synchronous_commit = off$', 'settings that hurt are found');
SET LOCAL track_activities = on;
SET LOCAL synchronous_commit = on;

-- Who may see less is told so.
GRANT USAGE ON SCHEMA :test_schema TO pljobs_reader;
SET LOCAL ROLE pljobs_reader;
SELECT string_agg(h.item || ' ' || h.severity || ' ' || h.subject, '; ') AS hidden, min(h.action) AS action FROM pljobs.health AS h WHERE h.detail ~ 'not looked at' \gset
RESET ROLE;
SELECT is(:'hidden'::text, 'held_snapshots notice pljobs_reader; listeners notice pljobs_reader; open_transactions notice pljobs_reader', 'a reader that may not see others'' sessions is told which items were not looked at');
SELECT is(:'action'::text, 'GRANT pg_read_all_stats TO pljobs_reader;', 'and what would show them');
GRANT pg_read_all_stats TO pljobs_reader;
SET LOCAL ROLE pljobs_reader;
SELECT count(*) FILTER (WHERE h.detail ~ 'not looked at') AS hidden, count(DISTINCT h.item) AS items FROM pljobs.health AS h \gset
RESET ROLE;
SELECT is(ARRAY[:hidden, :items], '{0,28}'::integer[], 'one that may sees all');
CREATE ROLE pljobs_tests_monitor;
GRANT USAGE ON SCHEMA pljobs TO pljobs_tests_monitor;
GRANT SELECT ON pljobs.health TO pljobs_tests_monitor;
SET LOCAL ROLE pljobs_tests_monitor;
SELECT count(DISTINCT h.item) AS items FROM pljobs.health AS h \gset
RESET ROLE;
SELECT is(:items, 28, 'SELECT on the view and USAGE on the schema are enough');

-- Patience.
SELECT stop_workers(), a_todo_job(queue => :'q') AS job_id \gset
SELECT age_jobs('30 s', :job_id) \g /dev/null
SELECT is(found('unserved_queues'), NULL, 'half a minute is short');
SET LOCAL pljobs.health_patience = '0.1';
SELECT is(found('unserved_queues'), 'critical queue ' || :'q', 'with a tenth of the patience it is long');
SELECT age_jobs('5 min', :job_id) \g /dev/null
SET LOCAL pljobs.health_patience = '10';
SELECT is(found('unserved_queues'), NULL, 'with ten times the patience, five minutes are short');
SET LOCAL pljobs.health_patience = '99999999999999999999999999';
SELECT is(found('unserved_queues'), NULL, 'there is no end to patience');
SET LOCAL pljobs.health_patience = 'garbage';
SELECT is(found('unserved_queues'), 'critical queue ' || :'q', 'what is no number is ignored');

SELECT * FROM finish();
ROLLBACK;

BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT a_name('queueing lock') AS ql \gset
SELECT * FROM a_doing_job('lane ' || a_name('a'), :'ql') \gset
SELECT pljobs._requeue_job(:job_id, 'retried', 'a message', 'an error', crashes => 1, ended_run_id => :run_id) \g /dev/null
SELECT results_eq(
    format($$SELECT status, run_id, last_run_id, worker_id, started_at, finished_at, waiting_for, attempts, crashes, queueing_lock, message, error
               FROM pljobs.job WHERE id = %s$$, :job_id),
    format($$VALUES ('todo', NULL::bigint, %s::bigint, NULL::bigint, NULL::timestamptz, NULL::timestamptz, NULL::text, 1, 1, %L, 'a message', 'an error')$$, :run_id, :'ql'),
    'a job that is put back is ready to run, keeps its queueing lock, its counts, its message and error');
SELECT results_eq(
    format('SELECT run_id, worker_id, attempt, kind, message, error, started_at IS NOT NULL, at >= started_at FROM pljobs.job_event WHERE job_id = %s', :job_id),
    format($$VALUES (%s::bigint, %s::bigint, 1, 'retried', 'a message', 'an error', true, true)$$, :run_id, :worker_id),
    'how the attempt before ended is an event');

SELECT * FROM a_doing_job() \gset
SELECT pljobs._requeue_job(:job_id, 'interrupted', NULL, NULL, charged => false) \g /dev/null
SELECT results_eq(format('SELECT attempts, crashes, last_run_id FROM pljobs.job WHERE id = %s', :job_id), 'VALUES (0, 0, NULL::bigint)',
                  'an attempt that is not charged is taken back');
SELECT is(e.attempt, 1, 'its event names the attempt all the same') FROM pljobs.job_event AS e WHERE e.job_id = :job_id;

SELECT * FROM a_doing_job() \gset
SELECT pljobs._requeue_job(:job_id, 'retried', NULL, NULL, scheduled_at => clock_timestamp() + interval '1 h', queue => 'another', priority => -7, lock => 'some lane') \g /dev/null
SELECT results_eq(format('SELECT waiting_for, scheduled_at > clock_timestamp(), queue, priority, lock FROM pljobs.job WHERE id = %s', :job_id),
                  $$VALUES ('schedule', true, 'another', -7, 'some lane')$$, 'a job may be put back for later, in another queue, priority and lane');

SELECT a_name('queueing lock') AS ql \gset
SELECT * FROM a_doing_job(NULL, :'ql') \gset
SELECT a_todo_job(NULL, :'ql') AS newer \gset
SELECT pljobs._requeue_job(:job_id, 'rescued', NULL, NULL) \g /dev/null
SELECT results_eq(format('SELECT status, queueing_lock FROM pljobs.job WHERE id IN (%s, %s) ORDER BY id', :job_id, :newer),
                  format($$VALUES ('todo', NULL), ('todo', %L)$$, :'ql'), 'a queueing lock that a newer waiting job holds is given up, not raised');

SELECT a_finished_job('failed') AS job_id \gset
SELECT pljobs._requeue_job(:job_id, 'failed', 'm', NULL) \g /dev/null
SELECT results_eq(format('SELECT j.status, e.run_id = j.last_run_id, e.at > e.started_at FROM pljobs.job AS j JOIN pljobs.job_event AS e ON e.job_id = j.id WHERE j.id = %s', :job_id),
                  $$VALUES ('todo', true, true)$$, 'the event of a finished job has the run that ended it and the time when it ended');

SELECT pljobs.defer_job('t', queue => a_name('queue'), start_by => now() + interval '1 h', timeout => '1 h') AS job_id \gset
SELECT start_job(:job_id) \g /dev/null
SELECT pljobs._requeue_job(:job_id, 'given_back', NULL, NULL, charged => false) \g /dev/null
SELECT results_eq(format('SELECT start_by > now(), timeout, timeout_at FROM pljobs.job WHERE id = %s', :job_id), $$VALUES (true, interval '1 h', NULL::timestamptz)$$, 'what no worker received is still to start in time');
SELECT start_job(:job_id) \g /dev/null
SELECT pljobs._requeue_job(:job_id, 'interrupted', NULL, NULL, charged => false) \g /dev/null
SELECT results_eq(format('SELECT start_by, timeout FROM pljobs.job WHERE id = %s', :job_id), $$VALUES (NULL::timestamptz, interval '1 h')$$, 'what has started once has kept its time to start');

-- Where this transaction has waited for a queueing lock once, no other job of it waits for long: tests_py/test_scale.py.
SELECT set_config('pljobs.has_waited', 'yes', true), a_name('queueing lock') AS ql \gset
SELECT * FROM a_doing_job(NULL, :'ql') \gset
SELECT pljobs._requeue_job(:job_id, 'rescued', NULL, NULL) \g /dev/null
SELECT results_eq(format('SELECT status, queueing_lock FROM pljobs.job WHERE id = %s', :job_id), format($$VALUES ('todo', %L)$$, :'ql'), 'one that nobody else wants is kept');
SELECT isnt(current_setting('lock_timeout'), '20ms', 'and the caller''s lock_timeout is what it was');

SELECT * FROM finish();
ROLLBACK;

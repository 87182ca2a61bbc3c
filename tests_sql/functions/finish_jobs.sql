-- Under concurrency: races/*finish*.spec.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

-- succeeded
SELECT * FROM a_doing_job() \gset
SELECT is(finish_run(:job_id, :run_id, 'succeeded', '{"result": {"n": [1]}, "message": "done"}'), 'succeeded', 'a run that succeeded is recorded so');
SELECT results_eq(format('SELECT status, result, message, error, run_id, last_run_id, worker_id, attempts FROM pljobs.job WHERE id = %s', :job_id),
                  format($$VALUES ('succeeded', '{"n": [1]}'::jsonb, 'done', NULL::text, NULL::bigint, %s::bigint, %s::bigint, 1)$$, :run_id, :worker_id), 'with its result and message');
SELECT ok(j.finished_at BETWEEN j.started_at AND clock_timestamp(), 'and the time when it ended') FROM pljobs.job AS j WHERE j.id = :job_id;
SELECT is(finish_run(:job_id, :run_id, 'succeeded'), 'succeeded', 'a replayed success is answered again');
SELECT is(finish_run(:job_id, :run_id, 'failed', '{"retry_at": "2001-01-01T00:00:00Z"}'), 'succeeded', 'a replay says what was written, whatever it asks');
SELECT is(j.result, '{"n": [1]}', 'a replay changes nothing') FROM pljobs.job AS j WHERE j.id = :job_id;

-- failed
SELECT * FROM a_doing_job() \gset
SELECT is(finish_run(:job_id, :run_id, 'failed', '{"error": "a traceback", "message": "ValueError"}'), 'failed', 'a run that failed without a retry has failed');
SELECT results_eq(format('SELECT status, message, error FROM pljobs.job WHERE id = %s', :job_id), $$VALUES ('failed', 'ValueError', 'a traceback')$$, 'with its error');
SELECT * FROM a_doing_job() \gset
SELECT is(finish_run(:job_id, :run_id, 'failed', '{"error": "e", "retry_at": "2001-01-01T00:00:00Z"}'), 'todo', 'a failed run with a time of retry goes back');
SELECT is(wait_of(:job_id), 'ready', 'a retry whose time has come can run at once');
SELECT results_eq(format('SELECT kind, error FROM pljobs.job_event WHERE job_id = %s', :job_id), $$VALUES ('retried', 'e')$$, 'the error of each attempt is kept');
SELECT is(finish_run(:job_id, :run_id, 'failed', '{"retry_at": "2001-01-01T00:00:00Z"}'), 'todo', 'a replayed retry is answered again');
SELECT start_job(:job_id) AS second_run \gset
SELECT is(finish_run(:job_id, :run_id, 'failed'), 'todo', 'also once the job runs again');
SELECT finish_run(:job_id, :second_run, 'failed') \g /dev/null
SELECT is(finish_run(:job_id, :run_id, 'failed'), 'todo', 'also once a later run has ended it');
SELECT is(finish_run(:job_id, :second_run, 'succeeded'), 'failed', 'each run is answered what it wrote itself');
SELECT is(status_of(:job_id), 'failed', 'and changes nothing');
SELECT pljobs.retry_job(:job_id) \g /dev/null
SELECT is(finish_run(:job_id, :second_run, 'succeeded'), 'failed', 'also once a person has put the job back');
SELECT * FROM a_doing_job() \gset
SELECT finish_run(:job_id, :run_id, 'failed', '{"retry_at": "2001-01-01T00:00:00Z"}'), pljobs.cancel_job(:job_id) \g /dev/null
SELECT is(finish_run(:job_id, :run_id, 'failed'), 'todo', 'also once a person has cancelled the job');

SELECT * FROM a_doing_job() \gset
SELECT finish_run(:job_id, :run_id, 'failed', jsonb_build_object('retry_at', clock_timestamp() + interval '1 h', 'retry_queue', 'q2', 'retry_priority', 9, 'retry_lock', 'l2')) \g /dev/null
SELECT results_eq(format('SELECT waiting_for, queue, priority, lock FROM pljobs.job WHERE id = %s', :job_id), $$VALUES ('schedule', 'q2', 9, 'l2')$$, 'a retry may be later, in another queue, priority and lane');
SELECT * FROM a_doing_job() \gset
SELECT is(finish_run(:job_id, :run_id, 'failed', '{"retry_at": "infinity"}'), 'todo', 'a retry at infinity is one');
SELECT is(j.scheduled_at, '9999-12-30 00:00+00', 'at the last time that Python can hold') FROM pljobs.job AS j WHERE j.id = :job_id;
SELECT * FROM a_doing_job() \gset
SELECT finish_run(:job_id, :run_id, 'failed', '{"retry_at": "-infinity", "retry_priority": -2147483648}') \g /dev/null
SELECT is(j.scheduled_at, '0001-01-02 00:00+00', 'a retry before all time is at the first time that Python can hold') FROM pljobs.job AS j WHERE j.id = :job_id;
SELECT is(wait_of(:job_id), 'ready', 'and can run at once');

SELECT a_name('queueing lock') AS ql \gset
SELECT * FROM a_doing_job(NULL, :'ql') \gset
SELECT a_todo_job(NULL, :'ql') AS newer \gset
SELECT is(finish_run(:job_id, :run_id, 'failed', '{"retry_at": "2001-01-01T00:00:00Z"}'), 'todo', 'a retry whose queueing lock a newer job holds goes back all the same');
SELECT is(j.queueing_lock, NULL, 'without its queueing lock') FROM pljobs.job AS j WHERE j.id = :job_id;

-- aborted, interrupted
SELECT * FROM a_doing_job() \gset
SELECT is(finish_run(:job_id, :run_id, 'aborted'), 'failed', 'a run that was aborted though nobody asked has failed');
SELECT is(finish_run(:job_id, :run_id, 'aborted'), 'failed', 'a replay of it as well');
SELECT * FROM a_doing_job() \gset
SELECT is(finish_run(:job_id, :run_id, 'interrupted'), 'todo', 'a run that a shutdown interrupted goes back');
SELECT results_eq(format('SELECT attempts, waiting_for FROM pljobs.job WHERE id = %s', :job_id), 'VALUES (0, NULL::text)', 'at once, and is not charged');
SELECT is(finish_run(:job_id, :run_id, 'interrupted'), 'todo', 'a replayed interruption is answered again');
SELECT is(start_job(:job_id) > :run_id, true, 'it runs again with a run of its own');
SELECT pljobs.defer_job('t', queue => a_name('queue'), start_by => '9999-01-01 00:00+00') AS job_id \gset
SELECT start_job(:job_id) AS run_id \gset
SELECT is(finish_run(:job_id, :run_id, 'unstarted'), 'todo', 'a run that never began goes back');
SELECT is(finish_run(:job_id, :run_id, 'unstarted'), 'todo', 'which can be said again');
SELECT results_eq(format('SELECT attempts, start_by IS NOT NULL FROM pljobs.jobs WHERE id = %s', :job_id), 'VALUES (0, true)', 'uncharged, and with the time by which it has to start');
SELECT start_job(:job_id) \g /dev/null
SELECT is(finish_run(:job_id, :run_id, 'unstarted'), 'todo', 'also when the job runs again');
SELECT pljobs.cancel_job(:job_id, force => true) \g /dev/null
SELECT is(finish_run(:job_id, :run_id, 'unstarted'), 'todo', 'and when that run was ended by force');
SELECT * FROM a_doing_job() \gset
SELECT age_runs(:run_id), pljobs.heartbeat_v1(:worker_id) \g /dev/null
SELECT is(finish_run(:job_id, :run_id, 'unstarted'), 'stale', 'what a heartbeat gave back was not ended by its run');
SELECT * FROM a_doing_job() \gset
SELECT is(finish_run(:job_id, :run_id, 'failed', '{"retry_in": "5000000 years -1800000000 days"}'), 'todo', 'the strangest retry_in keeps no run from ending');
SELECT * FROM an_aborting_job() \gset
SELECT is(finish_run(:job_id, :run_id, 'unstarted'), 'aborted', 'one that was asked to abort is aborted');

-- With an open request.
CREATE TABLE asked (outcome text, more jsonb, status text, resolution text, rule text);
INSERT INTO asked VALUES
    ('succeeded', '{}', 'succeeded', 'finished_first', 'a run that succeeds before its abort has succeeded'),
    ('failed', '{}', 'failed', 'failed_first', 'a run that fails before its abort has failed'),
    ('failed', '{"retry_at": "2001-01-01T00:00:00Z"}', 'failed', 'failed_first', 'a run that was asked to abort is never retried'),
    ('aborted', '{"message": "mine"}', 'aborted', 'aborted', 'a run that was asked to abort and does is aborted'),
    ('aborted', '{"retry_at": "2001-01-01T00:00:00Z"}', 'aborted', 'aborted', 'an aborted run is never retried'),
    ('aborted', '{"delete_job": true}', 'deleted', 'aborted', 'a job that deletes itself at its end does so where it is aborted, and its request says what became of it'),
    ('interrupted', '{"delete_job": true}', 'deleted', 'aborted', 'also by a shutdown'),
    ('interrupted', '{}', 'aborted', 'aborted', 'a shutdown does not rescue a run that was asked to abort'),
    ('succeeded', '{"delete_job": true}', 'deleted', 'finished_first', 'a job that deletes itself on success does so');
CREATE FUNCTION end_asked(outcome text, more jsonb) RETURNS text
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_job record := an_aborting_job();
    v_status text := finish_run(v_job.job_id, v_job.run_id, end_asked.outcome, end_asked.more);
BEGIN
    RETURN v_status || ', ' || (SELECT r.resolution FROM pljobs.request AS r WHERE r.id = v_job.request_id);
END
$$;
SELECT is(end_asked(a.outcome, a.more), a.status || ', ' || a.resolution, a.rule) FROM asked AS a;
SELECT * FROM an_aborting_job() \gset
SELECT finish_run(:job_id, :run_id, 'aborted', '{"message": "mine", "error": "stack"}') \g /dev/null
SELECT results_eq(format('SELECT message, error FROM pljobs.job WHERE id = %s', :job_id), $$VALUES ('mine', 'stack')$$, 'an aborted job keeps its own message and error');
SELECT is(finish_run(:job_id, :run_id, 'succeeded'), 'aborted', 'a replayed abort is answered again');
SELECT * FROM an_aborting_job() \gset
SELECT finish_run(:job_id, :run_id, 'aborted') \g /dev/null
SELECT is(j.message, 'a reason', 'without a message an aborted job says the reason of its request') FROM pljobs.job AS j WHERE j.id = :job_id;
SELECT * FROM an_aborting_job(delete_job => true) \gset
SELECT is(finish_run(:job_id, :run_id, 'aborted'), 'deleted', 'where deletion was asked, an aborted job is gone');
SELECT is(finish_run(:job_id, :run_id, 'aborted'), 'not_found', 'a deleted job is not found');
SELECT * FROM an_aborting_job(delete_job => true) \gset
SELECT is(finish_run(:job_id, :run_id, 'succeeded'), 'succeeded', 'a job that succeeded before it was to be deleted stays, to be seen');

-- delete_job
SELECT * FROM a_doing_job() \gset
SELECT is(finish_run(:job_id, :run_id, 'succeeded', '{"delete_job": true}'), 'deleted', 'delete_job deletes a job that succeeded');
SELECT is(status_of(:job_id), 'gone', 'a deleted job leaves no row');
SELECT * FROM a_doing_job() \gset
SELECT is(finish_run(:job_id, :run_id, 'failed', '{"delete_job": true}'), 'deleted', 'delete_job deletes a job that failed');
SELECT * FROM a_doing_job() \gset
SELECT is(finish_run(:job_id, :run_id, 'succeeded', '{"delete_job": null, "result": null, "message": null}'), 'succeeded', 'null means not given');

-- Runs that are not this job's.
SELECT is(finish_run(a_todo_job(), 1, 'succeeded'), 'stale', 'a waiting job can''t succeed');
SELECT is(finish_run(a_todo_job(), NULL, 'succeeded'), 'stale', 'a waiting job can''t succeed by a run without an id');
SELECT is(finish_run(a_finished_job(s), NULL, 'succeeded'), 'stale', s || ' stays ' || s || ' for a run without an id') FROM unnest('{failed,cancelled,aborted}'::text[]) AS s;
SELECT is(finish_run(a_finished_job(s), -1, 'succeeded'), 'stale', s || ' stays ' || s || ' for an unknown run') FROM unnest('{succeeded,failed,cancelled,aborted}'::text[]) AS s;
SELECT is(finish_run(j, 1, 'failed'), 'not_found', 'an unknown job is not found: ' || coalesce(j::text, 'null')) FROM unnest('{-1,0,9223372036854775807,NULL}'::bigint[]) AS j;
SELECT * FROM a_doing_job() \gset
SELECT is(finish_run(:job_id, :run_id - 1, o), 'stale', 'another run''s ' || o || ' is stale') FROM unnest('{succeeded,failed,aborted,interrupted}'::text[]) AS o;
SELECT * FROM a_doing_job() \gset other_
SELECT is(finish_run(:job_id, :other_run_id, 'succeeded'), 'stale', 'a run of another job is stale');
SELECT is(status_of(:job_id) || status_of(:other_job_id), 'doingdoing', 'a stale end changes neither');

-- Batches.
SELECT * FROM a_doing_job() \gset a_
SELECT * FROM a_doing_job() \gset b_
SELECT * FROM an_aborting_job() \gset c_
SELECT * FROM a_doing_job() \gset d_
SELECT jsonb_build_array(
    jsonb_build_object('job_id', :d_job_id, 'run_id', :d_run_id, 'outcome', 'failed'), jsonb_build_object('job_id', :a_job_id, 'run_id', :a_run_id, 'outcome', 'succeeded', 'result', 7),
    jsonb_build_object('job_id', :c_job_id, 'run_id', :c_run_id, 'outcome', 'aborted'), jsonb_build_object('job_id', -1, 'run_id', 5, 'outcome', 'failed'),
    jsonb_build_object('job_id', :b_job_id, 'run_id', :b_run_id - 1000000, 'outcome', 'succeeded'), jsonb_build_object('job_id', :a_job_id, 'run_id', :a_run_id, 'outcome', 'succeeded')) AS runs \gset
SELECT set_eq(format('SELECT job_id, run_id, status FROM pljobs.finish_jobs_v1(%L)', :'runs'),
    format($$VALUES (%s::bigint, %s::bigint, 'failed'), (%s, %s, 'succeeded'), (%s, %s, 'aborted'), (-1, 5, 'not_found'), (%s, %s - 1000000, 'stale')$$,
           :d_job_id, :d_run_id, :a_job_id, :a_run_id, :c_job_id, :c_run_id, :b_job_id, :b_run_id), 'each run of a call is answered, one stale run spoils nothing');
SELECT is(count(DISTINCT (f.job_id, f.run_id)), 5::bigint, 'a replayed call is answered for each run') FROM pljobs.finish_jobs_v1(:'runs') AS f;
SELECT is(status_of(:b_job_id), 'doing', 'the run that was not named goes on');
SELECT is_empty($$SELECT FROM pljobs.finish_jobs_v1('[]')$$, 'no runs, no answers');
SELECT is_empty($$SELECT FROM pljobs.finish_jobs_v1(NULL)$$, 'null runs, no answers');

-- Lanes.
SELECT ids[1] AS one, ids[2] AS two, lock, queue FROM a_lane(2) \gset
SELECT start_job(:one) AS run_id, fetch_ids(:'queue') \gset
SELECT is(wait_of(:two), 'lock', 'the second of a lane is parked');
SELECT finish_run(:one, :run_id, 'succeeded') \g /dev/null
SELECT is(wait_of(:two), 'ready', 'the end of the first wakes it');
SELECT start_job(:two) AS run_id, a_todo_job(:'lock', queue => :'queue') AS three, fetch_ids(:'queue') \gset
SELECT finish_run(:two, :run_id, 'failed', '{"retry_at": "9999-01-01T00:00:00Z"}') \g /dev/null
SELECT is(wait_of(:three), 'lock', 'a retry that is scheduled stays the head of its lane, and holds it');
SELECT ids[1] AS one, ids[2] AS two, lock, queue FROM a_lane(2) \gset
SELECT start_job(:one) AS run_id, fetch_ids(:'queue') \gset
SELECT finish_run(:one, :run_id, 'failed', jsonb_build_object('retry_at', '9999-01-01T00:00:00Z', 'retry_lock', a_name('lane'))) \g /dev/null
SELECT is(wait_of(:two), 'ready', 'a retry that leaves its lane wakes the next of it');

-- What a task produced never keeps it from ending; what its worker says must make sense.
SELECT * FROM a_doing_job() \gset
SELECT is(finish_run(:job_id, :run_id, 'failed', jsonb_build_object('message', repeat(chr(128512), 1001), 'error', repeat(chr(8238), 16385), 'result', repeat('x', 1048575))), 'failed', 'an oversize end is recorded');
SELECT results_eq(format('SELECT char_length(message), char_length(error), result FROM pljobs.job WHERE id = %s', :job_id), 'VALUES (1000, 16384, NULL::jsonb)',
                  'message and error are cut at 1,000 and 16,384 characters, a result of more than 1 MiB is left out');
SELECT * FROM a_doing_job() \gset
SELECT finish_run(:job_id, :run_id, 'succeeded', jsonb_build_object('message', repeat(chr(128512), 1001), 'result', repeat('x', 1048575))) \g /dev/null
SELECT results_eq(format('SELECT char_length(message), result FROM pljobs.job WHERE id = %s', :job_id), 'VALUES (1000, NULL::jsonb)', 'the same for one that succeeded');
SELECT * FROM a_doing_job() \gset
SELECT finish_run(:job_id, :run_id, 'succeeded', jsonb_build_object('result', repeat('x', 1048574))) \g /dev/null
SELECT is(octet_length(j.result::text), 1048576, 'a result of exactly 1 MiB is kept') FROM pljobs.job AS j WHERE j.id = :job_id;
SELECT * FROM a_doing_job() \gset
SELECT finish_run(:job_id, :run_id, 'succeeded', jsonb_build_object('result', (SELECT jsonb_agg(1e131000::numeric) FROM generate_series(1, 9)))) \g /dev/null
SELECT is(j.result IS NULL, true, 'a result is measured as people read it: a number of few bytes may be a long text') FROM pljobs.job AS j WHERE j.id = :job_id;
SELECT * FROM a_doing_job() \gset
SELECT throws_ok(format('SELECT finish_run(%s, %s, %s)', :job_id, :run_id, o), 'PJ004', NULL, 'refused: ' || o)
  FROM unnest(ARRAY['NULL', '''''', '''todo''', '''SUCCEEDED''', $$'failed', '{"retry_at": "2001-01-01T00:00:00Z", "retry_queue": ""}'$$,
                    $$'failed', jsonb_build_object('retry_lock', repeat('l', 256))$$]) AS o;
SELECT is(status_of(:job_id), 'doing', 'a refused end changes nothing');

-- A retry after an interval, by the database's clock.
SELECT * FROM a_doing_job() \gset
SELECT is(finish_run(:job_id, :run_id, 'failed', '{"retry_in": "1 hour"}'), 'todo', 'a failed run may go back after an interval');
SELECT ok(j.waiting_for = 'schedule' AND j.scheduled_at BETWEEN clock_timestamp() + interval '59 min' AND clock_timestamp() + interval '61 min',
          'to run then') FROM pljobs.job AS j WHERE j.id = :job_id;
SELECT * FROM a_doing_job() \gset
SELECT is(finish_run(:job_id, :run_id, 'failed', '{"retry_in": "-100000000 years"}'), 'todo', 'an interval in the past is now');
SELECT is(wait_of(:job_id), 'ready', 'and the job can run at once');
SELECT * FROM a_doing_job() \gset
SELECT is(finish_run(:job_id, :run_id, 'failed', '{"retry_in": "100000000 years"}'), 'todo', 'an interval without end is cut');
SELECT * FROM a_doing_job() \gset
SELECT finish_run(:job_id, :run_id, 'failed', '{"retry_in": "1 day", "retry_at": "2001-01-01T00:00:00Z"}') \g /dev/null
SELECT is(wait_of(:job_id), 'ready', 'a time of retry comes before an interval');
CREATE TEMP TABLE odd AS
SELECT a.retry_in, a.wait, (a.job).job_id, (a.job).run_id
  FROM (SELECT o.retry_in, o.wait, a_doing_job() AS job
          FROM (VALUES ('200000000 years', 'schedule'), ('-200000000 years', 'ready'), ('soon', 'ready'),
                       ('', 'ready'), ('1e400 seconds', 'ready'), ('1 hour', 'schedule')) AS o(retry_in, wait)) AS a;
SELECT is(count(DISTINCT o.job_id), 6::bigint, 'six runs end in one call') FROM odd AS o;
SELECT results_eq(
    $$SELECT f.status, count(*) FROM pljobs.finish_jobs_v1((SELECT jsonb_agg(to_jsonb(o) || '{"outcome": "failed"}')
        FROM odd AS o)) AS f GROUP BY 1$$,
    $$VALUES ('todo', 6::bigint)$$, 'no interval, however odd, keeps a run of the call from ending');
SELECT is(wait_of(o.job_id), o.wait, format('a retry in %L: %s', o.retry_in, o.wait)) FROM odd AS o;
SELECT ok(j.scheduled_at BETWEEN clock_timestamp() + interval '9 years' AND clock_timestamp() + interval '11 years',
          'an interval that no database can hold is ten years')
  FROM odd AS o JOIN pljobs.job AS j ON j.id = o.job_id WHERE o.retry_in = '200000000 years';

-- Without waiting: what somebody holds is answered 'locked' (races/finish_wait.spec).
SELECT * FROM a_doing_job() \gset
SELECT results_eq(format($$SELECT status FROM pljobs.finish_jobs_v1('[{"job_id": %s, "run_id": %s, "outcome": "succeeded"}]', wait => false)$$, :job_id, :run_id),
                  $$VALUES ('succeeded')$$, 'a job that nobody holds is ended without waiting, too');
SELECT results_eq($$SELECT status FROM pljobs.finish_jobs_v1('[{"job_id": -1, "run_id": 1, "outcome": "succeeded"}]', wait => false)$$,
                  $$VALUES ('not_found')$$, 'a job that is gone is not taken for a locked one');

-- New outcomes, progress.
SELECT * FROM an_aborting_job() \gset
SELECT is(finish_run(:job_id, :run_id, 'killed', '{"message": "SIGKILL"}'), 'aborted', 'a run that was asked and had to be killed is aborted');
SELECT is(finish_run(:job_id, :run_id, 'killed'), 'aborted', 'a replay of it as well');
SELECT results_eq(format('SELECT j.message, r.resolution FROM pljobs.job AS j JOIN pljobs.request AS r ON r.id = %s WHERE j.id = %s', :request_id, :job_id), $$VALUES ('SIGKILL', 'killed')$$, 'its request says how');
SELECT * FROM an_aborting_job(delete_job => true) \gset
SELECT is(finish_run(:job_id, :run_id, 'abandoned'), 'deleted', 'a run that was given up is gone where that was asked');
SELECT * FROM a_timed_out_job() \gset
SELECT is(finish_run(:job_id, :run_id, 'aborted', '{"retry_in": "1 h"}'), 'todo', 'a run that took too long may be retried');
SELECT is(wait_of(:job_id), 'schedule', 'when its policy says');
SELECT is(finish_run(:job_id, :run_id, 'aborted'), 'todo', 'a replay of it as well');
SELECT throws_ok(format('SELECT finish_run(%s, %s, %L)', job_id, run_id, x), 'PJ004', NULL, 'no outcome: ' || x) FROM a_doing_job(), unnest('{expired,timeout,forced,KILLED,"",abort}'::text[]) AS x;
SELECT * FROM a_doing_job() \gset
SELECT is(finish_run(:job_id, :run_id, 'succeeded', '{"progress": 1, "progress_message": "all"}'), 'succeeded', 'an end may say how far it was');
SELECT results_eq(format('SELECT progress, progress_message FROM pljobs.jobs WHERE id = %s', :job_id), $$VALUES (1::real, 'all')$$, 'that is kept');
SELECT is(finish_run(:job_id, :run_id, 'succeeded', '{"progress": 0.5}'), 'succeeded', 'a replay');
SELECT is(j.progress, 1::real, 'changes nothing') FROM pljobs.jobs AS j WHERE j.id = :job_id;
SELECT is(finish_run(d.job_id, d.run_id, 'succeeded', jsonb_build_object('progress', x, 'progress_message', x)), 'succeeded', 'whatever a task says of its progress, it ends: ' || x::text)
  FROM unnest('{"\"abc\"","\"NaN\"","[]","{\"a\": 1}",true,null,1e100000,-1e100000,1e-10000,"\"\""}'::jsonb[]) AS x, LATERAL a_doing_job(md5(x::text)) AS d;
SELECT * FROM a_doing_job() \gset
SELECT is(finish_run(:job_id, :run_id, 'failed', '{"progress_message": "only words"}'), 'failed', 'a message alone');
SELECT is(j.progress_message, 'only words', 'is kept, too') FROM pljobs.jobs AS j WHERE j.id = :job_id;
SELECT * FROM a_doing_job() \gset
SELECT is(finish_run(:job_id, :run_id, 'succeeded', '{"progress": 1, "delete_job": true}'), 'deleted', 'a job that is deleted at its end');
SELECT is_empty(format('SELECT FROM pljobs.progress WHERE job_id = %s', :job_id), 'leaves no progress behind');

-- Limited to queues.
SELECT a_login('pljobs_worker') AS ann, a_login('pljobs_worker') AS bob, a_name('queue') AS mail, a_name('queue') AS news \gset
SELECT pljobs.limit_queues(:'ann', 'fetch', ARRAY[:'mail', :'news']) \g /dev/null
SELECT as_login(:'ann', 'SELECT pljobs.register_worker_v2(''w'', ''h'', 1, 2)') AS anns, as_login(:'bob', 'SELECT pljobs.register_worker_v2(''w'', ''h'', 1, 2)') AS bobs \gset
CREATE TABLE scene AS SELECT n, a_todo_job(queue => CASE WHEN n = 9 THEN a_name('queue') ELSE :'mail' END) AS job_id, NULL::bigint AS run_id FROM unnest('{1,2,3,4,5,9}'::integer[]) AS n;
UPDATE scene AS s SET run_id = f.run_id FROM (SELECT f.* FROM pljobs.fetch_jobs_v1(:anns, 10, ARRAY[:'mail']) AS f) AS f WHERE f.job_id = s.job_id;
UPDATE scene AS s SET run_id = start_job(s.job_id, :bobs) WHERE s.n = 9;
CREATE FUNCTION ended(login text, n integer, outcome text, more jsonb DEFAULT '{}') RETURNS text LANGUAGE sql VOLATILE
RETURN (SELECT as_login(login, format('SELECT string_agg(f.status, '','') FROM pljobs.finish_jobs_v1(%L) AS f', jsonb_build_array(jsonb_build_object('job_id', s.job_id, 'run_id', s.run_id, 'outcome', outcome) || more))) FROM scene AS s WHERE s.n = ended.n);
SELECT is(ended(:'ann', 9, 'succeeded'), 'not_found', 'a role that is limited ends no run of another''s worker');
SELECT is(ended(:'ann', 9, 'abandoned', '{"progress": 1}'), 'not_found', 'in no way');
SELECT is((SELECT w.tainted_at FROM pljobs.worker AS w WHERE w.id = :bobs), NULL, 'nor taints that one');
SELECT is_empty('SELECT FROM pljobs.progress AS p JOIN scene AS s ON s.job_id = p.job_id WHERE s.n = 9', 'nor says how far its run is');
SELECT is(ended(:'ann', 1, 'succeeded'), 'succeeded', 'those of its own it ends');
SELECT is(ended(:'ann', 1, 'succeeded'), 'succeeded', 'and may say so again');
SELECT is(ended(:'ann', 2, 'failed', jsonb_build_object('retry_in', '0 s', 'retry_queue', 'money')), 'todo', 'it retries');
SELECT results_eq('SELECT j.queue FROM pljobs.job AS j JOIN scene AS s ON s.job_id = j.id WHERE s.n = 2', ARRAY[:'mail'], 'but into no queue that it is kept from');
SELECT is(ended(:'ann', 2, 'failed'), 'todo', 'and may say that again');
CREATE TABLE scene_of_ann AS SELECT s.run_id FROM scene AS s WHERE s.n = 2;
UPDATE scene AS s SET run_id = start_job(s.job_id, :bobs) WHERE s.n = 2;
SELECT is(ended(:'ann', 2, 'failed'), 'not_found', 'but nothing of the run that another''s worker has begun since');
SELECT is(as_login(:'ann', format('SELECT string_agg(f.status, '','' ORDER BY f.run_id) FROM pljobs.finish_jobs_v1(%L) AS f',
             (SELECT jsonb_agg(jsonb_build_object('job_id', s.job_id, 'run_id', r.run_id, 'outcome', 'failed')) FROM scene AS s CROSS JOIN LATERAL (SELECT s.run_id UNION ALL SELECT a.run_id FROM scene_of_ann AS a) AS r WHERE s.n = 2))),
          'todo,not_found', 'not beside its own, either');
SELECT is(ended(:'ann', 3, 'failed', jsonb_build_object('retry_in', '0 s', 'retry_queue', :'news')), 'todo', 'into another of its own');
SELECT results_eq('SELECT j.queue FROM pljobs.job AS j JOIN scene AS s ON s.job_id = j.id WHERE s.n = 3', ARRAY[:'news'], 'it does');
SELECT is(as_login(:'ann', format('SELECT string_agg(format(''%%s %%s'', f.job_id, f.status), '', '' ORDER BY f.job_id) FROM pljobs.finish_jobs_v1(%L) AS f',
             (SELECT jsonb_agg(jsonb_build_object('job_id', s.job_id, 'run_id', s.run_id, 'outcome', 'succeeded')) FROM scene AS s WHERE s.n IN (4, 9)))),
          (SELECT string_agg(format('%s %s', s.job_id, CASE s.n WHEN 4 THEN 'succeeded' ELSE 'not_found' END), ', ' ORDER BY s.job_id) FROM scene AS s WHERE s.n IN (4, 9)), 'each run is answered for itself');
SELECT is(as_login(:'ann', 'SELECT f.status FROM pljobs.finish_jobs_v1(''[{"job_id": -1, "run_id": 1, "outcome": "succeeded"}]'') AS f'), 'not_found', 'a job that is not there');
SELECT is(as_login(:'ann', 'SELECT count(*) FROM pljobs.finish_jobs_v1(''[]'')'), '0', 'nothing');
SELECT is(ended(:'bob', 5, 'succeeded'), 'succeeded', 'who is not limited ends anybody''s: workers trust each other');

SELECT * FROM finish();
ROLLBACK;

-- Under concurrency: races/fetch_*.spec, lane_*.spec. Plans: plans.sql.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

-- What a worker receives.
SELECT a_name('queue') AS q, a_name('queueing lock') AS ql, a_name('lane') AS lock, a_worker() AS w \gset
SELECT pljobs.defer_job('the task', '{"a": [1]}', :'q', 4, :'lock', :'ql', '2001-01-01 00:00+00') AS job_id \gset
SELECT * FROM pljobs.fetch_jobs_v1(:w, 1, ARRAY[:'q']) \gset f_
SELECT ok(:f_job_id = :job_id AND :'f_queue' = :'q' AND :'f_task' = 'the task' AND :f_priority = 4 AND :'f_lock' = :'lock' AND :'f_queueing_lock' = :'ql'
          AND :'f_args'::jsonb = '{"a": [1]}' AND :f_attempts = 1 AND :'f_scheduled_at'::timestamptz = '2001-01-01 00:00+00', 'a worker receives all that it needs to run a job');
SELECT results_eq(format('SELECT status, worker_id, run_id, attempts, started_at, created_at, waiting_for FROM pljobs.job WHERE id = %s', :job_id),
                  format($$VALUES ('doing', %s::bigint, %s::bigint, 1, %L::timestamptz, %L::timestamptz, NULL::text)$$, :w, :f_run_id, :'f_started_at', :'f_created_at'),
                  'a fetched job is doing, with its run, worker, attempt and start');
SELECT is_empty(format('SELECT FROM pljobs.fetch_jobs_v1(%s, 1, ARRAY[%L])', :w, :'q'), 'a running job is not fetched');
SELECT is(status_of(j), s, 'a job that is ' || s || ' is not fetched') FROM (
    SELECT a_finished_job(s) AS j, s FROM unnest('{succeeded,failed,cancelled,aborted}'::text[]) AS s) AS x,
    LATERAL (SELECT fetch_ids((SELECT queue FROM pljobs.job WHERE id = j)) AS fetched) AS y WHERE fetched = '{}';
SELECT is(finish_run(:job_id, :f_run_id, 'failed', '{"retry_at": "2001-01-01T00:00:00Z"}'), 'todo', 'a failed job may be retried');
SELECT results_eq(format('SELECT job_id, attempts, run_id > %s FROM pljobs.fetch_jobs_v1(%s, 1, ARRAY[%L])', :f_run_id, :w, :'q'), format('VALUES (%s::bigint, 2, true)', :job_id),
                  'each fetch counts an attempt and draws a run of its own');

-- Order and number.
SELECT a_name('queue') AS q \gset
SELECT a_todo_job(queue => :'q') AS a, a_todo_job(queue => :'q', priority => 2147483647) AS b, a_todo_job(queue => :'q', priority => -2147483647) AS c,
       a_todo_job(queue => :'q', priority => 2) AS d, a_todo_job(queue => :'q', priority => 2) AS e \gset
SELECT is(fetch_ids(:'q', 2), ARRAY[:b, :d]::bigint[], 'at most max_jobs are fetched');
SELECT is(fetch_ids(:'q', 10), ARRAY[:e, :a, :c]::bigint[], 'higher priority comes first, then lower id');
SELECT is(fetch_ids(:'q', 10), '{}', 'an empty queue gives nothing');
SELECT a_todo_job(queue => :'q') AS a \gset
SELECT is(fetch_ids(:'q', 2147483647), ARRAY[:a]::bigint[], 'max_jobs may be as large as can be');

-- Lost twice: the next time may be the last, and nobody knows which of them it was.
SELECT a_name('queue') AS q, a_worker() AS w \gset
SELECT a_todo_job(queue => :'q') AS a, a_todo_job(queue => :'q') AS b, a_todo_job(queue => :'q') AS c, a_todo_job(queue => :'q') AS d, a_todo_job(queue => :'q') AS e,
       a_todo_job(queue => :'q') AS f \gset
UPDATE pljobs.job SET crashes = 2 WHERE id IN (:a, :b, :d, :e);
UPDATE pljobs.job SET crashes = 1 WHERE id = :c;
SELECT is(fetch_ids(:'q', 5, :w), ARRAY[:a, :c]::bigint[], 'of jobs that were lost twice, a worker gets one at a time');
SELECT is(fetch_ids(:'q', 1, :w), ARRAY[:f]::bigint[], 'they keep nobody from what is behind them');
SELECT is(fetch_ids(:'q', 5, :w), '{}', 'while it runs one, it gets no other');
SELECT is(fetch_ids(:'q', 5), ARRAY[:b]::bigint[], 'another worker does');
SELECT finish_run(:a, (SELECT run_id FROM pljobs.job WHERE id = :a), 'succeeded') \g /dev/null
SELECT is(fetch_ids(:'q', 5, :w), ARRAY[:d]::bigint[], 'once it has ended, the next comes');
UPDATE pljobs.job SET started_at = started_at - interval '2 min' WHERE id = :d;
SELECT is(fetch_ids(:'q', 5, :w), ARRAY[:e]::bigint[], 'one that has been running for long keeps no other waiting');

-- Schedules.
SELECT a_name('queue') AS q \gset
SELECT a_todo_job(queue => :'q', scheduled_at => clock_timestamp() + interval '1 h', priority => 9) AS later, a_todo_job(queue => :'q') AS now \gset
SELECT is(fetch_ids(:'q', 10), ARRAY[:now]::bigint[], 'a job that is not due is not fetched');
UPDATE pljobs.job SET scheduled_at = clock_timestamp() - interval '1 s' WHERE id = :later;
SELECT look_at_all() \g /dev/null
SELECT is(fetch_ids(:'q', 10), ARRAY[:later]::bigint[], 'a scheduled job is fetched once it is due');
SELECT a_name('queue') AS q1, a_name('queue') AS q2, a_worker() AS w, clock_timestamp() + interval '1 h' AS soon \gset
SELECT pljobs.defer_jobs_v1((SELECT jsonb_agg(jsonb_build_object('task', 't', 'queue', :'q1', 'scheduled_at', :'soon')) FROM generate_series(1, 3000))) \g /dev/null
SELECT a_todo_job(queue => :'q2', scheduled_at => :'soon', priority => 9) AS few \gset
UPDATE pljobs.job SET scheduled_at = clock_timestamp() - CASE WHEN id = :few THEN interval '1 s' ELSE interval '2 s' END WHERE waiting_for = 'schedule' AND queue IN (:'q1', :'q2');
SELECT look_at_all() \g /dev/null
SELECT results_eq(format('SELECT f.job_id FROM generate_series(1, 20) AS n CROSS JOIN LATERAL pljobs.fetch_jobs_v1(%s, 1 + 0 * n, ARRAY[%L]) AS f', :w, :'q2'), ARRAY[:few]::bigint[],
                  'the many of one queue that are due do not keep the few of another waiting');
DELETE FROM pljobs.job WHERE queue = :'q1';

-- Queues and tasks.
SELECT a_name('queue') AS q1, a_name('queue') AS q2, a_name('queue') AS q3, a_worker() AS w \gset
SELECT a_todo_job(queue => :'q1') AS a, a_todo_job(queue => :'q2', priority => 1) AS b, a_todo_job(queue => :'q1', priority => 1) AS c,
       a_todo_job(queue => :'q2', task => 'another task') AS d, a_todo_job(queue => :'q3', priority => 7) AS e \gset
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 3, ARRAY[:'q1', :'q2', :'q1', 'no such queue'])), ARRAY[:b, :c, :a]::bigint[], 'several queues are merged by priority, then id');
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 3, ARRAY[:'q2', :'q1'], '{a task}')), '{}', 'jobs of other tasks are left alone, in several queues');
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 3, ARRAY[:'q2'], '{a task}')), '{}', 'jobs of other tasks are left alone, in one queue');
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 3, tasks => '{no such task}')), '{}', 'jobs of other tasks are left alone, in all queues');
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 3, '{}')), '{}', 'no queues, no jobs');
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 3, NULL, '{}')), '{}', 'no tasks, no jobs');
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 3, '{NULL}')), '{}', 'a null queue is none');
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 3, ARRAY[:'q2'], '{a task,another task}')), ARRAY[:d]::bigint[], 'any of the tasks will do');
SELECT ok(:e = ANY (ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 1000))), 'queues null means all');

-- Paused queues.
SELECT a_name('queue') AS q1, a_name('queue') AS q2 \gset
SELECT a_todo_job(queue => :'q1', priority => 1) AS a, a_todo_job(queue => :'q2') AS b, pljobs.pause_queue(:'q1') \gset
SELECT is(fetch_ids(:'q1'), '{}', 'a paused queue gives nothing to who asks for it alone');
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 10, ARRAY[:'q1', :'q2'])), ARRAY[:b]::bigint[], 'a paused queue gives nothing to who asks for several');
SELECT a_todo_job(queue => :'q2') AS b \gset
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 10)), ARRAY[:b]::bigint[], 'a paused queue gives nothing to who asks for all');
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 10)), '{}', 'where only paused queues have jobs there is nothing');
SELECT pljobs.resume_queue(:'q1') \g /dev/null
SELECT is(fetch_ids(:'q1'), ARRAY[:a]::bigint[], 'a resumed queue gives its jobs');

-- Lanes.
SELECT ids[1] AS one, ids[2] AS two, ids[3] AS three, lock, queue FROM a_lane(3) \gset
SELECT is(fetch_ids(:'queue', 10), ARRAY[:one]::bigint[], 'of the jobs of one lane one runs at a time, the first');
SELECT is(fetch_ids(:'queue', 10), '{}', 'while it runs no other of its lane is fetched');
SELECT finish_run(:one, run_id, 'succeeded') FROM pljobs.job WHERE id = :one \g /dev/null
SELECT is(fetch_ids(:'queue', 10), ARRAY[:two]::bigint[], 'once it has finished the next of its lane is fetched');
SELECT a_todo_job(:'lock', queue => :'queue', priority => 1) AS urgent, a_todo_job(:'lock') AS elsewhere \gset
SELECT is(fetch_ids((SELECT queue FROM pljobs.job WHERE id = :elsewhere)), '{}', 'a lane reaches across queues');
SELECT finish_run(:two, run_id, 'succeeded') FROM pljobs.job WHERE id = :two \g /dev/null
SELECT is(fetch_ids(:'queue', 10), ARRAY[:urgent]::bigint[], 'a lane runs by priority, then id');

SELECT ids[1] AS head, ids[2] AS second, lock, queue FROM a_lane(2) \gset
UPDATE pljobs.job SET waiting_for = 'schedule', scheduled_at = clock_timestamp() + interval '1 h' WHERE id = :head;
SELECT is(fetch_ids(:'queue', 10), '{}', 'a scheduled head holds its lane');
UPDATE pljobs.job SET scheduled_at = clock_timestamp() WHERE id = :head;
SELECT look_at_all() \g /dev/null
SELECT is(fetch_ids(:'queue', 10), ARRAY[:head]::bigint[], 'until it is due');

SELECT ids[1] AS head, ids[2] AS second, queue FROM a_lane(2) \gset
UPDATE pljobs.job SET waiting_for = 'lock' WHERE id = :head;
SELECT is(fetch_ids(:'queue'), ARRAY[:head]::bigint[], 'a fetch wakes the sleeping head of the lane that it meets, and runs it');
SELECT ids[1] AS head, ids[2] AS second, queue FROM a_lane(2) \gset
UPDATE pljobs.job SET waiting_for = 'lock' WHERE id = :head;
SELECT is(fetch_ids(:'queue', 10), ARRAY[:head]::bigint[], 'so does a fetch of more jobs than there are');

-- A worker that meets the jobs of a busy lane looks further, and still takes the best first.
SELECT ids[1] AS busy, lock, queue FROM a_lane(300) \gset
SELECT fetch_ids(:'queue') \g /dev/null
SELECT a_todo_job(queue => :'queue', priority => -2) AS last, a_todo_job(queue => :'queue', lock => a_name('lane'), priority => -1) AS best \gset
SELECT is(fetch_ids(:'queue'), ARRAY[:best]::bigint[], 'behind 299 jobs of a busy lane the best job is found: higher priority first, with or without a lock');
SELECT is(fetch_ids(:'queue'), ARRAY[:last]::bigint[], 'then the next');

-- The hint: a slow walk is remembered for a while.
SELECT a_name('queue') AS q \gset
SELECT a_todo_job(queue => :'q') AS b1, a_todo_job(queue => :'q') AS b2, a_todo_job(queue => :'q') AS b3, a_todo_job(queue => :'q') AS b4, a_todo_job(queue => :'q') AS here, a_todo_job(queue => :'q') AS after, a_worker() AS w \gset
SELECT hashtextextended(concat_ws('|', ARRAY[:'q']::text, '*'), 0)::text AS key \gset
CREATE FUNCTION hint(key text, job_id bigint, seconds double precision) RETURNS text
LANGUAGE sql VOLATILE
RETURN (SELECT set_config('pljobs.fetch_hint', concat_ws('|', hint.key, -j.priority, j.id, extract(epoch FROM clock_timestamp()) + hint.seconds), true)
          FROM pljobs.job AS j WHERE j.id = hint.job_id);
SELECT hint(:'key', :here, 60) \g /dev/null
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 1, ARRAY[:'q'])), ARRAY[:here]::bigint[], 'a walk starts where the hint says');
SELECT hint('another walk', :after, 60) \g /dev/null
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 1, ARRAY[:'q'])), ARRAY[:b1]::bigint[], 'a hint about another walk is not followed');
SELECT hint(:'key', :after, -1) \g /dev/null
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 1, ARRAY[:'q'])), ARRAY[:b2]::bigint[], 'a hint whose time is over is not followed');
SELECT hint(:'key', :after, 590) \g /dev/null
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 1, ARRAY[:'q'])), ARRAY[:b3]::bigint[], 'nor one that would last for minutes, for the clock was set back');
SELECT a_todo_job(queue => :'q', priority => 9) AS urgent, hint(:'key', :after, 60) \gset
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 1, ARRAY[:'q'])), ARRAY[:urgent]::bigint[], 'nor one that a more urgent job would have to wait for');
SELECT a_todo_job() AS elsewhere, a_todo_job(queue => :'q') AS last \gset
UPDATE pljobs.job SET waiting_for = 'schedule', scheduled_at = now() WHERE id IN (:b4, :after, :elsewhere);
SELECT look_at_all(), hint(:'key', :last, 60) \g /dev/null
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 1, ARRAY[:'q'])), ARRAY[:b4]::bigint[], 'nor by what has become due just now');
SELECT is((string_to_array(current_setting('pljobs.fetch_hint'), '|'))[3:4], ARRAY[:'last', '0'], 'what may have left some of that ends it');
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 1, ARRAY[:'q'])), ARRAY[:after]::bigint[], 'for the next to find it');
SELECT a_todo_job(queue => :'q') AS due, a_todo_job(queue => :'q', priority => 7) AS urgent, a_todo_job(queue => :'q', priority => 7) AS due_too, a_todo_job(queue => :'q') AS beyond \gset
UPDATE pljobs.job SET waiting_for = 'schedule', scheduled_at = now() WHERE id IN (:due, :due_too);
SELECT look_at_all(), hint(:'key', :beyond, 60) \g /dev/null
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 1, ARRAY[:'q'])), ARRAY[:urgent]::bigint[], 'a more urgent one comes first all the same');
SELECT look_at_all() \g /dev/null
SELECT fetch_ids(:'q', 100) \g /dev/null
SELECT a_todo_job(queue => :'q') AS due, a_todo_job(queue => :'q') AS last \gset
UPDATE pljobs.job SET waiting_for = 'schedule', scheduled_at = now() WHERE id = :due;
SELECT look_at_all(), hint(:'key', :last, 60), current_setting('pljobs.fetch_hint') AS hint \gset
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 3, ARRAY[:'q'])), ARRAY[:due, :last]::bigint[], 'what is due and what comes after the hint are found together');
SELECT is(current_setting('pljobs.fetch_hint'), :'hint', 'which leaves it where it was');
SELECT a_todo_job(queue => :'q') AS first, a_todo_job(queue => :'q') AS after, look_at_all() \gset
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 1, ARRAY[:'q'])), ARRAY[:first]::bigint[], 'without a hint the walk starts at the top');
SELECT fetch_ids(:'q') \g /dev/null
SELECT hint(:'key', :after, -1) \g /dev/null
SELECT is(fetch_ids(:'q'), '{}', 'where there is nothing a hint that is over changes nothing');

-- Slow for sure: thousands of the best jobs are of another task. (plans.sql counts what it passes: not at the same time.)
SELECT take_turns() \g /dev/null
SELECT hashtextextended(concat_ws('|', ARRAY[:'q']::text, '{"a task"}'), 0)::text AS key2 \gset
SELECT pljobs.defer_jobs_v1((SELECT jsonb_agg(jsonb_build_object('task', 'another task', 'queue', :'q'::text, 'priority', 1)) FROM generate_series(1, 20000))) \g /dev/null
SELECT a_todo_job(queue => :'q') AS one, a_todo_job(queue => :'q') AS two \gset
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 1, ARRAY[:'q'], '{a task}')), ARRAY[:one]::bigint[], 'a long walk finds its job');
SELECT results_eq($$SELECT (string_to_array(current_setting('pljobs.fetch_hint'), '|'))[2:4]$$, format('SELECT ARRAY[''0'', ''%s'', ''0'']', :one), 'the first slow walk leaves a hint that is over: one may be slow by chance');
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 1, ARRAY[:'q'], '{a task}')), ARRAY[:two]::bigint[], 'the next finds the next');
SELECT results_eq($$SELECT (string_to_array(current_setting('pljobs.fetch_hint'), '|'))[2:3]$$, format('SELECT ARRAY[''0'', ''%s'']', :two), 'and leaves one to follow: where it found its first job');
SELECT ok((string_to_array(current_setting('pljobs.fetch_hint'), '|'))[4]::double precision BETWEEN extract(epoch FROM now()) AND extract(epoch FROM clock_timestamp()) + 5,
          'a hint is followed for at most 5 s');
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 1, ARRAY[:'q'], '{a task}')), '{}', 'then nothing, nor before it');
SELECT is((string_to_array(current_setting('pljobs.fetch_hint'), '|'))[5], 'nothing', 'and that is remembered, too');
SELECT finish_run(:one, (SELECT run_id FROM pljobs.job WHERE id = :one), 'interrupted') \g /dev/null
UPDATE pljobs.job SET priority = -1 WHERE id = :one;
SELECT a_todo_job(queue => :'q') AS three \gset
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 1, ARRAY[:'q'], '{a task}')), ARRAY[:three]::bigint[], 'a new job is found, before it is over');
SELECT hint(:'key2', :three, 60), set_config('pljobs.fetch_hint', current_setting('pljobs.fetch_hint') || '|nothing', true) FROM (SELECT 1) AS x \g /dev/null
UPDATE pljobs.job SET priority = 0 WHERE id = :one;
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 1, ARRAY[:'q'], '{a task}')), '{}', 'one that was put back before it is not, for a while');
SELECT hint(:'key2', :three, -1), extract(epoch FROM clock_timestamp()) AS began \gset
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 1, ARRAY[:'q'], '{a task}')), ARRAY[:one]::bigint[], 'then it is');
SELECT ok((string_to_array(current_setting('pljobs.fetch_hint'), '|'))[4]::numeric - t.now <= 10 * (t.now - :began), 'and the next hint lasts for less long: there may be more') FROM (SELECT extract(epoch FROM clock_timestamp()) AS now) AS t;

-- The arguments of the call.
SELECT throws_ok('SELECT pljobs.fetch_jobs_v1(' || a || ')', c, NULL, 'refused: ' || a)
  FROM (VALUES ('-1', 'PJ003'), ('0', 'PJ003'), ('NULL', 'PJ003'), ('9223372036854775807', 'PJ003'),
               (:'w' || ', 0', 'PJ004'), (:'w' || ', -1', 'PJ004'), (:'w' || ', NULL', 'PJ004')) AS x(a, c);
SELECT lose_worker(:w) \g /dev/null
SELECT throws_ok(format('SELECT pljobs.fetch_jobs_v1(%s)', :w), 'PJ003', NULL, 'a worker whose lease ran out fetches nothing: it would be rescued at once');
SELECT count(*) FROM pljobs.heartbeat_v1(:w) \g /dev/null
SELECT lives_ok(format('SELECT pljobs.fetch_jobs_v1(%s)', :w), 'once renewed, it fetches');

-- A long queue of one busy lane, deferred job by job, hides nothing behind it from the first fetch.
SELECT a_name('queue') AS q, a_name('lock') AS l, a_worker() AS w \gset
SELECT count(pljobs.defer_job('t', queue => :'q', lock => :'l')) FROM generate_series(1, 6000) \g /dev/null
SELECT pljobs.defer_job('behind', queue => :'q') AS behind \gset
SELECT count(*) FROM pljobs.fetch_jobs_v1(:w, 1, ARRAY[:'q']) \g /dev/null
SELECT results_eq(format('SELECT job_id FROM pljobs.fetch_jobs_v1(%s, 1, ARRAY[%L])', :w, :'q'), format('VALUES (%s::bigint)', :behind),
                  'the job behind 6,000 of a busy lane is found by the first fetch that looks for it');

-- Limits. Of cancelled trees: cancel_tree.sql.
SELECT a_name('queue') AS q, a_worker() AS w \gset
SELECT pljobs.defer_job('t', queue => :'q', timeout => '1 h', parent_id => -7) AS job_id \gset
SELECT results_eq(format('SELECT job_id, timeout, parent_id FROM pljobs.fetch_jobs_v1(%s, 1, ARRAY[%L])', :w, :'q'), format($$VALUES (%s::bigint, interval '1 h', -7::bigint)$$, :job_id), 'a worker is told how long a run may take, and whose child it is');
SELECT is(j.timeout_at - j.started_at BETWEEN interval '1 h' AND interval '1 h 1 s', true, 'the time runs from the start') FROM pljobs.job AS j WHERE j.id = :job_id;
SELECT a_name('queue') AS q \gset
SELECT pljobs.defer_job('t', queue => :'q', priority => 5, start_by => now() + interval '1 h') AS overdue, pljobs.defer_job('t', queue => :'q', start_by => now() + interval '1 h') AS in_time, pljobs.defer_job('t', queue => :'q', priority => 5, start_by => now() - interval '1 h') AS always_overdue \gset
UPDATE pljobs.job SET start_by = now() - interval '1 s' WHERE id = :overdue;
SELECT look_at_all() \g /dev/null
SELECT is(fetch_ids(:'q', 10), ARRAY[:in_time]::bigint[], 'what was to start by now does not start');
SELECT is(ARRAY[status_of(:overdue), status_of(:always_overdue)], '{cancelled,cancelled}', 'it is cancelled');
SELECT is(r.resolution, 'expired', 'expired') FROM pljobs.request AS r WHERE r.job_id = :overdue;
SELECT is(j.timeout_at, NULL, 'a run without a timeout has none') FROM pljobs.job AS j WHERE j.id = :in_time;
-- In whatever queue.
SELECT a_name('queue') AS q \gset
SELECT pljobs.defer_job('t', queue => :'q', start_by => now() - interval '1 h') AS overdue \gset
SELECT look_at_all() \g /dev/null
SELECT is(fetch_ids(a_name('queue')), '{}', 'a fetch from another queue');
SELECT is(status_of(:overdue), 'cancelled', 'cancels it as well');
-- Many at once, several queues, all queues.
SELECT a_name('queue') AS q1, a_name('queue') AS q2 \gset
SELECT pljobs.defer_jobs_v1((SELECT jsonb_agg(jsonb_build_object('task', 't', 'queue', CASE n % 2 WHEN 0 THEN :'q1' ELSE :'q2' END, 'start_by', '2001-01-01T00:00:00Z')) FROM generate_series(1, 2500) AS n)) \g /dev/null
SELECT a_todo_job(queue => :'q1') AS one, a_todo_job(queue => :'q2') AS two \gset
SELECT look_at_all() \g /dev/null
SELECT is(ARRAY(SELECT f.job_id FROM pljobs.fetch_jobs_v1(:w, 10, ARRAY[:'q1', :'q2']) AS f), ARRAY[:one, :two]::bigint[], 'more overdue ones than one call cancels keep nobody from starting');
SELECT is(count(*), 1500::bigint, 'the others are left to the next') FROM pljobs.job AS j WHERE j.queue IN (:'q1', :'q2') AND j.status = 'todo';
SELECT a_todo_job(queue => :'q1') AS one \gset
SELECT look_at_all() \g /dev/null
SELECT is(fetch_ids(:'q1', 10), ARRAY[:one]::bigint[], 'also in one queue');
SELECT is(count(*), 500::bigint, 'and so on') FROM pljobs.job AS j WHERE j.queue IN (:'q1', :'q2') AND j.status = 'todo';

-- Limited to queues.
SELECT a_login('pljobs_worker') AS ann, a_login('pljobs_worker') AS bob, a_name('queue') AS mail, a_name('queue') AS money \gset
SELECT a_todo_job(queue => :'mail') AS m1, a_todo_job(queue => :'money', priority => 9) AS m2, a_todo_job(queue => :'mail') AS m3 \gset
SELECT pljobs.limit_queues(:'ann', 'fetch', ARRAY[:'mail', 'another']) \g /dev/null
SELECT as_login(:'ann', 'SELECT pljobs.register_worker_v2(''w'', ''h'', 1, 2)') AS anns, as_login(:'bob', 'SELECT pljobs.register_worker_v2(''w'', ''h'', 1, 2)') AS bobs \gset
CREATE FUNCTION got(login text, worker_id bigint, more text DEFAULT '', role text DEFAULT 'none') RETURNS text LANGUAGE sql VOLATILE
RETURN as_login(login, format('SELECT array_agg(f.job_id) FROM pljobs.fetch_jobs_v1(%s, 1%s) AS f', worker_id, more), role);
SELECT is(got(:'ann', :anns, format(', queues => ARRAY[%L]', :'money')), NULL, 'a role that is limited gets nothing from another queue');
SELECT is(got(:'ann', :anns, format(', queues => ARRAY[%L, %L]', :'money', :'mail')), format('{%s}', :m1), 'of several only those that it may');
SELECT is(got(:'ann', :anns, '', 'pljobs_worker'), 'PJ003', 'SET ROLE to the group does not help: the worker is not that one''s');
SELECT is(got(:'ann', :bobs), 'PJ003', 'nor another''s worker');
SELECT is(got(:'ann', :anns), format('{%s}', :m3), 'without queues: from those that it may');
SELECT is(got(:'ann', :anns), NULL, 'and then no more');
SELECT is(got(:'bob', :anns, format(', queues => ARRAY[%L]', :'money')), format('{%s}', :m2), 'others are not limited, and workers trust each other');
SELECT is(pljobs.pause_queue(:'mail'), 'paused', 'a queue that is paused');
SELECT a_todo_job(queue => :'mail') AS m4 \gset
SELECT is(got(:'ann', :anns), NULL, 'is so for who is limited to it, too');
SELECT pljobs.resume_queue(:'mail'), pljobs.limit_queues(:'ann', 'fetch', NULL) \g /dev/null
SELECT is(got(:'ann', :bobs, format(', queues => ARRAY[%L]', :'mail')), format('{%s}', :m4), 'without the limit it may again speak for other workers');

SELECT * FROM finish();
ROLLBACK;

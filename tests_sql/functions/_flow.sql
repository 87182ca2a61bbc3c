-- Turns and throttles, as fetches see them. Who may set throttles, and what is refused: throttle_queue.sql, throttle_task.sql.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

-- Defers `jobs` jobs with this key; returns their ids.
CREATE FUNCTION keyed_jobs(queue text, key text, jobs integer, priority integer DEFAULT 0, task text DEFAULT 'a task', lock text DEFAULT NULL) RETURNS bigint[]
LANGUAGE sql VOLATILE
RETURN (SELECT array_agg(d.job_id) FROM pljobs.defer_jobs_v3((SELECT jsonb_agg(jsonb_build_object('task', keyed_jobs.task, 'queue', keyed_jobs.queue, 'fairness_key', keyed_jobs.key, 'priority', keyed_jobs.priority, 'lock', keyed_jobs.lock)) FROM generate_series(1, keyed_jobs.jobs))) AS d);
-- The keys of what a fetch returns, in order.
CREATE FUNCTION fetch_keys(worker_id bigint, queues text[], jobs integer) RETURNS text
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    RETURN (SELECT string_agg(coalesce((SELECT j.fairness_key FROM pljobs.jobs AS j WHERE j.id = f.job_id), '-'), '' ORDER BY f.ord)
              FROM (SELECT x.job_id, row_number() OVER () AS ord FROM pljobs.fetch_jobs_v1(fetch_keys.worker_id, fetch_keys.jobs, fetch_keys.queues) AS x) AS f);
END
$$;
CREATE FUNCTION started(worker_id bigint, queues text[], jobs integer, tasks text[] DEFAULT NULL) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    RETURN ARRAY(SELECT f.job_id FROM pljobs.fetch_jobs_v1(started.worker_id, started.jobs, started.queues, started.tasks) AS f);
END
$$;
CREATE FUNCTION end_jobs(VARIADIC job_ids bigint[]) RETURNS bigint
LANGUAGE sql VOLATILE
RETURN (SELECT count(*) FROM pljobs.finish_jobs_v1((SELECT jsonb_agg(jsonb_build_object('job_id', j.id, 'run_id', j.run_id, 'outcome', 'succeeded')) FROM pljobs.job AS j WHERE j.id = ANY (end_jobs.job_ids) AND j.status = 'doing')) AS f WHERE f.status = 'succeeded');
-- As if the time had come that many seconds later, for what rates remember.
CREATE FUNCTION let_pass(seconds double precision) RETURNS void
LANGUAGE sql VOLATILE
AS $$ UPDATE pljobs.bucket SET full_at = full_at - make_interval(secs => seconds); $$;

SELECT a_worker() AS w \gset

-- Where nothing else is limited, nor waits for its turn.
SELECT a_name('queue') AS q \gset
SELECT d.job_id FROM pljobs.defer_jobs_v3(jsonb_build_array(jsonb_build_object('task', 't', 'queue', :'q', 'fairness_key', 'a', 'scheduled_in', '1 h'))) AS d \gset
UPDATE pljobs.job SET scheduled_at = clock_timestamp() - interval '1 s' WHERE id = :job_id;
SELECT look_at_all() \g /dev/null
SELECT is(pljobs._flows(), false, 'nothing flows');
SELECT is(started(:w, ARRAY[:'q'], 1), ARRAY[:job_id]::bigint[], 'a job with a key is fetched by the fetch that finds it due');

-- The locks of throttles are nobody else's, of trees for instance: who holds one waits for nothing.
SELECT pljobs.throttle_queue(a_name('queue'), max_running => 1) FROM generate_series(1, 20) \g /dev/null
SELECT pljobs._take_throttles(ARRAY(SELECT t.name FROM pljobs.throttle AS t WHERE t.scope <> 'task'), NULL) \g /dev/null
SELECT ok(count(*) > 0 AND bool_and(k.key BETWEEN 7205759020000 AND 7205759021023), 'keys of a range of their own')
  FROM (SELECT l.classid::bigint << 32 | l.objid::bigint AS key FROM pg_locks AS l WHERE l.locktype = 'advisory' AND l.pid = pg_backend_pid()) AS k
 WHERE k.key BETWEEN 7205759010000 AND 7205759039999;

-- Turns.
SELECT a_name('queue') AS q \gset
SELECT keyed_jobs(:'q', 'a', 50), keyed_jobs(:'q', 'b', 3), keyed_jobs(:'q', 'c', 2) \g /dev/null
SELECT results_eq(format('SELECT DISTINCT waiting_for FROM pljobs.jobs WHERE queue = %L', :'q'), $$VALUES ('turn')$$, 'jobs with a key wait for its turn');
SELECT is(fetch_keys(:w, ARRAY[:'q'], 1), 'a', 'keys take turns: one');
SELECT is(fetch_keys(:w, ARRAY[:'q'], 1), 'b', 'the next');
SELECT is(fetch_keys(:w, ARRAY[:'q'], 1), 'c', 'the last');
SELECT is(fetch_keys(:w, ARRAY[:'q'], 1), 'a', 'and the first again: also from fetch to fetch');
SELECT is(translate(fetch_keys(:w, ARRAY[:'q'], 6), 'abc', 'abc'), 'aaabbc', 'a batch has its share of each; and is returned by id');
SELECT is(fetch_keys(:w, ARRAY[:'q'], 100), repeat('a', 45), 'who is alone gets all, and nothing is left');
SELECT is(fetch_keys(:w, ARRAY[:'q'], 100), NULL, 'an empty queue is empty');

SELECT a_name('queue') AS q \gset
SELECT keyed_jobs(:'q', 'a', 3), keyed_jobs(:'q', 'b', 1, priority => 5), keyed_jobs(:'q', 'a', 2, priority => 5) \g /dev/null
SELECT is(fetch_keys(:w, ARRAY[:'q'], 1) || fetch_keys(:w, ARRAY[:'q'], 1) || fetch_keys(:w, ARRAY[:'q'], 1), 'aba', 'priority comes first; turns are taken within one');
SELECT is(fetch_keys(:w, ARRAY[:'q'], 10), 'aaa', 'then what is less urgent');

SELECT a_name('queue') AS q \gset
SELECT keyed_jobs(:'q', 'a', 10) \g /dev/null
SELECT a_todo_job(queue => :'q'), a_todo_job(queue => :'q') \g /dev/null
SELECT is((SELECT string_agg(k, '') FROM (SELECT unnest(string_to_array(fetch_keys(:w, ARRAY[:'q'], 4), NULL)) AS k ORDER BY 1) AS x), '--aa', 'jobs without a key are one key of their own');

-- The keys of what so many fetches of one job each return.
CREATE FUNCTION one_by_one(worker_id bigint, queues text[], fetches integer) RETURNS text
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_keys text := '';
BEGIN
    FOR v_n IN 1..fetches LOOP
        v_keys := v_keys || coalesce(fetch_keys(worker_id, queues, 1), '.');
    END LOOP;
    RETURN v_keys;
END
$$;
SELECT a_name('queue') AS q \gset
SELECT keyed_jobs(:'q', 'a', 3), a_todo_job(queue => :'q'), a_todo_job(queue => :'q'), a_todo_job(queue => :'q') \g /dev/null
SELECT is(one_by_one(:w, ARRAY[:'q'], 7), '-a-a-a.', 'which has its turn as all have, also from fetch to fetch');
SELECT a_name('queue') AS q \gset
SELECT keyed_jobs(:'q', chr(96 + k), 2), a_todo_job(queue => :'q') FROM generate_series(1, 12) AS k \g /dev/null
SELECT is(one_by_one(:w, ARRAY[:'q'], 40), '-abcdefghijkl-abcdefghijkl----------....', 'one in a round, of many keys, too');
SELECT a_name('queue') AS q \gset
SELECT keyed_jobs(:'q', chr(96 + k), 3) FROM generate_series(1, 3) AS k \g /dev/null
SELECT is(one_by_one(:w, ARRAY[:'q'], 1), 'a', 'one of a key');
SELECT a_todo_job(queue => :'q', priority => 5) \g /dev/null
SELECT is(one_by_one(:w, ARRAY[:'q'], 3), '-bc', 'a more urgent one without a key is nobody''s turn');
SELECT keyed_jobs(:'q', 'z', 1, priority => 5), one_by_one(:w, ARRAY[:'q'], 2) AS first \gset
SELECT keyed_jobs(:'q', 'z', 1, priority => 5), one_by_one(:w, ARRAY[:'q'], 2) AS second \gset
SELECT is(:'first' || :'second', 'zazb', 'nor does a more urgent key take the turn of those after it');
SELECT a_name('queue') AS q \gset
SELECT keyed_jobs(:'q', to_char(k, 'FM000'), 1), a_todo_job(queue => :'q', task => 'mine') FROM generate_series(1, 40) AS k \g /dev/null
SELECT keyed_jobs(:'q', '035', 1, task => 'mine') AS ids \gset
SELECT is((SELECT count(*) < 10 FROM generate_series(1, 20) AS n WHERE (:'ids'::bigint[])[1] = ANY (started(:w, ARRAY[:'q'], 1, '{mine}') || started(:w, ARRAY[:'q'], 1, '{mine}'))), true, 'keys of other tasks are looked at on the way');
SELECT is(status_of((:'ids'::bigint[])[1]), 'doing', 'and jobs without a key hide none behind them');
SELECT a_name('queue') AS q, a_name('queue') AS p \gset
SELECT keyed_jobs(:'q', chr(97 + k % 10), 1), a_todo_job(queue => :'p') FROM generate_series(0, 29) AS k \g /dev/null
SELECT is(one_by_one(:w, ARRAY[:'q', :'p'], 22), 'a-b-c-d-e-f-g-h-i-j-a-', 'while another queue''s run, no key is passed over');

-- Several queues: a queue has its place by age, whichever of its jobs runs.
SELECT a_name('queue') AS q, a_name('queue') AS p \gset
SELECT keyed_jobs(:'q', 'a', 2), a_todo_job(queue => :'p') AS plain, keyed_jobs(:'q', 'b', 5) \gset
SELECT is(fetch_keys(:w, ARRAY[:'q', :'p'], 1), 'a', 'of several queues the one with the oldest job comes first');
SELECT is(fetch_keys(:w, ARRAY[:'q', :'p'], 1), '-', 'whose newer ones keep no others waiting, though it is their turn');
SELECT is(fetch_keys(:w, ARRAY[:'q', :'p'], 2), 'ab', 'then these');
SELECT is(fetch_keys(:w, NULL, 1000) LIKE '%b%', true, 'who fetches from all queues meets those where keys take turns');

-- More keys than are wanted; and many more jobs of one than of the others.
SELECT a_name('queue') AS q \gset
SELECT keyed_jobs(:'q', to_char(k, 'FM000'), 2) FROM generate_series(1, 120) AS k \g /dev/null
SELECT started(:w, ARRAY[:'q'], 40) AS ids \gset
SELECT is((SELECT count(DISTINCT j.fairness_key) FROM pljobs.jobs AS j WHERE j.id = ANY (:'ids')), 40::bigint, 'of many keys as many as are wanted');
SELECT started(:w, ARRAY[:'q'], 80) AS ids \gset
SELECT is((SELECT count(DISTINCT j.fairness_key) FROM pljobs.jobs AS j WHERE j.id = ANY (:'ids')), 80::bigint, 'then those that have not had a turn');
SELECT is((SELECT array_agg(DISTINCT x.n)::text FROM (SELECT count(*) AS n FROM pljobs.jobs AS j WHERE j.queue = :'q' AND j.status = 'doing' GROUP BY j.fairness_key) AS x), '{1}', 'so each has had one');
SELECT a_name('queue') AS q \gset
SELECT keyed_jobs(:'q', 'a', 200), (SELECT count(keyed_jobs(:'q', 'k' || k, 1)) FROM generate_series(1, 20) AS k) \g /dev/null
SELECT is(cardinality(started(:w, ARRAY[:'q'], 100)), 100, 'a fetch gets what it wants, though one key has to give the most of it');

-- From wherever they come back, jobs with a key wait for its turn.
SELECT a_name('queue') AS q \gset
SELECT d.job_id FROM pljobs.defer_jobs_v3(jsonb_build_array(jsonb_build_object('task', 't', 'queue', :'q', 'fairness_key', 'a', 'scheduled_in', '1 h'))) AS d \gset
SELECT is((SELECT waiting_for FROM pljobs.jobs WHERE id = :job_id), 'schedule', 'a scheduled one waits for its schedule');
UPDATE pljobs.job SET scheduled_at = clock_timestamp() - interval '1 s' WHERE id = :job_id;
SELECT look_at_all() \g /dev/null
SELECT is(started(:w, ARRAY[:'q'], 1), ARRAY[:job_id]::bigint[], 'and is fetched when it is due');
SELECT finish_run(:job_id, (SELECT run_id FROM pljobs.jobs WHERE id = :job_id), 'interrupted') \g /dev/null
SELECT is((SELECT waiting_for FROM pljobs.jobs WHERE id = :job_id), 'turn', 'one that is put back waits for its turn');
SELECT a_name('queue') AS q, a_name('lock') AS lock \gset
SELECT (keyed_jobs(:'q', 'a', 3, lock => :'lock')) AS ids \gset
SELECT results_eq(format('SELECT waiting_for FROM pljobs.jobs WHERE id = ANY (%L) ORDER BY id', :'ids'), $$VALUES ('turn'), ('lock'), ('lock')$$, 'the first of a lane waits for its turn, the others for the lane');
SELECT started(:w, ARRAY[:'q'], 3) AS first \gset
SELECT is((:'first'::bigint[])[1:2], (:'ids'::bigint[])[1:1], 'one of the lane starts');
SELECT end_jobs((:'ids'::bigint[])[1]) \g /dev/null
SELECT results_eq(format('SELECT waiting_for FROM pljobs.jobs WHERE id = ANY (%L) AND status = ''todo'' ORDER BY id', :'ids'), $$VALUES ('turn'), ('lock')$$, 'and who is woken waits for its turn');
SELECT throws_ok($$INSERT INTO pljobs.job (queue, task, priority, args, created_at, deferred_by, fairness_key) VALUES ('q', 't', 0, '{}', now(), 'x', 'a')$$, '23514', NULL, 'no job with a key is where it would be fetched out of turn');

-- At most so many at once: a queue.
SELECT a_name('queue') AS q \gset
SELECT (SELECT array_agg(a_todo_job(queue => :'q')) FROM generate_series(1, 10)) AS ids \gset
SELECT is(pljobs.throttle_queue(:'q', max_running => 3), 'throttled', 'a queue is throttled');
SELECT is(started(:w, ARRAY[:'q'], 2), (:'ids'::bigint[])[1:2], 'as many start as there is room for');
SELECT is(started(a_worker(), ARRAY[:'q'], 10), (:'ids'::bigint[])[3:3], 'over all workers');
SELECT is(started(:w, ARRAY[:'q'], 10), '{}', 'then none');
SELECT is(started(:w, ARRAY[:'q', a_name('another')], 10), '{}', 'nor beside other queues');
SELECT is((:'ids'::bigint[])[4] = ANY (started(:w, NULL, 1000)), false, 'nor for who fetches from all');
SELECT results_eq(format('SELECT max_running, running, rate FROM pljobs.throttles WHERE scope = ''queue'' AND name = %L', :'q'), 'VALUES (3, 3::bigint, NULL::integer)', 'people see what is set, and how much of it is used');
SELECT end_jobs(VARIADIC (:'ids'::bigint[])[1:2]) \g /dev/null
SELECT is(started(:w, ARRAY[:'q'], 10), (:'ids'::bigint[])[4:5], 'who ends makes room');
SELECT pljobs.throttle_queue(:'q', max_running => 2) \g /dev/null
SELECT is(started(:w, ARRAY[:'q'], 10), '{}', 'a lower limit stops nothing that runs');
SELECT pljobs.throttle_queue(:'q') \g /dev/null
SELECT is(cardinality(started(:w, ARRAY[:'q'], 10)), 5, 'without the limit all start');
SELECT pljobs.throttle_queue(:'q', max_running => 1) \g /dev/null
SELECT is((SELECT running FROM pljobs.throttles WHERE name = :'q'), 8::bigint, 'what ran before a limit was set counts');

-- What waits for nothing is not affected by throttles of others, nor by priority.
SELECT a_name('queue') AS q \gset
SELECT pljobs.throttle_queue(a_name('another'), max_running => 1) \g /dev/null
SELECT is(started(:w, ARRAY[:'q'], 1), '{}', 'an empty queue, while another is throttled');
SELECT a_todo_job(queue => :'q') AS low, a_todo_job(queue => :'q', priority => 1) AS high \gset
SELECT is(started(:w, ARRAY[:'q'], 1), ARRAY[:high]::bigint[], 'the more urgent starts first, while another is throttled');

-- What may not start now is not in the way of others: jobs that were lost twice start one after the other.
SELECT pljobs.throttle_queue(a_name('another'), max_running => 1) \g /dev/null
CREATE FUNCTION behind_suspects(queues integer, key text, VARIADIC throttle text[]) RETURNS text
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_queues text[] := ARRAY(SELECT a_name('queue') FROM generate_series(1, behind_suspects.queues));
    v_worker bigint := a_worker();
    v_ids bigint[] := ARRAY(SELECT d.job_id FROM pljobs.defer_jobs_v3((SELECT jsonb_agg(jsonb_build_object('task', v_queues[1], 'queue', v_queues[1], 'fairness_key', key)) FROM generate_series(1, 4))) AS d);
    v_call text;
BEGIN
    UPDATE pljobs.job SET crashes = 2 WHERE id = ANY (v_ids[1:2]);
    FOREACH v_call IN ARRAY throttle LOOP
        EXECUTE format('SELECT pljobs.' || v_call, v_queues[1]);
    END LOOP;
    RETURN (SELECT string_agg(array_position(v_ids, f.job_id)::text, ' ' ORDER BY g.n, f.job_id)
              FROM generate_series(1, 3) AS g(n) CROSS JOIN LATERAL pljobs.fetch_jobs_v1(v_worker, 1 + 0 * g.n, v_queues) AS f);
END
$$;
SELECT is(behind_suspects(q, k, VARIADIC t), '1 3', format('of one queue of %s%s: %s', q, ', with a key' || left(k, 0), t))
  FROM generate_series(1, 2) AS q, unnest('{NULL,a}'::text[]) AS k,
       (VALUES (ARRAY['throttle_queue(%L, max_running => 2)']), (ARRAY['throttle_queue(%L, rate => 1, period => ''1 h'', burst => 2)']),
               (ARRAY['throttle_queue(%L, max_running => 2, each_key => true)']), (ARRAY['throttle_task(%L, max_running => 2)'])) AS a(t);
SELECT a_name('queue') AS q \gset
SELECT (SELECT array_agg(a_todo_job(queue => :'q')) FROM generate_series(1, 3)) AS ids \gset
SELECT is(ARRAY(SELECT n.id FROM pljobs._next_in_turn(ARRAY[:'q'], ARRAY[2], NULL, 10, now()) AS n), (:'ids'::bigint[])[1:2], 'a fetch of 0.3.0 that an upgrade overtakes goes on');

-- A rate that has rested for long, and one whose bucket was written while the clock was ahead.
SELECT a_name('queue') AS q \gset
SELECT (SELECT array_agg(a_todo_job(queue => :'q')) FROM generate_series(1, 4)) AS ids \gset
SELECT pljobs.throttle_queue(:'q', rate => 1000000, period => '1 s', burst => 1) \g /dev/null
SELECT is(started(:w, ARRAY[:'q'], 10), (:'ids'::bigint[])[1:1], 'a rate is used');
SELECT let_pass(1e9);
SELECT is(started(:w, ARRAY[:'q'], 10), (:'ids'::bigint[])[2:2], 'thirty years later no more than its burst may start, and that does');
SELECT let_pass(-1e9);
SELECT is(coalesce(pljobs.next_fetch_v1(:w, ARRAY[:'q']) < interval '1 min', true), true, 'a bucket that is full only in years was written while the clock was ahead');
SELECT is(started(:w, ARRAY[:'q'], 10), (:'ids'::bigint[])[3:3], 'and keeps nothing from starting');
SELECT let_pass(2);
SELECT is(started(:w, ARRAY[:'q'], 10), (:'ids'::bigint[])[4:4], 'but counts from then on');
SELECT let_pass(-2);

-- So many per period: a token bucket.
SELECT a_name('queue') AS q \gset
SELECT (SELECT array_agg(a_todo_job(queue => :'q')) FROM generate_series(1, 30)) AS ids \gset
SELECT pljobs.throttle_queue(:'q', rate => 4, period => '1 h', burst => 3) \g /dev/null
SELECT is(cardinality(started(:w, ARRAY[:'q'], 10)), 3, 'a burst starts at once');
SELECT is(cardinality(started(:w, ARRAY[:'q'], 10)), 0, 'then none');
SELECT let_pass(900);
SELECT is(cardinality(started(:w, ARRAY[:'q'], 10)), 1, 'then one each period / rate');
SELECT let_pass(1800);
SELECT is(cardinality(started(:w, ARRAY[:'q'], 1)) + cardinality(started(:w, ARRAY[:'q'], 10)), 2, 'or two, where one did not come for a while');
SELECT let_pass(100000);
SELECT is(cardinality(started(:w, ARRAY[:'q'], 10)), 3, 'and never more than a burst');
SELECT pljobs.throttle_queue(:'q', rate => 2, period => '1 h') \g /dev/null
SELECT is(cardinality(started(:w, ARRAY[:'q'], 10)), 2, 'another rate begins with a full bucket; without a burst it is as large as the rate');
SELECT pljobs.throttle_queue(:'q', max_running => 12, rate => 50, period => '1 h') \g /dev/null
SELECT is(cardinality(started(:w, ARRAY[:'q'], 40)), 1, 'both limits hold: 11 run, one more may');
UPDATE pljobs.bucket SET full_at = full_at - interval '1 year' WHERE name = :'q';
SELECT pljobs.prune_history_v1('1 day') \g /dev/null
SELECT is_empty(format('SELECT FROM pljobs.bucket WHERE name = %L', :'q'), 'buckets that have long been full are forgotten');

-- What never began gives its token back.
CREATE FUNCTION end_all(queue text, outcome text) RETURNS text
LANGUAGE sql VOLATILE
RETURN (SELECT string_agg(DISTINCT f.status, ',') FROM pljobs.finish_jobs_v1((SELECT jsonb_agg(jsonb_build_object('job_id', j.id, 'run_id', coalesce(j.run_id, j.last_run_id), 'outcome', end_all.outcome)) FROM pljobs.job AS j WHERE j.queue = end_all.queue AND coalesce(j.run_id, j.last_run_id) IS NOT NULL)) AS f);
SELECT a_name('queue') AS q \gset
SELECT (SELECT array_agg(a_todo_job(queue => :'q')) FROM generate_series(1, 9)) AS ids \gset
SELECT pljobs.throttle_queue(:'q', rate => 3, period => '1 h') \g /dev/null
UPDATE pljobs.throttle SET set_at = set_at - interval '1 day' WHERE name = :'q';
SELECT is(started(:w, ARRAY[:'q'], 2), (:'ids'::bigint[])[1:2], 'two tokens of three are used');
SELECT is(end_all(:'q', 'unstarted'), 'todo', 'and both runs given back before they began');
SELECT is(started(:w, ARRAY[:'q'], 10), (:'ids'::bigint[])[1:3], 'so three can start');
SELECT is(end_all(:'q', 'unstarted'), 'todo', 'once more');
SELECT is(end_all(:'q', 'unstarted'), 'todo', 'what is said again');
SELECT is(cardinality(started(:w, ARRAY[:'q'], 10)), 3, 'gives nothing back, and no more than a burst starts');
SELECT is(cardinality(started(:w, ARRAY[:'q'], 10)), 0, 'then none');
SELECT is(end_all(:'q', 'interrupted'), 'todo', 'what was interrupted');
SELECT is(cardinality(started(:w, ARRAY[:'q'], 10)), 0, 'has used its token');
SELECT let_pass(1200);
SELECT is(cardinality(started(:w, ARRAY[:'q'], 10)), 1, 'one that starts later');
UPDATE pljobs.job SET started_at = started_at - interval '25 min' WHERE queue = :'q' AND status = 'doing';
SELECT is(end_all(:'q', 'unstarted'), 'todo', 'and is given back after longer than its token takes');
SELECT is(cardinality(started(:w, ARRAY[:'q'], 10)), 0, 'gives nothing back: a full bucket would have gained nothing meanwhile');
SELECT let_pass(100000);
SELECT is(cardinality(started(:w, ARRAY[:'q'], 10)), 3, 'a burst');
UPDATE pljobs.job SET started_at = started_at - interval '25 min' WHERE queue = :'q' AND status = 'doing';
SELECT is(end_all(:'q', 'unstarted'), 'todo', 'that is given back after as long');
SELECT is(cardinality(started(:w, ARRAY[:'q'], 10)), 1, 'gives back what is more than that');
SELECT pljobs.throttle_queue(:'q', rate => 2, period => '1 h') \g /dev/null
SELECT is(end_all(:'q', 'unstarted'), 'todo', 'what was started under another rate');
SELECT is(cardinality(started(:w, ARRAY[:'q'], 10)), 2, 'gives nothing to the new one');
SELECT pljobs.cancel_jobs(queue => :'q', status => 'doing', abort => true, dry_run => false) \g /dev/null
SELECT is(end_all(:'q', 'unstarted'), 'aborted,todo', 'what is aborted before it began');
SELECT is(cardinality(started(:w, ARRAY[:'q'], 10)), 2, 'gives its token back, too');
SELECT a_name('queue') AS q, a_name('task') AS t \gset
SELECT keyed_jobs(:'q', 'a', 5, task => :'t'), pljobs.throttle_task(:'t', rate => 2, period => '1 h'), pljobs.throttle_queue(:'q', rate => 1, period => '1 h', each_key => true) \g /dev/null
SELECT is(fetch_keys(:w, ARRAY[:'q'], 10), 'a', 'one of a key starts');
SELECT is(end_all(:'q', 'unstarted'), 'todo', 'given back');
SELECT is(fetch_keys(:w, ARRAY[:'q'], 10), 'a', 'it leaves its key''s token');
SELECT pljobs.throttle_queue(:'q', each_key => true) \g /dev/null
SELECT is(fetch_keys(:w, ARRAY[:'q'], 10), 'a', 'and its task''s');
SELECT is(fetch_keys(:w, ARRAY[:'q'], 10), NULL, 'of which then none is left');
SELECT pljobs.throttle_task(:'t') \g /dev/null

-- Each key of a queue.
SELECT a_name('queue') AS q \gset
SELECT keyed_jobs(:'q', 'a', 20), keyed_jobs(:'q', 'b', 1), a_todo_job(queue => :'q'), a_todo_job(queue => :'q') \g /dev/null
SELECT is(pljobs.throttle_queue(:'q', max_running => 2, each_key => true), 'throttled', 'each key of a queue is throttled');
SELECT is(fetch_keys(:w, ARRAY[:'q'], 10), 'aab--', 'as many of each key start as there is room for');
SELECT is(fetch_keys(:w, ARRAY[:'q'], 10), NULL, 'then none');
SELECT pljobs.throttle_queue(:'q', rate => 3, period => '1 h', each_key => true) \g /dev/null
SELECT keyed_jobs(:'q', 'b', 5), a_todo_job(queue => :'q') \g /dev/null
SELECT is(fetch_keys(:w, ARRAY[:'q'], 10), 'aaabbb-', 'each key has a rate of its own');
SELECT is(fetch_keys(:w, ARRAY[:'q'], 10), NULL, 'and then none');
SELECT pljobs.throttle_queue(:'q', max_running => 13) \g /dev/null
SELECT let_pass(100000);
SELECT is(length(fetch_keys(:w, ARRAY[:'q'], 10)), 1, 'beside the limit of the whole queue');

-- Keys that are at their limit keep no others from their turn, however many they are.
SELECT a_name('queue') AS q \gset
SELECT keyed_jobs(:'q', to_char(k, 'FM000'), 2) FROM generate_series(1, 130) AS k \g /dev/null
SELECT pljobs.throttle_queue(:'q', max_running => 1, each_key => true) \g /dev/null
SELECT is(cardinality(started(:w, ARRAY[:'q'], 129)), 129, 'one of each key starts');
SELECT keyed_jobs(:'q', '130', 2) \g /dev/null
SELECT is(fetch_keys(:w, ARRAY[:'q'], 5), '130', 'and the one that is left, behind all those');
SELECT is(fetch_keys(:w, ARRAY[:'q'], 5), NULL, 'then none');

-- A task, in whatever queues.
SELECT a_name('queue') AS q, a_name('queue') AS p, a_name('task') AS t \gset
SELECT (SELECT array_agg(a_todo_job(queue => :'q', task => :'t')) FROM generate_series(1, 100)) AS ids \gset
SELECT a_todo_job(queue => :'q') AS other, a_todo_job(queue => :'p', task => :'t') AS elsewhere \gset
SELECT is(pljobs.throttle_task(:'t', max_running => 2), 'throttled', 'a task is throttled');
SELECT is(started(:w, ARRAY[:'q'], 3), (:'ids'::bigint[])[1:2] || :other::bigint, 'what has to wait keeps no others waiting');
SELECT is((SELECT waiting_for FROM pljobs.jobs WHERE id = (:'ids'::bigint[])[3]), 'limit', 'and is seen to wait for its limit');
SELECT is(started(:w, ARRAY[:'p'], 3), '{}', 'it is limited in all queues');
SELECT a_todo_job(queue => :'q') AS other \gset
SELECT is(started(:w, ARRAY[:'q'], 1), ARRAY[:other]::bigint[], 'jobs of other tasks start behind them');
SELECT end_jobs((:'ids'::bigint[])[1]) \g /dev/null
SELECT is(started(:w, ARRAY[:'q'], 3), (:'ids'::bigint[])[3:3], 'once there is room, the next of them');
SELECT end_jobs(VARIADIC (:'ids'::bigint[])[2:3]) \g /dev/null
SELECT is(started(:w, ARRAY[:'q'], 3, ARRAY['another task']), '{}', 'not for a worker that has not got the task');
SELECT is(started(:w, ARRAY[:'q'], 3, ARRAY[:'t']), (:'ids'::bigint[])[4:5], 'for one that has');
SELECT is(pljobs.cancel_job((:'ids'::bigint[])[50]), 'cancelled', 'what waits for its limit can be cancelled');
SELECT is(pljobs.throttle_task(:'t'), 'unthrottled', 'without the limit');
SELECT is(cardinality(started(:w, ARRAY[:'q', :'p'], 200)), 95, 'all start, parked or not');
SELECT is(pljobs.throttle_task(:'t'), 'unchanged', 'there is nothing to take away any more');
SELECT is_empty(format('SELECT FROM pljobs.throttle WHERE name = %L', :'t'), 'and nothing is left of it');
SELECT a_name('queue') AS q, a_name('task') AS t \gset
SELECT keyed_jobs(:'q', 'a', 5, task => :'t') AS ids \gset
SELECT pljobs.throttle_task(:'t', rate => 1, period => '1 h') \g /dev/null
SELECT is(started(:w, ARRAY[:'q'], 9), (:'ids'::bigint[])[1:1], 'a task has a rate, too, and keys beside it');
SELECT let_pass(3600);
SELECT is(started(:w, ARRAY[:'q'], 9), (:'ids'::bigint[])[2:2], 'of those that are parked one by one');
SELECT pljobs.throttle_queue(:'q', max_running => 2, each_key => true), let_pass(3600) \g /dev/null
SELECT is(started(:w, ARRAY[:'q'], 9), '{}', 'and their key''s limit holds for what is parked');
SELECT pljobs.throttle_queue(:'q', each_key => true) \g /dev/null
SELECT is(cardinality(started(:w, NULL, 9, ARRAY[:'t'])), 1, 'who fetches from all queues meets what is parked');
-- Parked jobs of a key that is at its limit hide those of no other.
SELECT a_name('queue') AS q, a_name('queue') AS p, a_name('task') AS t \gset
SELECT pljobs.throttle_task(:'t', max_running => 2), pljobs.throttle_queue(:'q', max_running => 1, each_key => true), a_todo_job(queue => :'p', task => :'t'), a_todo_job(queue => :'p', task => :'t') \g /dev/null
SELECT started(:w, ARRAY[:'p'], 2) AS running \gset
SELECT keyed_jobs(:'q', 'a', 40, task => :'t'), keyed_jobs(:'q', 'b', 1, task => :'t') \g /dev/null
SELECT is(started(:w, ARRAY[:'q'], 100), '{}', 'what two others of its task leave no room for');
SELECT is((SELECT count(*) FROM generate_series(1, 40) AS n WHERE started(:w, ARRAY[:'q'], 100) = '{}'), 40::bigint, 'is parked');
SELECT end_jobs(VARIADIC :'running') \g /dev/null
SELECT is(fetch_keys(:w, ARRAY[:'q'], 2), 'ab', 'of both keys one starts, though the one has very many parked before the other');
SELECT pljobs.throttle_queue(:'q', each_key => true) \g /dev/null
-- Where no key waits for its turn, what is parked has its place by age.
SELECT a_name('queue') AS q, a_name('task') AS t \gset
SELECT pljobs.throttle_task(:'t', rate => 1, period => '1 h'), a_todo_job(queue => :'q'), keyed_jobs(:'q', 'z', 2, task => :'t') \g /dev/null
SELECT is(cardinality(started(:w, ARRAY[:'q'], 5, ARRAY[:'t'])), 1, 'of two that are limited one starts');
SELECT let_pass(3600);
SELECT is(one_by_one(:w, ARRAY[:'q'], 2), '-z', 'the other is not before an older one without a key');
-- Nor do they take the turn of a key.
SELECT a_name('queue') AS q, a_name('task') AS t \gset
SELECT pljobs.throttle_task(:'t', rate => 1, period => '1 h'), keyed_jobs(:'q', 'z', 3, task => :'t') \g /dev/null
SELECT is(fetch_keys(:w, ARRAY[:'q'], 5), 'z', 'the others are parked');
SELECT keyed_jobs(:'q', chr(96 + k), 3) FROM generate_series(1, 5) AS k \g /dev/null
SELECT is(one_by_one(:w, ARRAY[:'q'], 2), 'ab', 'keys take turns');
SELECT let_pass(3600);
SELECT is(one_by_one(:w, ARRAY[:'q'], 4), 'zcde', 'and what is parked, and starts out of turn, takes none away');

-- Days and months are of different lengths: a rate counts seconds.
SELECT a_name('queue') AS q, a_name('queue') AS y \gset
SELECT pljobs.throttle_queue(:'q', rate => 7, period => '3 months'), pljobs.throttle_queue(:'y', rate => 5, period => '1 year') \g /dev/null
SELECT count(a_todo_job(queue => q)) FROM unnest(ARRAY[:'q', :'y']) AS u(q), generate_series(1, 20) \g /dev/null
SELECT is(ARRAY[cardinality(started(:w, ARRAY[:'q'], 10)), cardinality(started(:w, ARRAY[:'q'], 10)), cardinality(started(:w, ARRAY[:'y'], 10)), cardinality(started(:w, ARRAY[:'y'], 10))], '{7,0,5,0}', 'of months or a year, too');
-- Noon of the day before clocks go back, and of the day after they have gone forward, wherever this runs.
SELECT format('AAA0BBB,J%s/0,J%s/0', d - 100 + CASE WHEN d <= 100 THEN 365 ELSE 0 END, d % 365 + 1) AS back, format('AAA0BBB,J%s/0,J%s/0', d % 365 + 1, d - 100 + CASE WHEN d <= 100 THEN 365 ELSE 0 END) AS forward FROM (SELECT least(extract(doy FROM now())::integer, 365) AS d) AS x \gset
SELECT a_name('queue') AS q \gset
SET LOCAL TIME ZONE :'back';
SELECT pljobs.throttle_queue(:'q', rate => 3, period => '1 day') \g /dev/null
SELECT count(a_todo_job(queue => :'q')) FROM generate_series(1, 20) \g /dev/null
SELECT is(ARRAY[cardinality(started(:w, ARRAY[:'q'], 10)), cardinality(started(:w, ARRAY[:'q'], 10))], '{3,0}', 'nor does a day with 25 hours let more start');
SET LOCAL TIME ZONE :'forward';
SELECT is(cardinality(started(:w, ARRAY[:'q'], 10)), 0, 'nor one with 23');
SET LOCAL TIME ZONE 'UTC';
SELECT is(pljobs._lasts(14, 7, '1 month'), interval '1440:00:00', 'a month has 30 days');

-- Very many keys without room hide none that has it.
SELECT a_name('queue') AS q \gset
SELECT pljobs._cursor_of('0 ' || :'q') AS cursor, pljobs._cursor_of(:'q') || '_rest' AS rest \gset
SELECT pljobs.throttle_queue(:'q', rate => 1, period => '1 h', each_key => true) \g /dev/null
SELECT count(*) FROM pljobs.defer_jobs_v3((SELECT jsonb_agg(jsonb_build_object('task', 't', 'queue', :'q', 'fairness_key', 'k' || lpad((g % 3000)::text, 5, '0'))) FROM generate_series(1, 6000) AS g)) \g /dev/null
SELECT is(cardinality(started(:w, ARRAY[:'q'], 5000)), 3000, 'each key starts one');
SELECT is(coalesce(current_setting(:'rest', true), ''), '', 'who finds what it looks for goes on to look at all');
SELECT pljobs.defer_job('t', queue => :'q', fairness_key => 'k00200z') AS job_id, set_config(:'cursor', 'k00200zz', false) \gset
SELECT is(started(:w, ARRAY[:'q'], 1), ARRAY[:job_id]::bigint[], 'a new key among 3,000 that are used up is found by the first fetch');
SELECT isnt(current_setting(:'rest'), '', 'but it does not look at all again for a while');
SELECT set_config(:'rest', '', false), pljobs.defer_job('t', queue => :'q', fairness_key => 'low', priority => -1) AS job_id \gset
SELECT is(started(:w, ARRAY[:'q'], 1), ARRAY[:job_id]::bigint[], 'then it finds one of a lower priority');
SELECT set_config(:'rest', '', false), pljobs.throttle_queue(:'q', max_running => 1, each_key => true), pljobs.defer_job('t', queue => :'q', fairness_key => 'k00200y') AS job_id, set_config(:'cursor', 'k00200yy', false) \gset
SELECT is(started(:w, ARRAY[:'q'], 1), ARRAY[:job_id]::bigint[], 'and where it is the running ones that leave no room');
SELECT set_config(:'rest', '', false) \g /dev/null
SELECT is(started(:w, ARRAY[:'q'], 1), '{}', 'then there is none');
-- Meanwhile it looks at some, and goes on from there.
SELECT set_config(:'rest', (extract(epoch FROM clock_timestamp()) + 60)::text, false) \g /dev/null
SELECT pljobs.defer_job('t', queue => :'q', fairness_key => 'k00100z') AS job_id, set_config(:'cursor', 'k02600', false) \gset
SELECT is(ARRAY(SELECT n FROM generate_series(1, 4) AS n WHERE started(:w, ARRAY[:'q'], 1) = ARRAY[:job_id]::bigint[]), '{2}', 'it is found when it is its turn to be looked at');
SELECT set_config(:'rest', '', false) \g /dev/null
-- Keys whose jobs are of other tasks.
SELECT a_name('queue') AS q \gset
SELECT count(*) FROM pljobs.defer_jobs_v3((SELECT jsonb_agg(jsonb_build_object('task', 'a', 'queue', :'q', 'fairness_key', 'k' || lpad(g::text, 5, '0'))) FROM generate_series(1, 400) AS g)) \g /dev/null
SELECT pljobs.defer_job('b', queue => :'q', fairness_key => 'k00300z') AS job_id, set_config(pljobs._cursor_of('0 ' || :'q'), 'k00300zz', false) \gset
SELECT is(started(:w, ARRAY[:'q'], 1, '{b}'), ARRAY[:job_id]::bigint[], 'keys of other tasks hide none');

-- Where an index is not made yet, a fetch scans nothing, and nothing can be made that would need it.
SELECT a_name('queue') AS q \gset
SELECT a_todo_job(queue => :'q') AS job_id \gset
SELECT a_name('queue') AS p \gset
SELECT keyed_jobs(:'p', 'a', 1) AS ids \gset
DELETE FROM pljobs.throttle;
DROP INDEX pljobs.job_limit;
SELECT is(started(:w, ARRAY[:'p'], 9), :'ids'::bigint[], 'without the one for limits, keys take turns');
DROP INDEX pljobs.job_turn;
SELECT is(started(:w, ARRAY[:'q'], 1), ARRAY[:job_id]::bigint[], 'without an index fetches go on');
SELECT throws_ok(format('SELECT keyed_jobs(%L, ''a'', 1)', :'q'), 'PJ013', 'fairness keys and throttles need index pljobs.job_limit, which is not there yet', 'but keys are refused');
SELECT throws_ok(format('SELECT pljobs.throttle_queue(%L, 1)', :'q'), 'PJ013', NULL, 'and throttles');

-- Who is told of the room that a throttled job leaves: races/notify.spec.
SELECT lives_ok($$SELECT pljobs._notify_room('{a,b}', '{a task}'), pljobs._notify_room(NULL, NULL), pljobs._notify_room_of(0)$$, 'there need be no throttle, no queue, and no job');

SELECT * FROM finish();
ROLLBACK;

-- Ways to the rows: no function may scan a table, nor walk an index from end to end, whatever the statistics say. What is
-- counted are the scans themselves, by the counters that the server keeps of this transaction. Statistics are none at first
-- (a session that planned it all on new tables), then stale in five ways: taken while nothing was todo or doing; before
-- all that had finished was deleted; while the tables were empty; and by a VACUUM that found pages, and no row on them: then the planner
-- reckons with one row, however many there are, both a session that planned it all then and one that does later.
BEGIN;
\ir lib/fixtures.sql
SELECT take_turns() \g /dev/null
SET LOCAL client_min_messages = error;   -- Leaving an SQL bracket that was not entered warns.
SELECT * FROM no_plan();
-- Autovacuum's ANALYZE, holding this lock, would wait for what is written to pg_class below, and we for its lock.
LOCK TABLE pljobs.job, pljobs.request, pljobs.job_event, pljobs.progress, pljobs.closed_tree, pljobs.deleted_parent, pljobs.idempotency IN SHARE UPDATE EXCLUSIVE MODE;

CREATE TABLE seen (relname text PRIMARY KEY, scans bigint, entries bigint);
CREATE FUNCTION counters() RETURNS TABLE (relname text, is_index boolean, scans bigint, entries bigint)
LANGUAGE sql VOLATILE
AS $$
SELECT c.relname::text, c.relkind = 'i', pg_stat_get_xact_numscans(c.oid), pg_stat_get_xact_tuples_returned(c.oid)
  FROM pg_class AS c WHERE c.relnamespace = 'pljobs'::regnamespace AND c.relkind IN ('r', 'i');
$$;
CREATE FUNCTION scans_of(call text) RETURNS TABLE (relname text, is_index boolean, scans bigint, entries bigint)
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    -- Once for nothing: plans are made, and index entries of other tests' rows that were rolled back are marked dead.
    BEGIN
        EXECUTE call;
        RAISE EXCEPTION USING ERRCODE = 'TESTS';
    EXCEPTION WHEN SQLSTATE 'TESTS' THEN
        NULL;
    END;
    DELETE FROM seen;
    INSERT INTO seen SELECT c.relname, c.scans, c.entries FROM counters() AS c;
    EXECUTE call;
    RETURN QUERY SELECT c.relname, c.is_index, c.scans - s.scans, c.entries - s.entries FROM counters() AS c JOIN seen AS s USING (relname) WHERE c.scans > s.scans;
END
$$;
-- The tables that may be large are not scanned, and no index is walked for more than `most` entries.
CREATE FUNCTION walks(call text, rule text, most bigint DEFAULT 5000) RETURNS SETOF text
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    IF current_setting('tests.warm_up', true) = 'on' THEN
        EXECUTE walks.call;
        RETURN;
    END IF;
    RETURN NEXT is((SELECT string_agg(format('%s: %s scans, %s entries', s.relname, s.scans, s.entries), '; ') FROM scans_of(walks.call) AS s
                     WHERE (NOT s.is_index AND s.relname IN ('job', 'request', 'job_event', 'progress', 'closed_tree', 'deleted_parent', 'idempotency')) OR s.entries > walks.most), NULL, walks.rule);
END
$$;

CREATE FUNCTION each_call(what text) RETURNS SETOF text
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_worker bigint := a_worker();
    v_lost bigint := a_worker();
    v_queue text := a_name('queue');
    v_ids bigint[] := pljobs.defer_jobs_v1((SELECT jsonb_agg(jsonb_build_object('task', 'a task', 'queue', v_queue)) FROM generate_series(1, 60)));
    v_lane record := a_lane(3);
    v_runs bigint[];
    v_job record;
    v_one text;
    v_tree bigint := a_todo_job();
    v_children bigint[] := ARRAY(SELECT a_child_of(v_tree, queue => v_queue || ' of children') FROM generate_series(1, 20));
    v_late record := a_late_job();
    v_asked record := a_doing_job();
    v_over bigint[] := ARRAY(SELECT a_finished_job('failed') FROM generate_series(1, 10));
BEGIN
    v_runs := ARRAY(SELECT f.run_id FROM pljobs.fetch_jobs_v1(v_worker, 20, ARRAY[v_queue]) AS f);
    PERFORM pljobs.fetch_jobs_v1(v_lost, 5, ARRAY[v_queue]), lose_worker(v_lost);
    v_one := format('"job_id": %s, "run_id": %s', v_ids[1], v_runs[1]);
    RETURN QUERY SELECT walks(format('SELECT pljobs.fetch_jobs_v1(%s, 3)', v_worker), what || ': a fetch from all queues walks no further than it must');
    RETURN QUERY SELECT walks(format('SELECT pljobs.fetch_jobs_v1(%s, 3, ARRAY[%L])', v_worker, v_queue), what || ': a fetch from one queue walks no further than it must');
    RETURN QUERY SELECT walks(format('SELECT pljobs.fetch_jobs_v1(%s, 3, ARRAY[%L, ''another'', ''queue''])', v_worker, v_queue), what || ': a fetch from several queues walks no further than it must');
    RETURN QUERY SELECT walks(format('SELECT pljobs.fetch_jobs_v1(%s, 3, ARRAY[''nothing here''])', v_worker), what || ': a fetch from an empty queue walks nothing');
    RETURN QUERY SELECT walks(format('SELECT pljobs.fetch_jobs_v1(%s, 3, ARRAY[%L])', v_worker, v_lane.queue), what || ': a fetch through a lane walks no further than it must');
    PERFORM pljobs.pause_queue('paused for plans');
    RETURN QUERY SELECT walks(format('SELECT pljobs.fetch_jobs_v1(%s, 3)', v_worker), what || ': a fetch while a queue is paused walks no further than it must');
    PERFORM pljobs.resume_queue('paused for plans');
    RETURN QUERY SELECT walks(format('SELECT pljobs.heartbeat_v1(%s, %L)', v_worker, v_runs), what || ': a heartbeat reads its own runs');
    RETURN QUERY SELECT walks(format('SELECT pljobs.finish_jobs_v1(''[{%s, "outcome": "succeeded"}]'')', v_one), what || ': a success goes to its row');
    RETURN QUERY SELECT walks(format('SELECT pljobs.finish_jobs_v1(%L)', (SELECT jsonb_agg(jsonb_build_object('job_id', i, 'run_id', r, 'outcome', 'succeeded')) FROM unnest(v_ids[2:8], v_runs[2:8]) AS x(i, r))),
                              what || ': many successes go to their rows');
    RETURN QUERY SELECT walks(format('SELECT pljobs.finish_jobs_v1(''[{"job_id": %s, "run_id": %s, "outcome": "failed", "retry_at": "2001-01-01T00:00:00Z"}]'')', v_ids[9], v_runs[9]), what || ': a retry goes to its row');
    RETURN QUERY SELECT walks(format('SELECT pljobs.finish_jobs_v1(''[{%s, "outcome": "failed"}]'')', v_one), what || ': a replay goes to its row');
    RETURN QUERY SELECT walks(format('SELECT pljobs.cancel_job(%s)', v_ids[60]), what || ': a cancel goes to its row');
    RETURN QUERY SELECT walks(format('SELECT pljobs.cancel_job(%s, abort => true)', v_ids[10]), what || ': an abort goes to its row');
    RETURN QUERY SELECT walks(format('SELECT pljobs.heartbeat_v1(%s, %L, %L)', v_worker, v_runs, (SELECT jsonb_agg(jsonb_build_object('run_id', r, 'handling', 'handling')) FROM unnest(v_runs) AS r)), what || ': a heartbeat that delivers reads its own requests');
    RETURN QUERY SELECT walks(format('SELECT pljobs.cancel_job(%s, force => true)', v_ids[11]), what || ': a forced abort goes to its row');
    RETURN QUERY SELECT walks(format('SELECT pljobs.finish_jobs_v1(''[{"job_id": %s, "run_id": %s, "outcome": "aborted"}]'')', v_ids[10], v_runs[10]), what || ': an abort''s end goes to its row');
    -- Children, limits, progress, levels.
    PERFORM a_child_of(v_children[1]), pljobs.cancel_job(v_asked.job_id, abort => true, grace => '0');
    RETURN QUERY SELECT walks(format('SELECT pljobs.fetch_jobs_v1(%s, 3, ARRAY[%L])', v_worker, v_queue || ' of children'), what || ': a fetch of children looks up their parents');
    PERFORM pljobs.defer_job('a task', queue => v_queue, start_by => '9999-01-01 00:00+00') FROM generate_series(1, 10);
    UPDATE pljobs.job AS j SET start_by = now() - interval '1 s' WHERE j.start_by > now() AND j.queue = v_queue;
    RETURN QUERY SELECT walks(format('SELECT pljobs.fetch_jobs_v1(%s, 3, ARRAY[%L])', v_worker, v_queue), what || ': a fetch that finds overdue jobs walks no further than it must');
    RETURN QUERY SELECT walks(format('SELECT pljobs.heartbeat_v1(%s, %L, %L)', v_worker, v_runs, (SELECT jsonb_agg(jsonb_build_object('run_id', r, 'job_id', i, 'progress', 0.5)) FROM unnest(v_ids[12:20], v_runs[12:20]) AS x(i, r))),
                              what || ': a heartbeat that stores progress goes to its rows');
    RETURN QUERY SELECT walks(format('SELECT pljobs.finish_jobs_v1(''[{"job_id": %s, "run_id": %s, "outcome": "succeeded", "progress": 1}]'')', v_ids[12], v_runs[12]), what || ': an end with progress goes to its row');
    RETURN QUERY SELECT walks(format('SELECT pljobs.heartbeat_v1(%s, %L)', v_late.worker_id, ARRAY[v_late.run_id]), what || ': a heartbeat that finds a run late reads its own');
    RETURN QUERY SELECT walks(format('SELECT pljobs.heartbeat_v1(%s, %L, %L)', v_asked.worker_id, ARRAY[v_asked.run_id], jsonb_build_array(jsonb_build_object('run_id', v_asked.run_id, 'handling', 'swallowed'))), what || ': a heartbeat that cancels SQL reads its own requests');
    UPDATE pljobs.request AS r SET sql_way = NULL, sql_at = now() WHERE r.run_id = v_asked.run_id;
    PERFORM age_timeouts(v_late.run_id);
    RETURN QUERY SELECT walks('SELECT pljobs.enforce_limits_v1()', what || ': who enforces limits reads what is late');
    RETURN QUERY SELECT walks(format('SELECT pljobs.enter_sql_v1(%s, 0), pljobs.cancel_sql_v1(%1$s), pljobs.leave_sql_v1(%1$s)', v_asked.run_id), what || ': the SQL bracket reads no table', 0);
    RETURN QUERY SELECT walks(format('SELECT pljobs.cancel_tree_v1(%s, dry_run => true)', v_tree), what || ': a tree is walked from parent to child');
    RETURN QUERY SELECT walks(format('SELECT pljobs.cancel_tree_v1(%s, abort => true, grace => ''1 s'')', v_tree), what || ': a tree is cancelled from parent to child');
    RETURN QUERY SELECT walks(format('SELECT pljobs.cancel_tree_v1(%s, force => true, delete_job => true)', v_tree), what || ': and by force');
    RETURN QUERY SELECT walks(format('SELECT pljobs.get_job_statuses_v1(%L), pljobs.get_resolutions_v1(%L)', v_ids, ARRAY(SELECT r.id FROM pljobs.request AS r WHERE r.job_id = ANY (v_ids))), what || ': who waits for many jobs has each looked up');
    -- Turns and throttles.
    PERFORM pljobs.defer_jobs_v3((SELECT jsonb_agg(jsonb_build_object('task', 'a task', 'queue', v_queue || ' of turns', 'fairness_key', 'key ' || n % 3)) FROM generate_series(1, 30) AS n));
    RETURN QUERY SELECT walks(format('SELECT pljobs.fetch_jobs_v1(%s, 3, ARRAY[%L])', v_worker, v_queue || ' of turns'), what || ': a fetch in turn walks no further than it must');
    PERFORM pljobs.throttle_queue(v_queue || ' of turns', max_running => 20, rate => 100, period => '1 min'), pljobs.throttle_queue(v_queue || ' of turns', max_running => 2, each_key => true);
    RETURN QUERY SELECT walks(format('SELECT pljobs.fetch_jobs_v1(%s, 3, ARRAY[%L])', v_worker, v_queue || ' of turns'), what || ': so does one within throttles');
    RETURN QUERY SELECT walks(format('SELECT pljobs.finish_jobs_v1(jsonb_build_array(jsonb_build_object(''job_id'', j.id, ''run_id'', j.run_id, ''outcome'', ''unstarted'')), wait => false) FROM (SELECT d.id, d.run_id FROM pljobs.job AS d WHERE d.worker_id = %s AND d.status = ''doing'' AND d.throttled OFFSET 0) AS j', v_worker), what || ': what was fetched so goes back to its place');
    -- Rates that thousands of keys have used, and one of each kind that is waited for.
    PERFORM pljobs.throttle_queue(v_queue || ' of turns', rate => 1, period => '1 h', each_key => true), pljobs.throttle_queue(v_queue, rate => 1, period => '1 h'), pljobs.throttle_task('a task', rate => 1, period => '1 h');
    INSERT INTO pljobs.bucket (scope, name, key, set_at, full_at)
    SELECT t.scope, t.name, CASE t.scope WHEN 'key' THEN 'key ' || n ELSE '' END, t.set_at, clock_timestamp() + interval '30 min'
      FROM pljobs.throttle AS t CROSS JOIN LATERAL generate_series(1, CASE t.scope WHEN 'key' THEN 6000 ELSE 1 END) AS n
     WHERE t.name = v_queue || ' of turns' AND t.scope = 'key' OR t.name IN (v_queue, 'a task');
    RETURN QUERY SELECT walks(format('SELECT pljobs.next_fetch_v1(%s)', v_worker), what || ': who asks what comes next walks no further than it must');
    PERFORM pljobs.throttle_queue(v_queue || ' of turns', each_key => true), pljobs.throttle_queue(v_queue), pljobs.throttle_task('a task');
    DELETE FROM pljobs.bucket WHERE key LIKE 'key %';   -- Else a prune of the history reads them, as it does.
    RETURN QUERY SELECT walks('SELECT pljobs.rescue_jobs_v1()', what || ': a rescue reads running jobs');
    PERFORM pljobs.defer_job('a task', queue => v_queue, scheduled_at => '9999-01-01 00:00+00') FROM generate_series(1, 10);
    UPDATE pljobs.job AS j SET scheduled_at = now() - interval '1 s' WHERE j.scheduled_at > now() AND j.queue = v_queue;
    RETURN QUERY SELECT walks(format('SELECT pljobs.fetch_jobs_v1(%s, 3, ARRAY[%L])', v_worker, v_queue), what || ': a fetch that finds due jobs walks no further than it must');
    RETURN QUERY SELECT walks(format('SELECT pljobs.defer_jobs_v2(''[{"task": "a task", "idempotency_key": %s}]'')', to_json(a_name('key'))), what || ': a key is looked up');
    -- Not what was deleted by the same transaction: its entries are passed over, as those of a held snapshot are.
    UPDATE pljobs.job AS j SET finished_at = '2001-01-01' WHERE j.id = ANY (v_over);
    UPDATE pljobs.request AS r SET resolved_at = '2001-01-01' WHERE r.run_id = v_asked.run_id AND r.resolved_at IS NOT NULL;
    RETURN QUERY SELECT walks('SELECT pljobs.prune_jobs_v2(''20 years'', archive => true, max_jobs => 5)', what || ': a prune into the archive goes to its rows');
    RETURN QUERY SELECT walks('SELECT pljobs.prune_jobs_v2(''20 years'', since => ''2000-12-31'')', what || ': so does one that deletes, and goes on where it was');
    RETURN QUERY SELECT walks('SELECT pljobs.prune_history_v2(''20 years'', since => ''2000-12-31'')', what || ': so does a prune of the history');
    IF what = 'planned while empty' THEN
        RETURN;   -- What is called rarely may be slow until the next ANALYZE.
    END IF;
    RETURN QUERY SELECT walks(format('SELECT pljobs.retry_job(%s)', v_ids[11]), what || ': a retry of a person''s goes to its row');
    RETURN QUERY SELECT walks(format('SELECT pljobs.retry_jobs_v1(parent_id => %s, dry_run => false)', v_tree), what || ': children are put back by their parent');
    RETURN QUERY SELECT walks(format('SELECT pljobs.cancel_jobs_v1(parent_id => %s, abort => true, dry_run => false)', v_tree), what || ': and cancelled by it');
    RETURN QUERY SELECT walks(format('SELECT pljobs.delete_job(%s)', v_ids[10]), what || ': a delete goes to its row');
    RETURN QUERY SELECT walks(format('SELECT pljobs.defer_job(''a task'', queueing_lock => %L)', a_name('lock')), what || ': a queueing lock is looked up');
    RETURN QUERY SELECT walks('SELECT pljobs.wake_lanes_v1()', what || ': a sweep of lanes reads waiting jobs');
    RETURN QUERY SELECT walks('SELECT pljobs.prune_jobs(''100 years'')', what || ': a prune that finds nothing old reads nothing');
    RETURN QUERY SELECT walks('SELECT pljobs.prune_history_v1(''100 years'')', what || ': a prune of requests that finds nothing old reads nothing');
    RETURN QUERY SELECT walks(format('SELECT count(*) FROM pljobs.archive WHERE id = %s', v_over[1]), what || ': one job of the archive is looked up');
    RETURN QUERY SELECT walks(format('SELECT count(*) FROM pljobs.jobs WHERE id = %s', v_ids[12]), what || ': one job is looked up');
    RETURN QUERY SELECT walks(format('SELECT count(*) FROM pljobs.history WHERE job_id = %s', v_ids[12]), what || ': the history of one job is looked up');
END
$$;

-- What has finished, and all that it left.
CREATE PROCEDURE fill()
LANGUAGE sql
AS $$
INSERT INTO pljobs.job (queue, task, priority, args, status, created_at, started_at, finished_at, attempts, worker_id, deferred_by)
SELECT 'q' || n % 100, 'a task', n % 5, '{}', CASE n % 10 WHEN 0 THEN 'failed' WHEN 1 THEN 'cancelled' ELSE 'succeeded' END, clock_timestamp(), clock_timestamp(), clock_timestamp(), 1, 1, 'tests'
  FROM generate_series(1, 30000) AS n;
INSERT INTO pljobs.request (job_id, requested_at, resolved_at, kind, queue, requested_by, resolution)
SELECT j.id, clock_timestamp(), clock_timestamp(), 'cancel', j.queue, 'tests', 'cancelled' FROM pljobs.job AS j WHERE j.deferred_by = 'tests';
INSERT INTO pljobs.progress (job_id, run_id, at, fraction) SELECT j.id, 1, clock_timestamp(), 1 FROM pljobs.job AS j WHERE j.deferred_by = 'tests';
INSERT INTO pljobs.closed_tree (job_id, closed_at) SELECT j.id, clock_timestamp() FROM pljobs.job AS j WHERE j.deferred_by = 'tests';
INSERT INTO pljobs.deleted_parent (job_id, parent_id, deleted_at) SELECT -j.id, -j.id - 1, clock_timestamp() FROM pljobs.job AS j WHERE j.deferred_by = 'tests';
INSERT INTO pljobs.idempotency (deferred_by, key, task, args_hash, deferred_at) SELECT 'tests', j.id::text, 'a task', 1, clock_timestamp() FROM pljobs.job AS j WHERE j.deferred_by = 'tests';
UPDATE pljobs.job SET parent_id = id - 1 WHERE deferred_by = 'tests' AND id % 2 = 0;
INSERT INTO pljobs.job_event (job_id, at, attempt, kind) SELECT j.id, clock_timestamp(), 1, 'retried' FROM pljobs.job AS j WHERE j.deferred_by = 'tests';
$$;
-- What waits.
CREATE PROCEDURE pile_up()
LANGUAGE sql
AS $$
SELECT pljobs.defer_jobs_v1((SELECT jsonb_agg(jsonb_build_object('task', 'a task', 'queue', 'queue ' || n % 3,
    'scheduled_at', CASE n % 3 WHEN 0 THEN '9999-01-01T00:00:00Z' END, 'lock', CASE n % 3 WHEN 1 THEN 'one long lane' END)) FROM generate_series(1, 30000) AS n));
$$;

-- As a VACUUM writes it that has found pages, and no row on them.
CREATE PROCEDURE vacuumed(pages integer)
LANGUAGE sql
AS $$
UPDATE pg_class SET reltuples = 0, relpages = vacuumed.pages
 WHERE oid IN (SELECT t.relid FROM pg_stat_user_tables AS t WHERE t.schemaname = 'pljobs' UNION ALL SELECT i.indexrelid FROM pg_stat_user_indexes AS i WHERE i.schemaname = 'pljobs');
$$;

-- A session that planned everything while the tables were new and empty.
UPDATE pg_class SET reltuples = -1, relpages = 0 WHERE oid IN ('pljobs.job'::regclass, 'pljobs.request'::regclass, 'pljobs.job_event'::regclass, 'pljobs.progress'::regclass, 'pljobs.closed_tree'::regclass, 'pljobs.deleted_parent'::regclass,
                                                               'pljobs.idempotency'::regclass);
SET LOCAL tests.warm_up = 'on';
SELECT count(*) FROM (SELECT each_call('warm up')) AS x \g /dev/null
SET LOCAL tests.warm_up = 'off';
CALL fill();
SELECT each_call('planned while empty');

-- Statistics that say that nothing is todo or doing; then there is.
DISCARD PLANS;
UPDATE pljobs.job SET status = 'cancelled', run_id = NULL, request_id = NULL, waiting_for = NULL, timeout_at = NULL, finished_at = clock_timestamp() WHERE status IN ('todo', 'doing');
UPDATE pljobs.request SET resolved_at = clock_timestamp(), resolution = 'forced' WHERE resolved_at IS NULL;
ANALYZE pljobs.job, pljobs.request, pljobs.job_event, pljobs.progress, pljobs.closed_tree, pljobs.deleted_parent, pljobs.idempotency;
CALL pile_up();
SELECT each_call('stale statistics');

-- Statistics of all that has finished since, which is deleted.
DISCARD PLANS;
ANALYZE pljobs.job, pljobs.request, pljobs.job_event, pljobs.progress, pljobs.closed_tree, pljobs.deleted_parent, pljobs.idempotency;
DELETE FROM pljobs.job WHERE finished_at IS NOT NULL;
DELETE FROM pljobs.request WHERE resolved_at IS NOT NULL;
DELETE FROM pljobs.progress;
DELETE FROM pljobs.job_event;
DELETE FROM pljobs.closed_tree;
DELETE FROM pljobs.deleted_parent;
DELETE FROM pljobs.idempotency;
SELECT each_call('after a mass delete');

-- Statistics of empty tables, which then are not.
TRUNCATE pljobs.job, pljobs.request, pljobs.job_event, pljobs.progress, pljobs.closed_tree, pljobs.deleted_parent, pljobs.idempotency;
DISCARD PLANS;
ANALYZE pljobs.job, pljobs.request, pljobs.job_event, pljobs.progress, pljobs.closed_tree, pljobs.deleted_parent, pljobs.idempotency;
CALL fill();
CALL pile_up();
SELECT each_call('analysed while empty');

-- A session that planned everything while the tables were known to be empty.
TRUNCATE pljobs.job, pljobs.request, pljobs.job_event, pljobs.progress, pljobs.closed_tree, pljobs.deleted_parent, pljobs.idempotency;
DISCARD PLANS;
CALL vacuumed(pages => 1);
SELECT w.id, pljobs.fetch_jobs_v1(w.id, 3), pljobs.heartbeat_v1(w.id, '{1}'), pljobs.finish_jobs_v1('[{"job_id": 1, "run_id": 1, "outcome": "succeeded"}]') FROM a_worker() AS w(id) \g /dev/null
SET LOCAL tests.warm_up = 'on';
SELECT count(*) FROM (SELECT each_call('warm up')) AS x \g /dev/null
SET LOCAL tests.warm_up = 'off';
CALL fill();
CALL pile_up();
SELECT each_call('planned while empty');

-- A queue that was empty when it was vacuumed.
DISCARD PLANS;
CALL vacuumed(pages => 1000);
SELECT each_call('vacuumed while empty');

SELECT * FROM finish();
ROLLBACK;

BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT * FROM an_aborting_job() \gset
SELECT a_todo_job() AS one, a_todo_job() AS two, a_todo_job() AS young, a_worker() AS stopped, a_worker() AS running, a_worker() AS just_stopped \gset
SELECT pljobs.cancel_job(:one), pljobs.cancel_job(:two), pljobs.cancel_job(:young), pljobs.unregister_worker_v1(:stopped), pljobs.unregister_worker_v1(:just_stopped) \g /dev/null
UPDATE pljobs.request SET requested_at = requested_at - interval '1 day', resolved_at = resolved_at - interval '1 day' WHERE job_id IN (:one, :two, :job_id);
UPDATE pljobs.worker SET started_at = started_at - interval '1 day', stopped_at = stopped_at - interval '1 day' WHERE id IN (:stopped, :running);
SELECT is(pljobs.prune_history_v1('12 h', 1), 2::bigint, 'at most max_rows of each are deleted: one request, one worker');
SELECT is(pljobs.prune_history_v1('12 h'), 1::bigint, 'the next call deletes the others');
SELECT is(pljobs.prune_history_v1('12 h'), 0::bigint, 'until none is left');
SELECT is(ARRAY(SELECT job_id FROM pljobs.request WHERE job_id IN (:one, :two, :young, :job_id) ORDER BY job_id), ARRAY[:job_id, :young]::bigint[], 'a request that is open or young stays');
SELECT is(ARRAY(SELECT id FROM pljobs.worker WHERE id IN (:stopped, :running, :just_stopped) ORDER BY id), ARRAY[:running, :just_stopped]::bigint[], 'a worker that is registered or stopped of late stays');
SELECT is(status_of(:one), 'cancelled', 'jobs stay');
SELECT ok(pljobs.prune_history_v1('0') >= 2, 'older_than 0 means all that is over');
SELECT is(r.resolution, NULL, 'an open request is never deleted') FROM pljobs.request AS r WHERE r.id = :request_id;
SELECT throws_ok(format('SELECT pljobs.prune_history_v1(%s)', a), 'PJ004', NULL, 'refused: ' || a) FROM unnest(ARRAY['NULL', '''-1 s''', '''1 day'', 0', '''1 day'', -1', '''1 day'', NULL']) AS a;

-- What keeps cancelled trees closed.
SELECT a_todo_job() AS old, a_todo_job() AS young \gset
SELECT count(*) FROM pljobs.cancel_tree(:old) AS o, pljobs.cancel_tree(:young) AS y \g /dev/null
UPDATE pljobs.closed_tree SET closed_at = closed_at - interval '1 day' WHERE job_id = :old;
SELECT is(pljobs.prune_history_v1('12 h'), 1::bigint, 'the mark of a tree that was cancelled long ago goes');
SELECT is(ARRAY(SELECT job_id FROM pljobs.closed_tree WHERE job_id IN (:old, :young)), ARRAY[:young]::bigint[], 'that of a young one stays');

-- As long as children wait that it keeps from starting, it stays: one was committed too late to be cancelled with its tree.
SELECT a_todo_job() AS parent \gset
SELECT a_child_of(:parent) AS child \gset
INSERT INTO pljobs.closed_tree VALUES (:parent, now() - interval '1 day');
SELECT is(pljobs.prune_history_v1('12 h'), 0::bigint, 'a mark that keeps a waiting child from starting stays');
SELECT is(fetch_ids(j.queue), '{}', 'the child never starts') FROM pljobs.job AS j WHERE j.id = :child;
SELECT is(pljobs.prune_history_v1('12 h'), 1::bigint, 'then it goes');
SELECT * FROM a_doing_job() \gset
INSERT INTO pljobs.closed_tree VALUES (:job_id, now() - interval '1 day');
SELECT is(pljobs.prune_history_v1('12 h'), 0::bigint, 'a mark that keeps a running job from deferring more stays');
SELECT throws_ok(format('SELECT a_child_of(%s)', :job_id), 'PJ007', NULL, 'which it can''t');
SELECT status FROM pljobs.finish_jobs_v1(jsonb_build_array(jsonb_build_object('job_id', :job_id, 'run_id', :run_id, 'outcome', 'succeeded'))) \g /dev/null
SELECT is(pljobs.prune_history_v1('12 h'), 1::bigint, 'then that goes');

-- What is remembered of deleted jobs, as long as something hangs on it.
SELECT a_todo_job() AS root \gset
SELECT a_child_of(:root) AS one \gset
SELECT a_child_of(:one) AS two \gset
SELECT a_child_of(:two) AS leaf \gset
SELECT pljobs.cancel_job(:one, delete_job => true), pljobs.cancel_job(:two, delete_job => true) \g /dev/null
UPDATE pljobs.deleted_parent SET deleted_at = deleted_at - interval '1 day';
SELECT is(pljobs.prune_history_v1('12 h'), 0::bigint, 'what ties a job to its tree stays');
SELECT pljobs.cancel_job(:leaf, delete_job => true) \g /dev/null
UPDATE pljobs.deleted_parent SET deleted_at = deleted_at - interval '1 day';
SELECT is(pljobs.prune_history_v1('12 h'), 1::bigint, 'then it goes, from below');
SELECT is(pljobs.prune_history_v1('12 h'), 1::bigint, 'one after the other');
SELECT is_empty(format('SELECT FROM pljobs.deleted_parent WHERE job_id IN (%s, %s, %s)', :one, :two, :leaf), 'all of it');

-- From where the call before had come to.
SELECT count(*) FROM pljobs.prune_history_v1('0') \g /dev/null
INSERT INTO pljobs.request (job_id, requested_at, resolved_at, kind, queue, requested_by, resolution)
SELECT n, at, at, 'cancel', 'q', 'tests', 'cancelled' FROM generate_series(1, 5) AS n, LATERAL (VALUES ('2020-01-01 00:00+00'::timestamptz + n * interval '1 day')) AS t(at);
INSERT INTO pljobs.closed_tree VALUES (-1, '2020-01-03 12:00+00'), (-2, '2020-01-07 00:00+00');
SELECT pruned, reached_at FROM pljobs.prune_history_v2('1 day', 2) \gset
SELECT is(:'pruned' || ' until ' || (:'reached_at'::timestamptz AT TIME ZONE 'UTC'), '4 until 2020-01-03 00:00:00', 'full batches say how far the first of them came');
SELECT pruned, reached_at FROM pljobs.prune_history_v2('1 day', 2, '2020-01-04 12:00+00') \gset
SELECT is(:'pruned' || ' until ' || (:'reached_at'::timestamptz AT TIME ZONE 'UTC'), '2 until 2020-01-06 00:00:00', 'the next one goes on there');
SELECT is(p.pruned || ' ' || (p.reached_at BETWEEN now() - interval '1 day' AND clock_timestamp() - interval '1 day'), '0 true', 'one without a full batch has come to older_than ago') FROM pljobs.prune_history_v2('1 day', 2, :'reached_at') AS p;
SELECT results_eq('SELECT pruned, reached_at FROM pljobs.prune_history_v2(''1 day'', since => now())', 'SELECT 0::bigint, now()', 'it never goes back');
SELECT is(p.pruned, 1::bigint, 'without since it looks at everything') FROM pljobs.prune_history_v2('1 day') AS p;

-- Limited to queues.
SELECT a_login('pljobs_worker') AS ann \gset
SELECT matches(as_login(:'ann', 'SELECT pljobs.prune_history_v1(''100 years'')'), '^\d+$', 'a worker prunes the history');
SELECT pljobs.limit_queues(:'ann', 'fetch', '{mail}') \g /dev/null
SELECT is(as_login(:'ann', 'SELECT pljobs.prune_history_v1(''100 years'')'), 'PJ010', 'one that is limited does not, for it is that of all');

-- What was put back by hand runs, however late, though its tree was cancelled.
SELECT a_finished_job('succeeded') AS root \gset
SELECT a_child_of(:root) AS child \gset
SELECT pljobs.cancel_tree(:root) \g /dev/null
SELECT pljobs.retry_job(:child) \g /dev/null
SELECT pljobs.prune_history_v1('0') \g /dev/null
SELECT is(fetch_ids((SELECT queue FROM pljobs.job WHERE id = :child)), ARRAY[:child]::bigint[], 'a child that was put back starts after its history was pruned');

-- So does one of which the request was taken back, put back meanwhile.
CREATE FUNCTION fetched(job_id bigint, OUT run_id bigint) LANGUAGE plpgsql VOLATILE AS $$
BEGIN SELECT f.run_id INTO run_id FROM pljobs.job AS j, LATERAL pljobs.fetch_jobs_v1(a_worker(), queues => ARRAY[j.queue]) AS f WHERE j.id = fetched.job_id AND f.job_id = j.id; END $$;
SELECT a_finished_job('succeeded') AS root \gset
SELECT a_child_of(:root) AS child \gset
SELECT fetched(:child) AS run_id \gset
SELECT count(*) FROM pljobs.cancel_tree(:root, abort => true) \g /dev/null
SELECT pljobs.rescind_request(:child), finish_run(:child, :run_id, 'interrupted'), pljobs.prune_history_v1('0') \g /dev/null
SELECT fetched(:child) \g /dev/null
SELECT is(status_of(:child), 'doing', 'a child of which the request was taken back starts after its history was pruned');

-- A mark stays as long as a child runs that was left alone: it is cancelled where it would start again.
SELECT a_finished_job('succeeded') AS root \gset
SELECT a_child_of(:root) AS child \gset
SELECT fetched(:child) AS run_id \gset
SELECT count(*) FROM pljobs.cancel_tree(:root) \g /dev/null
SELECT pljobs.prune_history_v1('0'), finish_run(:child, :run_id, 'interrupted') \g /dev/null
SELECT fetched(:child) \g /dev/null
SELECT is(status_of(:child), 'cancelled', 'a child that was left alone does not start again, however late');

SELECT * FROM finish();
ROLLBACK;

BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

CREATE FUNCTION age_jobs(VARIADIC job_ids bigint[]) RETURNS void
LANGUAGE sql VOLATILE
AS $$
UPDATE pljobs.job SET finished_at = finished_at - interval '1 day' - id * interval '1 s' WHERE id = ANY (job_ids);
$$;

SELECT a_finished_job('succeeded') AS succeeded, a_finished_job('failed') AS failed, a_finished_job('cancelled') AS cancelled, a_finished_job('aborted') AS aborted,
       a_finished_job('succeeded') AS young, a_todo_job() AS todo, a_finished_job('failed') AS elsewhere \gset
SELECT * FROM a_doing_job() \gset
SELECT a_name('queue') AS q \gset
UPDATE pljobs.job SET queue = :'q' WHERE id IN (:succeeded, :failed, :cancelled, :aborted, :young, :todo, :job_id);
SELECT age_jobs(:succeeded, :failed, :cancelled, :aborted, :elsewhere) \g /dev/null
SELECT is(pljobs.prune_jobs('12 h', '{failed}', :'q'), 1::bigint, 'jobs of the given status and queue are deleted');
SELECT results_eq(format('SELECT status_of(%s), status_of(%s), status_of(%s)', :failed, :succeeded, :elsewhere), $$VALUES ('gone', 'succeeded', 'failed')$$, 'no others');
SELECT is(pljobs.prune_jobs_v1('12 h', queue => :'q', max_jobs => 2), 2::bigint, 'at most max_jobs are deleted');
SELECT results_eq(format('SELECT status_of(%s), status_of(%s), status_of(%s)', :succeeded, :cancelled, :aborted), $$VALUES ('succeeded', 'gone', 'gone')$$, 'the oldest first');
SELECT is(pljobs.prune_jobs_v1('12 h', queue => :'q', max_jobs => 2), 1::bigint, 'the next call deletes the others');
SELECT is(pljobs.prune_jobs_v1('12 h', queue => :'q', max_jobs => 2), 0::bigint, 'until none is left');
SELECT is(status_of(:young), 'succeeded', 'a job that finished since stays');
SELECT isnt_empty(format('SELECT FROM pljobs.request WHERE job_id = %s', :aborted), 'the requests about a deleted job stay');
SELECT is(pljobs.prune_jobs('0', queue => :'q'), 1::bigint, 'older_than 0 means all that have finished');
SELECT is(status_of(:todo) || ', ' || status_of(:job_id), 'todo, doing', 'waiting and running jobs are never deleted');
SELECT ok(pljobs.prune_jobs('12 h') >= 1 AND status_of(:elsewhere) = 'gone', 'queue null means all');
SELECT is(pljobs.prune_jobs('12 h', '{}'), 0::bigint, 'no statuses, no jobs');
SELECT throws_ok(format('SELECT pljobs.prune_jobs(%s)', a), 'PJ004', NULL, 'refused: ' || a)
  FROM unnest(ARRAY['NULL', '''-1 s''', '''1 day'', ''{todo}''', '''1 day'', ''{succeeded,doing}''', '''1 day'', ''{nonsense}''', '''1 day'', NULL', '''1 day'', ''{NULL}''']) AS a;

-- Limited to queues.
SELECT a_login('pljobs_worker') AS ann, a_finished_job('succeeded') AS own, a_finished_job('succeeded') AS others \gset
SELECT pljobs.limit_queues(:'ann', 'fetch', ARRAY[j.queue]) FROM pljobs.job AS j WHERE j.id = :own \g /dev/null
SELECT is(as_login(:'ann', 'SELECT pljobs.prune_jobs(''0'')'), '1', 'a role that is limited prunes in its queues');
SELECT is(status_of(:own) || ', ' || status_of(:others), 'gone, succeeded', 'and in no others');
SELECT is(as_login(:'ann', format('SELECT pljobs.prune_jobs(''0'', queue => %L)', (SELECT j.queue FROM pljobs.job AS j WHERE j.id = :others))), '0', 'not by name, either');

-- From where the call before had come to.
SELECT a_name('queue') AS q, ARRAY(SELECT a_finished_job('succeeded') FROM generate_series(1, 5)) AS ids \gset
UPDATE pljobs.job SET queue = :'q', finished_at = '2020-01-01 00:00+00'::timestamptz + interval '1 day' * (array_position(:'ids'::bigint[], id) - 1) WHERE id = ANY (:'ids');
SELECT pruned AS one, reached_at AS reached FROM pljobs.prune_jobs_v2('1 day', queue => :'q', max_jobs => 2) \gset
SELECT is(:'one' || ' until ' || (:'reached'::timestamptz AT TIME ZONE 'UTC'), '2 until 2020-01-02 00:00:00', 'a full batch says how far it came');
UPDATE pljobs.job SET finished_at = '2019-01-01 00:00+00' WHERE id = (:'ids'::bigint[])[5];
SELECT pruned AS two, reached_at AS reached FROM pljobs.prune_jobs_v2('1 day', queue => :'q', since => :'reached') \gset
SELECT is(:two, 2, 'the next one goes on there, and does not look at what is older');
SELECT ok(:'reached'::timestamptz BETWEEN now() - interval '1 day' AND clock_timestamp() - interval '1 day', 'one that is not full has come to older_than ago');
SELECT results_eq(format('SELECT pruned, reached_at FROM pljobs.prune_jobs_v2(''1 day'', queue => %L, since => now())', :'q'), 'SELECT 0::bigint, now()', 'it never goes back');
SELECT is(p.pruned, 1::bigint, 'without since it looks at everything') FROM pljobs.prune_jobs_v2('1 day', queue => :'q') AS p;

-- Into the archive.
SELECT take_turns() \g /dev/null
SELECT * FROM a_doing_job() \gset
SELECT a_name('queue') AS q, a_finished_job('failed') AS failed, a_child_of(:job_id) AS child \gset
SELECT count(*) FROM pljobs.heartbeat_v1(:worker_id, ARRAY[:run_id]::bigint[], jsonb_build_array(jsonb_build_object('job_id', :job_id, 'run_id', :run_id, 'progress', 0.5, 'progress_message', 'half'))) \g /dev/null
SELECT finish_run(:job_id, :run_id, 'failed', '{"message": "it broke", "error": "a trace"}') \g /dev/null
UPDATE pljobs.job SET queue = :'q', args = '{"a": 1}', result = '{"b": 2}', priority = 7, lock = 'l', queueing_lock = 'ql', scheduled_at = created_at, start_by = '2031-01-01 00:00+00', timeout = '1 h', grace = '1 s', on_cancelled = 'another',
       parent_id = 1, crashes = 1, finished_at = CASE id WHEN :job_id THEN '2020-12-31 23:59:59.999999+00' ELSE '2021-01-01 00:00+00' END::timestamptz WHERE id IN (:job_id, :failed);
CREATE TABLE were AS SELECT to_jsonb(j) - '{waiting_for,run_id,abort_requested,abort_requested_at,timeout_at}'::text[] AS row FROM pljobs.jobs AS j WHERE j.id IN (:job_id, :failed);
SELECT is(pljobs.prune_jobs('1 day', queue => :'q', archive => true), 2::bigint, 'jobs move to the archive');
SELECT is(status_of(:job_id) || ', ' || status_of(:failed), 'gone, gone', 'they are no jobs any more');
SELECT set_eq('SELECT to_jsonb(a) - ''archived_at'' FROM pljobs.archive AS a WHERE a.queue = ' || quote_literal(:'q'), 'SELECT row FROM were', 'and all is there that people could read');
SELECT is(count(*), 2::bigint, 'with the time when they came') FROM pljobs.archive AS a WHERE a.queue = :'q' AND a.archived_at BETWEEN now() AND clock_timestamp();
SELECT results_eq(format('SELECT a.id, a.tableoid::regclass::text FROM pljobs.job_archive AS a WHERE a.queue = %L ORDER BY a.finished_at', :'q'),
                  format('VALUES (%s::bigint, ''pljobs.job_archive_2020_12''), (%s, ''pljobs.job_archive_2021_01'')', :job_id, :failed), 'each in its month, of UTC');
SELECT results_eq($$SELECT pg_get_expr(relpartbound, oid) COLLATE "default" FROM pg_class WHERE oid = 'pljobs.job_archive_2020_12'::regclass$$, $$SELECT format('FOR VALUES FROM (%L) TO (%L)', '2020-12-01 00:00+00'::timestamptz, '2021-01-01 00:00+00'::timestamptz)$$, 'whose partition is from its first moment to the next one''s');
SELECT is_empty(format('SELECT FROM pljobs.progress AS p WHERE p.job_id = %s', :job_id), 'nothing else of them stays');
SELECT isnt_empty(format('SELECT FROM pljobs.deleted_parent WHERE job_id = %s', :job_id), 'but what ties their children to their tree');
SELECT is_empty($$SELECT kind, name, problem FROM pljobs.check_install() WHERE name ~ 'archive'$$, 'check_install has nothing to say about partitions');
SELECT is((SELECT array_agg(o ORDER BY o) FROM pg_class AS c, unnest(c.reloptions) AS o WHERE c.oid = 'pljobs.job_archive_2020_12'::regclass), '{autovacuum_freeze_min_age=0,fillfactor=100}', 'nothing in it is ever changed');
SELECT is_empty($$SELECT FROM pg_class AS c, pg_namespace AS n WHERE n.nspname = 'pljobs' AND c.relname ~ '^job_archive_' AND (c.relowner <> n.nspowner OR c.relacl IS NOT NULL)$$, 'they are the schema''s owner''s, and nobody else''s');

-- Whatever the session's styles are.
SELECT a_finished_job('succeeded') AS late, a_finished_job('aborted') AS old \gset
UPDATE pljobs.job SET queue = :'q', finished_at = CASE id WHEN :late THEN '2020-12-31 23:59:59.999999+00' ELSE '0999-06-30 23:00+00' END::timestamptz WHERE id IN (:late, :old);
SET LOCAL timezone = 'Pacific/Auckland';
SET LOCAL datestyle = 'SQL, DMY';
SELECT is(pljobs.prune_jobs('1 day', queue => :'q', archive => true), 2::bigint, 'a late job goes to the partition of its month');
SELECT set_eq(format('SELECT a.tableoid::regclass::text AS part FROM pljobs.job_archive AS a WHERE a.id IN (%s, %s)', :late, :old), ARRAY['pljobs.job_archive_2020_12', 'pljobs.job_archive_0999_06'], 'however old it is');
RESET datestyle;
RESET timezone;

-- Who deletes a job does not want it.
SELECT a_finished_job('failed') AS unwanted \gset
SELECT pljobs.delete_job(:unwanted) \g /dev/null
SELECT is_empty(format('SELECT FROM pljobs.archive WHERE id = %s', :unwanted), 'a job that somebody deletes is not archived');

-- A copy that was restored piece by piece has a job in both.
SELECT a_finished_job('failed') AS twice \gset
UPDATE pljobs.job SET queue = :'q', finished_at = '2020-12-05 00:00+00' WHERE id = :twice;
SELECT pljobs._archive_jobs(ARRAY[:twice]::bigint[]) \g /dev/null
SELECT is(pljobs.prune_jobs('1 day', queue => :'q', archive => true), 1::bigint, 'a job that is in the archive already is deleted');
SELECT is(count(*), 1::bigint, 'and is there once') FROM pljobs.archive AS a WHERE a.id = :twice;

-- Whose they are.
SELECT a_login('pljobs_producer') AS ann, a_login('pljobs_producer') AS bob, a_login('pljobs_reader') AS rob, a_login('pljobs_worker') AS wim \gset
SELECT as_login(:'ann', format('SELECT pljobs.defer_job(''a task'', ''{"secret": 1}'', %L)', :'q')) AS own \gset
SELECT pljobs.cancel_job(:own) \g /dev/null
UPDATE pljobs.job SET finished_at = '2020-12-05 00:00+00', message = 'm', error = 'e', result = '1' WHERE id = :own;
SELECT is(as_login(:'wim', format('SELECT pljobs.prune_jobs(''1 day'', queue => %L, archive => true)', :'q')), '1', 'a worker archives');
SELECT format('SELECT concat_ws('' '', count(*), min(args::text), min(message), min(error), min(result::text)) FROM pljobs.archive WHERE id = %s', :own) AS read_own \gset
SELECT is(as_login(:'ann', :'read_own'), '1 {"secret": 1} m e 1', 'a producer reads its own jobs');
SELECT is(as_login(:'ann', format('SELECT count(*) FROM pljobs.archive WHERE id = %s', :failed)), '0', 'and no others');
SELECT is(as_login(:'bob', :'read_own'), '0', 'nor do others');
SELECT is(as_login(:'rob', :'read_own'), '1', 'a reader reads all, but what is secret');
SELECT is(as_login(:'wim', :'read_own'), '42501', 'a worker none');
SELECT is(as_login(l, 'SELECT count(*) FROM pljobs.job_archive_2020_12'), '42501', 'nobody reads a partition') FROM unnest(ARRAY[:'ann', :'rob', :'wim']) AS l;

SELECT throws_ok(format('SELECT pljobs.prune_jobs_v2(''1 day'', max_jobs => %s)', x), 'PJ004', NULL, 'refused: max_jobs ' || x) FROM unnest(ARRAY['0', '-1', 'NULL']) AS x;
SELECT throws_ok('SELECT pljobs.prune_jobs(''1 day'', archive => NULL)', 'PJ004', NULL, 'refused: archive null');

SELECT * FROM finish();
ROLLBACK;

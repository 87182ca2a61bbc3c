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

SELECT * FROM finish();
ROLLBACK;

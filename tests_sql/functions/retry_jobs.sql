-- Against others: races/cancel_jobs.spec. The filters: _matching_jobs.sql.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT a_name('task') AS t \gset
CREATE TABLE scene AS SELECT s AS what, a_finished_job(s) AS id FROM unnest('{succeeded,failed,cancelled,aborted}'::text[]) AS s;
INSERT INTO scene VALUES ('waiting', a_todo_job());
INSERT INTO scene SELECT 'running', d.job_id FROM a_doing_job() AS d;
UPDATE pljobs.job AS j SET task = :'t' FROM scene AS s WHERE s.id = j.id;

SELECT is(string_agg(c.status_before || ' ' || c.outcome, ', '), 'failed would_requeue, cancelled would_requeue, aborted would_requeue', 'shown only, by ascending id') FROM pljobs.retry_jobs(task => :'t') AS c;
SELECT is(count(*), 3::bigint, 'dry_run => null only shows, too') FROM pljobs.retry_jobs_v1(task => :'t', dry_run => NULL) AS c WHERE c.outcome = 'would_requeue';
SELECT is(count(*), 3::bigint, 'what is only shown is not changed') FROM pljobs.job AS j JOIN scene AS s ON s.id = j.id AND s.what = j.status WHERE s.what IN ('failed', 'cancelled', 'aborted');
SELECT bag_eq(format('SELECT s.what, c.task_name, c.status_before, c.outcome FROM pljobs.retry_jobs(task => %L, status => ''failed'', reason => ''fixed'', actor => ''ann'', dry_run => false) AS c JOIN scene AS s ON s.id = c.job_id', :'t'),
              format($$VALUES ('failed', %L, 'failed', 'requeued')$$, :'t'), 'those of one status are put back');
SELECT results_eq($$SELECT r.kind, r.resolution, r.reason, r.actor FROM pljobs.request AS r JOIN scene AS s ON s.id = r.job_id WHERE s.what = 'failed'$$, $$VALUES ('retry', 'requeued', 'fixed', 'ann')$$, 'with why, and for whom');
SELECT bag_eq(format('SELECT s.what, c.status_before, c.outcome FROM pljobs.retry_jobs_v1(task => %L, dry_run => false) AS c JOIN scene AS s ON s.id = c.job_id', :'t'),
              $$VALUES ('cancelled', 'cancelled', 'requeued'), ('aborted', 'aborted', 'requeued')$$, 'then the others; those that wait are left alone');
SELECT bag_eq('SELECT s.what, j.status, j.request_id FROM pljobs.job AS j JOIN scene AS s ON s.id = j.id',
              $$VALUES ('succeeded', 'succeeded', NULL::bigint), ('failed', 'todo', NULL), ('cancelled', 'todo', NULL), ('aborted', 'todo', NULL), ('waiting', 'todo', NULL), ('running', 'doing', NULL)$$, 'clean of former requests; what succeeded or runs stays');

SELECT a_name('lock') AS ql \gset
SELECT a_finished_job('cancelled', NULL, :'ql') AS one, a_finished_job('cancelled', NULL, :'ql') AS two \gset
SELECT is(array_agg(c.outcome), '{requeued,requeued}', 'of two with one queueing lock both are put back') FROM pljobs.retry_jobs(ARRAY[:two, :one]::bigint[], dry_run => false) AS c;
SELECT is(count(j.queueing_lock), 1::bigint, 'one of them with it') FROM pljobs.job AS j WHERE j.id IN (:one, :two);

SELECT a_name('task') AS t \gset
SELECT pljobs.defer_jobs_v1((SELECT jsonb_agg(jsonb_build_object('task', :'t')) FROM generate_series(1, 4))) AS ids \gset
SELECT pljobs.cancel_jobs_v1(task => :'t', dry_run => false) \g /dev/null
SELECT is(ARRAY(SELECT c.job_id FROM pljobs.retry_jobs(task => :'t', max_jobs => 2, dry_run => false) AS c), (:'ids'::bigint[])[1:2], 'at most so many, the lowest ids');
SELECT is(ARRAY(SELECT c.job_id FROM pljobs.retry_jobs(task => :'t', after_id => (:'ids'::bigint[])[3], dry_run => false) AS c), (:'ids'::bigint[])[4:4], 'from behind an id');
SELECT throws_ok('SELECT pljobs.retry_jobs(queue => ''q'', dry_run => false, ' || a || ')', 'PJ004', NULL, 'refused: ' || a)
  FROM unnest('{"status => ''succeeded''","status => ''todo''","status => ''''","max_jobs => 0","older_than => ''-1 s''"}'::text[]) AS a;
SELECT throws_ok('SELECT pljobs.retry_jobs(' || a || ')', 'PJ004', NULL, 'no filter: ' || a) FROM unnest('{"","dry_run => false, status => ''failed''"}'::text[]) AS a;

-- Of one parent.
SELECT a_todo_job() AS parent \gset
SELECT a_child_of(:parent) AS child, a_child_of(:parent) AS other \gset
SELECT count(*) FROM pljobs.cancel_tree(:parent) \g /dev/null
SELECT bag_eq(format('SELECT job_id, outcome FROM pljobs.retry_jobs(parent_id => %s, dry_run => false)', :parent), format($$VALUES (%s::bigint, 'requeued'), (%s, 'requeued')$$, :child, :other), 'those that one job deferred itself');
SELECT is(fetch_ids((SELECT queue FROM pljobs.job WHERE id = :child)), ARRAY[:child]::bigint[], 'they start, though their tree was cancelled');

-- Whose jobs they are.
SELECT a_login('pljobs_producer') AS ann, a_login('pljobs_producer') AS bob, a_login('pljobs_canceller') AS guard, a_login('pljobs_operator') AS ops \gset
SELECT a_name('task') AS mine \gset
CREATE FUNCTION ended_job_of(login text, task text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_id bigint := as_login(login, format('SELECT pljobs.defer_job(%L, ''{"secret": 1}'', queue => %L)', task, a_name('queue')));
BEGIN
    PERFORM finish_run(v_id, start_job(v_id), 'failed');
    RETURN v_id;
END
$$;
CREATE FUNCTION put_back(login text, more text) RETURNS text LANGUAGE sql VOLATILE
RETURN as_login(login, format('SELECT string_agg(format(''%%s %%s'', c.job_id, c.outcome), '', '' ORDER BY c.job_id) FROM pljobs.retry_jobs(%s) AS c', more));
SELECT ended_job_of(:'ann', :'mine') AS anns, ended_job_of(:'bob', :'mine') AS bobs \gset
SELECT is(put_back(:'bob', format('task => %L', :'mine')), format('%s would_requeue', :bobs), 'a producer finds its own');
SELECT is(put_back(:'bob', format('job_ids => ''{%s}'', dry_run => false', :anns)), NULL, 'by its id, too');
SELECT is(put_back(:'bob', format('task => %L, args => ''{"secret": 1}'', dry_run => false', :'mine')), format('%s requeued', :bobs), 'and puts back its own');
SELECT is(put_back(:'guard', format('task => %L', :'mine')), '42501', 'a canceller puts nothing back');
SELECT pljobs.limit_queues(:'ann', 'defer', '{elsewhere}') \g /dev/null
SELECT is(put_back(:'ann', format('task => %L, dry_run => false', :'mine')), 'PJ010', 'nobody puts back where it may not defer');
SELECT is(put_back(:'ops', format('task => %L, dry_run => false', :'mine')), format('%s requeued', :anns), 'an operator puts back anybody''s');

SELECT * FROM finish();
ROLLBACK;

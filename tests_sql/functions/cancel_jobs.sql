-- Against others, and in batches that commit: races/cancel_jobs.spec. The filters: _matching_jobs.sql.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

-- One job in each state, of one task.
CREATE TABLE scene (what text, id bigint);
CREATE FUNCTION set_scene(task text) RETURNS void
LANGUAGE sql VOLATILE
AS $$
TRUNCATE scene;
INSERT INTO scene VALUES ('waiting', a_todo_job(task => set_scene.task)), ('scheduled', a_todo_job(task => set_scene.task, scheduled_at => clock_timestamp() + interval '1 h'));
INSERT INTO scene SELECT 'running', d.job_id FROM a_doing_job() AS d;
INSERT INTO scene SELECT 'aborting', d.job_id FROM an_aborting_job() AS d;
INSERT INTO scene SELECT s, a_finished_job(s) FROM unnest('{succeeded,failed,cancelled,aborted}'::text[]) AS s;
UPDATE pljobs.job AS j SET task = set_scene.task FROM scene AS s WHERE s.id = j.id;
$$;

SELECT a_name('task') AS t \gset
SELECT set_scene(:'t') \g /dev/null
CREATE TABLE before_it AS SELECT j.id, j.status, j.request_id FROM pljobs.job AS j JOIN scene AS s ON s.id = j.id;
SELECT is(string_agg(s.what || ' ' || c.status_before || ' ' || c.outcome, ', ' ORDER BY c.job_id), word, 'shown only: ' || flags)
  FROM (VALUES ('', 'waiting todo would_cancel, scheduled todo would_cancel, running doing running, aborting doing running', false, false, false),
               ('abort', 'waiting todo would_cancel, scheduled todo would_cancel, running doing would_abort, aborting doing would_abort', true, NULL, NULL),
               ('delete_job', 'waiting todo would_delete, scheduled todo would_delete, running doing running, aborting doing running', NULL, true, NULL),
               ('force', 'waiting todo would_cancel, scheduled todo would_cancel, running doing would_force, aborting doing would_force', NULL, NULL, true),
               ('all', 'waiting todo would_delete, scheduled todo would_delete, running doing would_force, aborting doing would_force', true, true, true))
       AS v(flags, word, abort, delete_job, force)
 CROSS JOIN LATERAL pljobs.cancel_jobs(task => :'t', abort => v.abort, delete_job => v.delete_job, force => v.force) AS c
  JOIN scene AS s ON s.id = c.job_id GROUP BY flags, word;
SELECT is(count(*), 4::bigint, 'dry_run => null only shows, too') FROM pljobs.cancel_jobs_v1(task => :'t', dry_run => NULL) AS c WHERE c.outcome IN ('would_cancel', 'running');
SELECT set_eq('SELECT j.id, j.status, j.request_id FROM pljobs.job AS j JOIN scene AS s ON s.id = j.id', 'SELECT id, status, request_id FROM before_it', 'what is only shown is not changed');

-- For real.
SELECT bag_eq(format('SELECT s.what, c.queue_name = j.queue, c.task_name, c.status_before, c.outcome FROM pljobs.cancel_jobs(task => %1$L, reason => ''why'', actor => ''whom'', dry_run => false) AS c JOIN scene AS s ON s.id = c.job_id JOIN pljobs.job AS j ON j.id = s.id', :'t'),
              format($$VALUES ('waiting', true, %1$L, 'todo', 'cancelled'), ('scheduled', true, %1$L, 'todo', 'cancelled'), ('running', true, %1$L, 'doing', 'running'), ('aborting', true, %1$L, 'doing', 'running')$$, :'t'),
              'waiting jobs are cancelled, running ones left alone');
SELECT results_eq($$SELECT j.status, j.waiting_for, j.message, j.finished_at IS NOT NULL FROM pljobs.job AS j JOIN scene AS s ON s.id = j.id WHERE s.what IN ('waiting', 'scheduled')$$,
                  $$VALUES ('cancelled', NULL::text, 'why', true), ('cancelled', NULL, 'why', true)$$, 'they are as cancel_job leaves them');
SELECT results_eq($$SELECT r.kind, r.resolution, r.reason, r.actor, r.requested_by = session_user, r.queue, r.task, r.run_id FROM pljobs.request AS r JOIN scene AS s ON s.id = r.job_id WHERE s.what = 'scheduled'$$,
                  format($$SELECT 'cancel', 'cancelled', 'why', 'whom', true, j.queue, %L, NULL::bigint FROM pljobs.job AS j JOIN scene AS s ON s.id = j.id WHERE s.what = 'scheduled'$$, :'t'), 'with who, for whom and why for each');
SELECT bag_eq(format('SELECT s.what, c.outcome FROM pljobs.cancel_jobs_v1(task => %L, abort => true, dry_run => false) AS c JOIN scene AS s ON s.id = c.job_id', :'t'),
              $$VALUES ('running', 'abort_requested'), ('aborting', 'abort_already_requested')$$, 'with abort the running ones are asked to stop; again: only those that are still there');
SELECT bag_eq(format('SELECT s.what, c.outcome FROM pljobs.cancel_jobs_v1(task => %L, force => true, dry_run => false) AS c JOIN scene AS s ON s.id = c.job_id', :'t'),
              $$VALUES ('running', 'aborted'), ('aborting', 'aborted')$$, 'by force they are ended');
SELECT is_empty(format('SELECT FROM pljobs.cancel_jobs(task => %L, force => true, dry_run => false)', :'t'), 'nothing is left to be stopped');
SELECT bag_eq('SELECT s.what, j.status FROM pljobs.job AS j JOIN scene AS s ON s.id = j.id WHERE s.what IN (''succeeded'', ''failed'')', $$VALUES ('succeeded', 'succeeded'), ('failed', 'failed')$$, 'finished jobs are never touched');

SELECT a_name('task') AS t \gset
SELECT set_scene(:'t') \g /dev/null
SELECT bag_eq(format('SELECT s.what, c.outcome FROM pljobs.cancel_jobs(task => %L, status => ''doing'', abort => true, delete_job => true, dry_run => false) AS c JOIN scene AS s ON s.id = c.job_id', :'t'),
              $$VALUES ('running', 'abort_requested'), ('aborting', 'abort_already_requested')$$, 'only the running ones');
SELECT bag_eq(format('SELECT s.what, c.outcome FROM pljobs.cancel_jobs(task => %L, status => ''todo'', abort => true, delete_job => true, dry_run => false) AS c JOIN scene AS s ON s.id = c.job_id', :'t'),
              $$VALUES ('waiting', 'deleted'), ('scheduled', 'deleted')$$, 'only the waiting ones; deleted');
SELECT bag_eq('SELECT s.what FROM scene AS s WHERE NOT EXISTS (SELECT FROM pljobs.job AS j WHERE j.id = s.id)', $$VALUES ('waiting'), ('scheduled')$$, 'they are gone');
SELECT is(count(*), 2::bigint, 'what asked for it stays') FROM pljobs.request AS r JOIN scene AS s ON s.id = r.job_id WHERE r.kind = 'cancel' AND r.resolution = 'deleted' AND r.delete_job;

-- As cancel_job does: what is left behind is the same, whether one by one or many at once.
SELECT a_todo_job() AS one, a_todo_job() AS two \gset
SELECT start_job(:one) AS run_one, start_job(:two) AS run_two \gset
SELECT finish_run(:one, :run_one, 'failed', '{"retry_at": "2001-01-01T00:00:00Z", "error": "e", "message": "m"}'), finish_run(:two, :run_two, 'failed', '{"retry_at": "2001-01-01T00:00:00Z", "error": "e", "message": "m"}') \g /dev/null
SELECT pljobs.cancel_job(:one, reason => repeat('r', 2000), actor => repeat('a', 2000)) \g /dev/null
SELECT pljobs.cancel_jobs_v1(ARRAY[:two]::bigint[], reason => repeat('r', 2000), actor => repeat('a', 2000), dry_run => false) \g /dev/null
SELECT is(to_jsonb(one) - '{id,queue,last_run_id,worker_id,created_at,finished_at,scheduled_at}'::text[], to_jsonb(two) - '{id,queue,last_run_id,worker_id,created_at,finished_at,scheduled_at}'::text[], 'the row is as cancel_job leaves it')
  FROM pljobs.job AS one, pljobs.job AS two WHERE one.id = :one AND two.id = :two;
SELECT is(to_jsonb(one) - '{id,job_id,queue,requested_at,resolved_at}'::text[], to_jsonb(two) - '{id,job_id,queue,requested_at,resolved_at}'::text[], 'and so is the request')
  FROM pljobs.request AS one, pljobs.request AS two WHERE one.job_id = :one AND two.job_id = :two;

-- Lanes.
SELECT * FROM a_lane(3) \gset
SELECT (:'ids'::bigint[])[1] AS first, (:'ids'::bigint[])[2] AS second, (:'ids'::bigint[])[3] AS third \gset
SELECT start_job(:first) \g /dev/null
SELECT fetch_ids(:'queue', 3) \g /dev/null
SELECT is(wait_of(:second), 'lock', 'a lane waits');
SELECT outcome FROM pljobs.cancel_jobs(ARRAY[:first, :second]::bigint[], force => true, dry_run => false) \g /dev/null
SELECT is(ARRAY[status_of(:first), status_of(:second), wait_of(:third)], '{aborted,cancelled,ready}', 'when the jobs before it are cancelled, the next of a lane is woken');

-- How many.
SELECT a_name('queue') AS q \gset
SELECT pljobs.defer_jobs_v1((SELECT jsonb_agg(jsonb_build_object('task', 't', 'queue', :'q')) FROM generate_series(1, 5))) AS ids \gset
SELECT is(ARRAY(SELECT c.job_id FROM pljobs.cancel_jobs(queue => :'q', max_jobs => 2, dry_run => false) AS c), (:'ids'::bigint[])[1:2], 'at most so many, the lowest ids');
SELECT is(ARRAY(SELECT c.job_id FROM pljobs.cancel_jobs(queue => :'q', max_jobs => 2, after_id => (:'ids'::bigint[])[3], dry_run => false) AS c), (:'ids'::bigint[])[4:5], 'from behind an id');
SELECT throws_ok('SELECT pljobs.cancel_jobs(queue => ''q'', dry_run => false, ' || a || ')', 'PJ004', NULL, 'refused: ' || a)
  FROM unnest('{"status => ''failed''","status => ''''","max_jobs => 0","max_jobs => NULL","older_than => ''-1 s''"}'::text[]) AS a;
SELECT throws_ok('SELECT pljobs.cancel_jobs(' || a || ')', 'PJ004', NULL, 'no filter: ' || a)
  FROM unnest('{"","dry_run => false","dry_run => false, status => ''todo''","dry_run => false, args => ''{}'', older_than => ''0''"}'::text[]) AS a;

-- Of one parent, with a deadline.
SELECT a_todo_job() AS parent \gset
SELECT a_child_of(:parent) AS child, a_child_of(:parent) AS other \gset
SELECT a_child_of(:child) AS grandchild, start_job(:other) \gset
SELECT bag_eq(format('SELECT job_id, outcome FROM pljobs.cancel_jobs(parent_id => %s, abort => true, grace => ''100 s'', term_grace => ''20 s'', sql => true, dry_run => false)', :parent), format($$VALUES (%s::bigint, 'cancelled'), (%s, 'abort_requested')$$, :child, :other), 'those that one job deferred itself');
SELECT is(ARRAY[status_of(:parent), status_of(:grandchild)], '{todo,todo}', 'not the job itself, nor those below');
SELECT results_eq(format('SELECT source, term_at - requested_at BETWEEN interval ''96 s'' AND interval ''100 s'', kill_at - requested_at BETWEEN interval ''116 s'' AND interval ''120 s'', sql_at <= clock_timestamp(), sql_way FROM pljobs.request WHERE job_id = %s AND kind = ''abort''', :other), $$VALUES ('user', true, true, true, 'none')$$, 'with their deadline');
SELECT throws_ok('SELECT pljobs.cancel_jobs(queue => ''q'', ' || a || ')', 'PJ004', NULL, 'refused: ' || a) FROM unnest('{"grace => ''-1 s''","term_grace => ''1 s''","grace => ''1 s'', term_grace => ''-1 s'', dry_run => false"}'::text[]) AS a;
SELECT isnt(a_child_of(:child), NULL, 'whose children are cancelled may defer others: its tree is not closed');

-- Whose jobs they are.
SELECT a_login('pljobs_producer') AS ann, a_login('pljobs_producer') AS bob, a_login('pljobs_canceller') AS guard, a_login('pljobs_operator') AS ops \gset
SELECT a_name('task') AS mine \gset
SELECT as_login(:'ann', format('SELECT pljobs.defer_job(%L, ''{"secret": "of ann"}'')', :'mine')) AS anns, as_login(:'bob', format('SELECT pljobs.defer_job(%L, ''{"secret": "of bob"}'')', :'mine')) AS bobs \gset
CREATE FUNCTION found(login text, more text, dry_run boolean DEFAULT true) RETURNS bigint[] LANGUAGE sql VOLATILE
RETURN as_login(login, format('SELECT array_agg(c.job_id ORDER BY c.job_id) FROM pljobs.cancel_jobs_v1(%s, dry_run => %L) AS c', more, dry_run))::bigint[];
SELECT is(found(:'bob', format('task => %L', :'mine')), ARRAY[:bobs]::bigint[], 'a producer finds its own, whatever it asks by: a task');
SELECT is(found(:'bob', format('job_ids => ''{%s,%s}''', :anns, :bobs)), ARRAY[:bobs]::bigint[], 'ids');
SELECT is(found(:'bob', format('task => %L, args => ''{"secret": "of ann"}''', :'mine')), NULL, 'arguments');
SELECT is(found(who, format('task => %L', :'mine')), ARRAY[:anns, :bobs]::bigint[], 'anybody''s: ' || what) FROM (VALUES (:'guard', 'a canceller'), (:'ops', 'an operator')) AS w(who, what);
SELECT is(found(:'guard', format('task => %L, args => ''{"secret": "of ann"}''', :'mine')), NULL, 'a canceller, who may not see arguments, does not find them out by a filter');
SELECT is(found(:'guard', format('task => %L, args => ''{"secret": "of ann"}''', :'mine'), false), NULL, 'nor by cancelling');
SELECT is(status_of(:anns), 'todo', 'nothing was cancelled so');
SELECT is(found(:'ops', format('task => %L, args => ''{"secret": "of ann"}''', :'mine')), ARRAY[:anns]::bigint[], 'an operator sees them');
SELECT is(found(:'bob', format('task => %L', :'mine'), false), ARRAY[:bobs]::bigint[], 'a producer cancels its own');
SELECT is(status_of(:anns), 'todo', 'and leaves the others''');
SELECT a_login('pljobs_canceller', 'pljobs_producer') AS both \gset
SELECT as_login(:'both', format('SELECT pljobs.defer_job(%L, ''{"secret": "of both"}'')', :'mine')) AS its \gset
SELECT is(found(:'both', format('task => %L, args => ''{}''', :'mine')), ARRAY[:its]::bigint[], 'a canceller who is a producer finds its own by arguments');

SELECT * FROM finish();
ROLLBACK;

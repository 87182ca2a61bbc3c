-- That what changed while it was being locked is left alone: races/cancel_jobs.spec.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT a_name('queue') AS q, a_name('task') AS t, a_name('lane') AS l \gset
SELECT a_todo_job(queue => :'q', task => :'t') AS one \gset
SELECT a_todo_job(:'l', queue => :'q', task => :'t') AS two \gset
SELECT pljobs.defer_job(:'t', '{"to": "ann", "tags": [1, 2], "a": {"b": null}}', queue => :'q', scheduled_at => clock_timestamp() + interval '1 day') AS three \gset
SELECT a_finished_job('failed') AS four \gset
UPDATE pljobs.job SET created_at = created_at - interval '1 h' WHERE id = :two;
UPDATE pljobs.job SET lock = :'l' WHERE id = :four;

CREATE FUNCTION matching(
    job_ids bigint[] DEFAULT NULL, queue text DEFAULT NULL, task text DEFAULT NULL, statuses text[] DEFAULT '{todo,doing}', lock text DEFAULT NULL,
    args jsonb DEFAULT NULL, older_than interval DEFAULT NULL, parent_id bigint DEFAULT NULL, after_id bigint DEFAULT NULL, max_jobs integer DEFAULT 100,
    own_roles text[] DEFAULT NULL
) RETURNS bigint[]
LANGUAGE sql
RETURN pljobs._matching_own_jobs(job_ids, queue, task, statuses, lock, args, older_than, parent_id, after_id, max_jobs, own_roles);

SELECT is(matching(queue => :'q'), ARRAY[:one, :two, :three]::bigint[], 'all of a queue, whatever they wait for, by ascending id');
SELECT is(matching(task => :'t'), ARRAY[:one, :two, :three]::bigint[], 'all of a task');
SELECT is(matching(lock => :'l'), ARRAY[:two]::bigint[], 'all of a lane that have one of the statuses');
SELECT is(matching(lock => :'l', statuses => '{failed,todo}'), ARRAY[:two, :four]::bigint[], 'statuses');
SELECT is(matching(ARRAY[:three, :one, -1, NULL, :three]::bigint[]), ARRAY[:one, :three]::bigint[], 'by id: unknown and repeated ones are no matter');
SELECT is(matching(ARRAY[:one, :two]::bigint[], lock => :'l'), ARRAY[:two]::bigint[], 'all that is given must hold');
SELECT is(matching('{}'), '{}'::bigint[], 'no ids are none, not all');
SELECT is(matching('{}', queue => :'q'), '{}'::bigint[], 'also beside another filter');
SELECT is(matching(queue => :'q', args => a), ARRAY[:three]::bigint[], 'contained: ' || a::text) FROM unnest('{"{\"to\": \"ann\"}","{\"tags\": [2]}","{\"a\": {}, \"tags\": []}","{\"a\": {\"b\": null}}"}'::jsonb[]) AS a;
SELECT is(matching(queue => :'q', args => a), '{}'::bigint[], 'not contained: ' || a::text) FROM unnest('{"{\"to\": \"bob\"}","{\"tags\": [3]}","{\"b\": null}","[]","\"ann\"","null"}'::jsonb[]) AS a;
SELECT is(matching(queue => :'q', args => '{}'), ARRAY[:one, :two, :three]::bigint[], 'an empty object is contained in all arguments');
SELECT is(matching(queue => :'q', older_than => '30 min'), ARRAY[:two]::bigint[], 'older than');
SELECT is(matching(queue => :'q', older_than => '0'), ARRAY[:one, :two, :three]::bigint[], 'older than nothing: all');
SELECT is(matching(queue => :'q', older_than => '2 h'), '{}'::bigint[], 'not that old');
SELECT is(matching(queue => :'q', max_jobs => 2), ARRAY[:one, :two]::bigint[], 'at most so many, the lowest ids');
SELECT is(matching(queue => :'q', max_jobs => 2, after_id => :two), ARRAY[:three]::bigint[], 'from behind an id');
SELECT a_child_of(:one, queue => :'q') AS child, a_child_of(:one) AS other_child, a_child_of(:two) AS nephew \gset
SELECT is(matching(parent_id => :one), ARRAY[:child, :other_child]::bigint[], 'all that one job deferred itself');
SELECT is(matching(parent_id => :one, queue => :'q'), ARRAY[:child]::bigint[], 'of those, all of a queue');
SELECT is(matching(parent_id => p), '{}'::bigint[], 'no children of ' || p) FROM unnest('{-1,0,9223372036854775807}'::bigint[]) AS p;
SELECT is(matching(queue => 'no such queue; -- ' || chr(8238)), '{}'::bigint[], 'names are only text');

SELECT is(matching(queue => :'q', own_roles => ARRAY[r]), CASE WHEN r = session_user THEN ARRAY[:one, :two, :three, :child]::bigint[] ELSE '{}' END, 'deferred by one of these: ' || r)
  FROM unnest(ARRAY[session_user::text, 'somebody else', '']) AS r;
SELECT is(matching(queue => :'q', own_roles => '{}'), '{}'::bigint[], 'by nobody');
SELECT throws_ok('SELECT matching(' || a || ')', 'PJ004', NULL, 'no filter: ' || a)
  FROM unnest('{"","args => ''{}''","older_than => ''0''","args => ''{}'', older_than => ''0 days''","statuses => ''{todo}''","after_id => 1"}'::text[]) AS a;
SELECT throws_ok('SELECT matching(queue => ''q'', ' || a || ')', 'PJ004', NULL, 'refused: ' || a)
  FROM unnest('{"max_jobs => 0","max_jobs => -1","max_jobs => NULL","older_than => ''-1 s''"}'::text[]) AS a;
SELECT is(matching(older_than => '100000000 years'), '{}', 'a time before all time');

SELECT results_eq(format('SELECT matching, others FROM pljobs._lock_matching_own_jobs(ARRAY[%s, -1, %s, %s]::bigint[], NULL, NULL, ''{todo}'', %L, NULL, NULL, NULL, NULL)', :three, :two, :four, :'l'),
                  format('SELECT ARRAY[%s]::bigint[], ARRAY[-1, %s, %s]::bigint[]', :two, :three, :four), 'what was locked and matches, and the others');
SELECT results_eq('SELECT matching, others FROM pljobs._lock_matching_own_jobs(''{}'', NULL, NULL, ''{todo}'', NULL, NULL, NULL, NULL, NULL)', 'SELECT ''{}''::bigint[], ''{}''::bigint[]', 'nothing to lock');
SELECT is(pljobs._matching_jobs(NULL, :'q', NULL, '{todo}', NULL, NULL, NULL, NULL, :one, 1), ARRAY[:two]::bigint[], 'as 0.1.0 asks');
SELECT results_eq(format('SELECT matching, others FROM pljobs._lock_matching_jobs(ARRAY[%s, %s]::bigint[], NULL, NULL, ''{todo}'', %L, NULL, NULL, NULL)', :three, :two, :'l'),
                  format('SELECT ARRAY[%s]::bigint[], ARRAY[%s]::bigint[]', :two, :three), 'as 0.1.0 asks');
SELECT set_eq(format('SELECT job_id, status_before, outcome FROM pljobs._changed_jobs(ARRAY[-1, %s]::bigint[])', :four), format($$VALUES (-1::bigint, NULL::text, 'not_found'), (%s, 'failed', 'changed')$$, :four), 'what is told of them');

SELECT * FROM finish();
ROLLBACK;

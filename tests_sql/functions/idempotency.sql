-- defer_jobs_v2, and how long a key holds. Two at once: races/idempotency.spec.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

CREATE FUNCTION once(key text, task text DEFAULT 'pay', args jsonb DEFAULT '{"order": 1}') RETURNS TABLE (job_id bigint, is_new boolean)
LANGUAGE sql AS $$
SELECT d.job_id, d.is_new FROM pljobs.defer_jobs_v2(jsonb_build_array(jsonb_build_object('task', once.task, 'args', once.args, 'idempotency_key', once.key))) AS d;
$$;
SELECT a_name('key') AS k, a_name('key') AS other \gset

SELECT job_id, is_new FROM once(:'k') \gset first_
SELECT is(:'first_is_new'::boolean, true, 'the first under a key is deferred');
SELECT results_eq(format('SELECT * FROM once(%L)', :'k'), format('VALUES (%s::bigint, false)', :first_job_id), 'who comes again is answered the same job');
SELECT results_eq(format('SELECT * FROM once(%L, args => ''{"order":1}'')', :'k'), format('VALUES (%s::bigint, false)', :first_job_id), 'however its arguments are written');
SELECT is(count(*), 1::bigint, 'and nothing else is deferred') FROM pljobs.job AS j WHERE j.task = 'pay' AND j.id >= :first_job_id;
SELECT isnt((SELECT o.job_id FROM once(:'other') AS o), :first_job_id::bigint, 'another key is another job');
SELECT is(pljobs.defer_job('pay', '{"order": 1}', idempotency_key => :'k'), :first_job_id::bigint, 'people may give a key too');
SELECT throws_ok(format('SELECT once(%L, %L)', :'k', 'other task'), 'PJ012', NULL, 'a key stands for one task');
SELECT throws_ok(format('SELECT once(%L, args => ''{"order": 2}'')', :'k'), 'PJ012', NULL, 'and for its arguments');
SELECT pljobs.cancel_job(:first_job_id, delete_job => true) \g /dev/null
SELECT results_eq(format('SELECT * FROM once(%L)', :'k'), format('VALUES (%s::bigint, false)', :first_job_id), 'a key outlives its job');

SELECT throws_ok(format('SELECT once(%L)', x), 'PJ002', NULL, 'refused: a key of ' || char_length(x) || ' characters') FROM unnest(ARRAY['', repeat('k', 256)]) AS x;
SELECT throws_ok($$SELECT pljobs.defer_jobs_v2('[{"task": "t"}, {"task": "t", "idempotency_key": 1}]')$$, 'PJ002', NULL, 'refused: a key that is a number');
SELECT throws_ok($$SELECT pljobs.defer_jobs_v2('[{"idempotency_key": "k"}]')$$, 'PJ002', NULL, 'refused: no task');
SELECT throws_ok(format('SELECT pljobs.defer_jobs_v2(%L)', x), 'PJ002', NULL, 'refused as by defer_jobs_v1: ' || coalesce(x, 'null')) FROM unnest('{"{}","1",NULL,"[1]"}'::text[]) AS x;
SELECT lives_ok(format('SELECT once(%L)', x), 'a key is only text: ' || x) FROM unnest(ARRAY['''; DROP TABLE pljobs.job; --', repeat('k', 255), chr(8238), ' ', 'null']) AS x;

SELECT a_name('batch') AS b \gset
SELECT pljobs.defer_jobs_v2(jsonb_build_array(jsonb_build_object('task', 't', 'idempotency_key', :'b' || '1'))) \g /dev/null
-- In two statements: a query does not see the rows that a function in it makes.
CREATE TABLE answer (ord bigint, job_id bigint, is_new boolean);
CREATE FUNCTION answered(jobs jsonb) RETURNS void LANGUAGE sql AS $$
DELETE FROM answer;
INSERT INTO answer SELECT d.ord, d.job_id, d.is_new FROM pljobs.defer_jobs_v2(answered.jobs) WITH ORDINALITY AS d(job_id, is_new, ord);
$$;
CREATE VIEW told AS SELECT a.ord, a.is_new, j.task FROM answer AS a JOIN pljobs.job AS j ON j.id = a.job_id;
SELECT answered(jsonb_build_array(jsonb_build_object('task', 'free'), jsonb_build_object('task', 't', 'idempotency_key', :'b' || '1'),
                                  jsonb_build_object('task', 'u', 'idempotency_key', :'b' || '2'), jsonb_build_object('task', 'u', 'idempotency_key', :'b' || '2'),
                                  jsonb_build_object('task', 'null key', 'idempotency_key', NULL))) \g /dev/null
SELECT results_eq('SELECT is_new, task FROM told ORDER BY ord', $$VALUES (true, 'free'), (false, 't'), (true, 'u'), (false, 'u'), (true, 'null key')$$, 'a batch may hold all kinds, one key twice, too');
SELECT answered('[{"task": "a"}, {"task": "b"}, {"task": "c"}]') \g /dev/null
SELECT is(ARRAY(SELECT t.task FROM told AS t ORDER BY t.ord), '{a,b,c}', 'answers come in the order given, without any key');
SELECT answered(jsonb_build_array(jsonb_build_object('task', 'z', 'idempotency_key', :'b' || 'z'), jsonb_build_object('task', 'y'), jsonb_build_object('task', 'x', 'idempotency_key', :'b' || 'a'))) \g /dev/null
SELECT is(ARRAY(SELECT t.task FROM told AS t ORDER BY t.ord), '{z,y,x}', 'and with keys');
SELECT is_empty($$SELECT * FROM pljobs.defer_jobs_v2('[]')$$, 'nothing is deferred of nothing');
SELECT is_empty('SELECT key FROM pljobs.idempotency WHERE job_id IS NULL', 'each key knows its job');

-- What is refused takes its key with it.
SELECT a_name('lock') AS q \gset
SELECT a_todo_job(queueing_lock => :'q') \g /dev/null
SELECT throws_ok(format('SELECT pljobs.defer_jobs_v2(%L)', jsonb_build_array(jsonb_build_object('task', 't', 'queueing_lock', :'q', 'idempotency_key', :'q'))), 'PJ001', NULL, 'a queueing lock is met as ever');
SELECT is_empty(format('SELECT FROM pljobs.idempotency WHERE key = %L', :'q'), 'the key is free after that');

-- Another role's keys are others.
CREATE ROLE pljobs_tests_other;
GRANT pljobs_producer TO pljobs_tests_other;
SET LOCAL ROLE pljobs_tests_other;
SELECT d.is_new AS others FROM pljobs.defer_jobs_v2(jsonb_build_array(jsonb_build_object('task', 'other', 'idempotency_key', :'k'))) AS d \gset
RESET ROLE;
SELECT is(:'others'::boolean, true, 'nobody meets another role''s keys');

UPDATE pljobs.idempotency SET deferred_at = deferred_at - interval '2 h' WHERE key = :'k' AND deferred_by = session_user;
SELECT is(pljobs.prune_history_v1('1 h'), 1::bigint, 'a key is forgotten with the history');
SELECT is((SELECT o.is_new FROM once(:'k') AS o), true, 'and free again');

SELECT throws_ok(format('SELECT pljobs.defer_jobs_v2(%L)', j), 'PJ002', NULL, 'no array: ' || j) FROM unnest(ARRAY['{"task": "k", "idempotency_key": "x"}', '"idempotency_key"', 'null']) AS j;

SELECT * FROM finish();
ROLLBACK;

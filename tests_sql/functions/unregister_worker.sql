BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT a_worker() AS w \gset
SELECT is(pljobs.unregister_worker_v1(:w), 'unregistered', 'a registered worker stops');
SELECT ok(w.stopped_at BETWEEN now() AND clock_timestamp(), 'when it stopped is kept') FROM pljobs.worker AS w WHERE w.id = :w;
SELECT is(pljobs.unregister_worker_v1(:w), 'not_found', 'a stopped worker is not registered');
SELECT is(pljobs.unregister_worker_v1(x), 'not_found', 'unknown: ' || coalesce(x::text, 'null')) FROM unnest('{-1,0,9223372036854775807,NULL}'::bigint[]) AS x;
SELECT throws_ok(format('SELECT pljobs.fetch_jobs_v1(%s)', :w), 'PJ003', NULL, 'a stopped worker fetches nothing');
SELECT throws_ok(format('SELECT pljobs.heartbeat_v1(%s)', :w), 'PJ003', NULL, 'a stopped worker has no heartbeat');

SELECT take_turns() \g /dev/null
SELECT * FROM a_doing_job() \gset
SELECT pljobs.unregister_worker_v1(:worker_id) \g /dev/null
SELECT is(status_of(:job_id), 'doing', 'stopping changes no job');
SELECT is(r.outcome, 'todo', 'what a stopped worker still held is rescued') FROM pljobs.rescue_jobs_v1() AS r WHERE r.job_id = :job_id;

-- Limited to queues.
SELECT a_login('pljobs_worker') AS ann, a_login('pljobs_worker') AS bob \gset
SELECT pljobs.limit_queues(:'ann', 'fetch', '{mail}') \g /dev/null
SELECT as_login(:'ann', 'SELECT pljobs.register_worker_v2(''w'', ''h'', 1, 2)') AS anns, as_login(:'bob', 'SELECT pljobs.register_worker_v2(''w'', ''h'', 1, 2)') AS bobs \gset
SELECT is(as_login(:'ann', format('SELECT pljobs.unregister_worker_v1(%s)', :bobs)), 'not_found', 'a role that is limited stops no other''s worker');
SELECT is(as_login(:'ann', format('SELECT pljobs.unregister_worker_v1(%s)', :anns)), 'unregistered', 'its own it does');
SELECT is(as_login(:'bob', format('SELECT pljobs.unregister_worker_v1(%s)', :bobs)), 'unregistered', 'who is not limited as before');

SELECT * FROM finish();
ROLLBACK;

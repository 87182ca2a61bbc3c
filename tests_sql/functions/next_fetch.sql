BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

-- All that is scheduled by now is far away.
UPDATE pljobs.job SET scheduled_at = clock_timestamp() + interval '100 years' WHERE waiting_for = 'schedule';
SELECT a_worker() AS worker, a_name('queue') AS q \gset
SELECT a_todo_job() \g /dev/null
SELECT ok(coalesce(pljobs.next_fetch_v1(:worker) > interval '90 years', true), 'what can run now is nothing to wait for');
SELECT a_todo_job(scheduled_at => clock_timestamp() + interval '2 h', queue => :'q', task => 'late') AS late \gset
SELECT a_todo_job(scheduled_at => clock_timestamp() + interval '1 h', task => 'early') AS early \gset
SELECT ok(pljobs.next_fetch_v1(:worker) BETWEEN interval '59 min' AND interval '1 h', 'the first scheduled job counts');
SELECT ok(pljobs.next_fetch_v1(:worker, ARRAY[:'q']) BETWEEN interval '119 min' AND interval '2 h', 'of the queues');
SELECT ok(pljobs.next_fetch_v1(:worker, NULL, '{other,late}') BETWEEN interval '119 min' AND interval '2 h', 'and tasks');
SELECT ok(coalesce(pljobs.next_fetch_v1(:worker, ARRAY[:'q'], '{early}') > interval '90 years', true), 'both must be right');
SELECT ok(coalesce(pljobs.next_fetch_v1(:worker, '{}') > interval '90 years', true), 'no queues, nothing');
SELECT is(pljobs.next_fetch_v1(NULL), NULL, 'nobody gets nothing');
SELECT is(pljobs.next_fetch_v1(-1), NULL, 'nor does who is not registered');
SELECT count(a_todo_job(scheduled_at => clock_timestamp() + interval '30 min' + n * interval '1 s', task => 'other')) FROM generate_series(1, 100) AS n \g /dev/null
SELECT ok(pljobs.next_fetch_v1(:worker, ARRAY[:'q']) BETWEEN interval '30 min' AND interval '32 min', 'where the next hundred are others'', after those');
SELECT a_worker() AS stopped \gset
SELECT pljobs.unregister_worker_v1(:stopped) \g /dev/null
SELECT is(pljobs.next_fetch_v1(:stopped), NULL, 'a worker that has stopped gets nothing');
UPDATE pljobs.job SET scheduled_at = scheduled_at - interval '90 min' WHERE waiting_for = 'schedule' AND task IN ('early', 'late', 'other');
SELECT look_at_all() \g /dev/null
SELECT ok(pljobs.next_fetch_v1(:worker) < interval '0', 'what is due already is now');
UPDATE pljobs.job SET waiting_for = NULL WHERE waiting_for = 'schedule';
SELECT is(pljobs.next_fetch_v1(:worker), NULL, 'where nothing is scheduled nothing is known');

-- A rate that is used up.
SELECT a_name('queue') AS q, a_name('task') AS t \gset
SELECT a_todo_job(queue => :'q', task => :'t'), a_todo_job(queue => :'q', task => :'t'), pljobs.throttle_queue(:'q', rate => 2, period => '1 h', burst => 1) \g /dev/null
SELECT is(pljobs.next_fetch_v1(:worker, ARRAY[:'q']), NULL, 'a rate that is not used says nothing');
SELECT count(*) FROM pljobs.fetch_jobs_v1(:worker, 2, ARRAY[:'q']) \g /dev/null
SELECT ok(pljobs.next_fetch_v1(:worker, ARRAY[:'q']) BETWEEN interval '29 min' AND interval '30 min', 'one that is used up says when the next may start');
SELECT is(pljobs.next_fetch_v1(:worker, ARRAY['another']), NULL, 'but to others');
SELECT is(pljobs.next_fetch_v1(:stopped, ARRAY[:'q']), NULL, 'not to a worker that has stopped');
SELECT is(pljobs.next_fetch_v1(-1, ARRAY[:'q']), NULL, 'nor to one that is not registered');
SELECT a_todo_job(queue => :'q', task => :'t', scheduled_at => clock_timestamp() + interval '10 min') \g /dev/null
SELECT ok(pljobs.next_fetch_v1(:worker, ARRAY[:'q']) < interval '10 min', 'whichever comes first');
SELECT pljobs.throttle_task(:'t', rate => 12, period => '1 h', burst => 1), pljobs.throttle_queue(:'q'), a_todo_job(queue => :'q', task => :'t') AS parked \gset
SELECT count(*) FROM pljobs.fetch_jobs_v1(:worker, 2, ARRAY[:'q']) \g /dev/null
SELECT ok(pljobs.next_fetch_v1(:worker, ARRAY[:'q'], ARRAY[:'t']) < interval '5 min', 'a task''s rate, too');
SELECT ok(pljobs.next_fetch_v1(:worker) < interval '5 min', 'in whatever queue its jobs are parked');
SELECT is(pljobs.next_fetch_v1(:worker, ARRAY['another'], ARRAY[:'t']), NULL, 'but where none is');
SELECT pljobs.cancel_job(:parked) \g /dev/null
SELECT ok(pljobs.next_fetch_v1(:worker, ARRAY[:'q']) > interval '5 min', 'nor once none is');

-- A rate says something while jobs wait for it.
SELECT a_name('queue') AS q \gset
SELECT a_todo_job(queue => :'q'), a_todo_job(queue => :'q') AS waits, pljobs.throttle_queue(:'q', rate => 6, period => '3 h', burst => 3) \gset
SELECT count(*) FROM pljobs.fetch_jobs_v1(:worker, 1, ARRAY[:'q']) \g /dev/null
SELECT is(pljobs.next_fetch_v1(:worker, ARRAY[:'q']), NULL, 'one that is not used up says nothing');
UPDATE pljobs.bucket SET full_at = clock_timestamp() + interval '1 h' WHERE name = :'q';
SELECT ok(pljobs.next_fetch_v1(:worker, ARRAY[:'q']) BETWEEN interval '-1 s' AND interval '0', 'one of which the next has just come says now: who asks is late');
UPDATE pljobs.bucket SET full_at = clock_timestamp() + interval '59 min' WHERE name = :'q';
SELECT is(pljobs.next_fetch_v1(:worker, ARRAY[:'q']), NULL, 'not for long');
UPDATE pljobs.bucket SET full_at = clock_timestamp() + interval '70 min' WHERE name = :'q';
SELECT ok(pljobs.next_fetch_v1(:worker) BETWEEN interval '9 min' AND interval '10 min', 'one that is used up tells who fetches from all queues, too');
SELECT pljobs.cancel_job(:waits) \g /dev/null
SELECT is(pljobs.next_fetch_v1(:worker, ARRAY[:'q']), NULL, 'where nothing waits it says nothing');

-- Each key's.
SELECT a_name('queue') AS q \gset
SELECT pljobs.throttle_queue(:'q', rate => 1, period => '1 h', each_key => true),
       pljobs.defer_jobs_v3((SELECT jsonb_agg(jsonb_build_object('task', 't', 'queue', :'q', 'fairness_key', k)) FROM unnest('{a,a,b}'::text[]) AS k)) \g /dev/null
SELECT count(*) FROM pljobs.fetch_jobs_v1(:worker, 3, ARRAY[:'q']) \g /dev/null
UPDATE pljobs.bucket SET full_at = clock_timestamp() + interval '1 min' WHERE name = :'q' AND key = 'b';
SELECT ok(pljobs.next_fetch_v1(:worker, ARRAY[:'q']) BETWEEN interval '59 min' AND interval '1 h', 'of keys that have jobs waiting, and of no others');
SELECT a_todo_job(queue => :'q'), a_todo_job(queue => :'q') \g /dev/null
SELECT count(*) FROM pljobs.fetch_jobs_v1(:worker, 3, ARRAY[:'q']) \g /dev/null
UPDATE pljobs.bucket SET full_at = clock_timestamp() + interval '30 min' WHERE name = :'q' AND key = '';
SELECT ok(pljobs.next_fetch_v1(:worker, ARRAY[:'q']) BETWEEN interval '29 min' AND interval '30 min', 'jobs without a key are one of their own');
SELECT d.job_id AS parked FROM pljobs.defer_jobs_v3(jsonb_build_array(jsonb_build_object('task', 't', 'queue', :'q', 'fairness_key', 'b', 'priority', -1))) AS d \gset
SELECT ok(pljobs.next_fetch_v1(:worker, ARRAY[:'q']) BETWEEN interval '0' AND interval '1 min', 'at whatever priority');
UPDATE pljobs.job SET waiting_for = 'limit' WHERE id = :parked;
SELECT ok(pljobs.next_fetch_v1(:worker, ARRAY[:'q']) BETWEEN interval '0' AND interval '1 min', 'also of those that are parked');

-- What has become due, and was left to others, is told: who asks only now learns of no schedule.
SELECT a_name('queue') AS b, a_name('queue') AS a \gset
SELECT a_todo_job(queue => :'b', scheduled_at => clock_timestamp() + interval '50 years') AS job_id \gset
UPDATE pljobs.job SET scheduled_at = clock_timestamp() - interval '1 s' WHERE id = :job_id;
SELECT look_at_all() \g /dev/null
SELECT count(*) FROM pljobs.fetch_jobs_v1(:worker, 1, ARRAY[:'a']) \g /dev/null
SELECT is((SELECT waiting_for FROM pljobs.job WHERE id = :job_id), NULL, 'a fetch from another queue makes it ready');

SELECT * FROM finish();
ROLLBACK;

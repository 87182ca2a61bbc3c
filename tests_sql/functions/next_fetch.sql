BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

-- Only this session's jobs are known: nothing else is scheduled here.
UPDATE pljobs.job SET scheduled_at = clock_timestamp() + interval '100 years' WHERE waiting_for = 'schedule';
SELECT a_worker() AS worker \gset
SELECT a_todo_job() \g /dev/null
SELECT ok(coalesce(pljobs.next_fetch_v1(:worker) > interval '90 years', true), 'what can run now is nothing to wait for');
SELECT a_todo_job(scheduled_at => clock_timestamp() + interval '2 h') \g /dev/null
SELECT a_todo_job(scheduled_at => clock_timestamp() + interval '1 h') \g /dev/null
SELECT ok(pljobs.next_fetch_v1(:worker) BETWEEN interval '59 min' AND interval '1 h', 'the first scheduled job counts');
SELECT ok(pljobs.next_fetch_v1(:worker, '{elsewhere}', '{other}') > interval '59 min', 'a hint, whatever the queues and tasks');
SELECT ok(pljobs.next_fetch_v1(NULL) > interval '59 min', 'whoever asks');
UPDATE pljobs.job SET scheduled_at = scheduled_at - interval '90 min' WHERE waiting_for = 'schedule';
SELECT ok(pljobs.next_fetch_v1(:worker) < interval '0', 'what is due already is now');
UPDATE pljobs.job SET waiting_for = NULL WHERE waiting_for = 'schedule';
SELECT is(pljobs.next_fetch_v1(:worker), NULL, 'where nothing is scheduled nothing is known');

SELECT * FROM finish();
ROLLBACK;

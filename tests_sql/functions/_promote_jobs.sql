BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT lives_ok('SELECT pljobs._promote_jobs(1)', 'nothing scheduled, nothing done');
SELECT a_scheduled_job() AS later, a_scheduled_job() AS first, a_scheduled_job() AS second \gset
UPDATE pljobs.job SET scheduled_at = clock_timestamp() - interval '2 s' WHERE id = :first;
UPDATE pljobs.job SET scheduled_at = clock_timestamp() - interval '1 s' WHERE id = :second;
SELECT is(pljobs._promote_due_jobs(1), ARRAY[:first]::bigint[], 'what is due is answered');
SELECT results_eq(format('SELECT wait_of(%s), wait_of(%s), wait_of(%s)', :first, :second, :later), $$VALUES ('ready', 'schedule', 'schedule')$$,
                  'of the jobs that are due, at most max_jobs are made ready, the earliest first');
SELECT pljobs._promote_jobs(100) \g /dev/null
SELECT results_eq(format('SELECT wait_of(%s), wait_of(%s)', :second, :later), $$VALUES ('ready', 'schedule')$$,
                  'all that are due are made ready, and none that is not');
SELECT ok(j.scheduled_at IS NOT NULL, 'a job keeps the time for which it was scheduled') FROM pljobs.job AS j WHERE j.id = :first;

SELECT * FROM finish();
ROLLBACK;

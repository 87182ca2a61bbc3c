-- Who holds a job, by sessions that do: races/held.spec.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT throws_ok(format('SELECT pljobs._raise_held(%L)', x), '55P03', what || ' is held locked by another transaction; nothing was changed', what || ': who held it has gone')
  FROM (VALUES (33, 'job 33'), (NULL, 'one of the jobs')) AS v(x, what);

-- How long a person's call waits.
SELECT is(pljobs._wait_briefly() || ' ' || current_setting('lock_timeout'), '0 1s', 'a second, where the caller waits for ever');
SET LOCAL lock_timeout = '5s';
SELECT is(pljobs._wait_briefly() || ' ' || current_setting('lock_timeout'), '5s 5s', 'or as long as the caller says');
SELECT pljobs.cancel_job(-1), (SELECT count(*) FROM pljobs.cancel_jobs(ARRAY[-1])), (SELECT count(*) FROM pljobs.cancel_tree(-1)) \g /dev/null
SELECT is(current_setting('lock_timeout'), '5s', 'as long as before');
SET LOCAL lock_timeout = 0;
SELECT pljobs.cancel_job(-1), (SELECT count(*) FROM pljobs.cancel_jobs(ARRAY[-1])), (SELECT count(*) FROM pljobs.cancel_tree(-1)) \g /dev/null
SELECT is(current_setting('lock_timeout'), '0', 'for ever, as before');

SELECT * FROM finish();
ROLLBACK;

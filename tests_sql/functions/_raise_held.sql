-- Who holds a job, by sessions that do: races/held.spec.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT throws_ok(format('SELECT pljobs._raise_held(%L)', x), '55P03', what || ' is held locked by another transaction; nothing was changed', what || ': who held it has gone')
  FROM (VALUES (33, 'job 33'), (NULL, 'one of the jobs')) AS v(x, what);

SELECT * FROM finish();
ROLLBACK;

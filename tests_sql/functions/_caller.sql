BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT is(pljobs._caller(), session_user::text, 'without SET ROLE the caller is the login');
CREATE ROLE pljobs_tests_caller SUPERUSER;
SET LOCAL ROLE pljobs_tests_caller;
SELECT pljobs._caller() AS caller, pljobs.defer_job('a task') AS job_id \gset
RESET ROLE;
SELECT is(:'caller'::text, 'pljobs_tests_caller', 'after SET ROLE the caller is that role');
SELECT is(j.deferred_by, 'pljobs_tests_caller', 'a function that runs with its owner''s rights still records who called')
  FROM pljobs.job AS j WHERE j.id = :job_id;
SELECT is(pljobs._caller(), session_user::text, 'after RESET ROLE the caller is the login again');

SELECT * FROM finish();
ROLLBACK;

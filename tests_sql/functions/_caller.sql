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

-- What maintenance runs of a table's owner, it runs with the owner's rights, but in a session of somebody else: here a
-- superuser's, as autovacuum is.
SELECT a_login('pljobs_producer') AS victim, a_login('pljobs_producer') AS evil \gset
SELECT as_login(:'victim', 'SELECT pljobs.defer_job(''a task'')') AS job_id, :'test_schema' || '_evil' AS evil_schema \gset
SELECT format('CREATE SCHEMA %I AUTHORIZATION %I', :'evil_schema', :'evil') \gexec
SELECT set_config('tests.evil', :'evil', true), set_config('tests.evil_schema', :'evil_schema', true) \g /dev/null
CREATE FUNCTION maintained(call text) RETURNS text
LANGUAGE plpgsql
AS $$
DECLARE
    v_schema text := current_setting('tests.evil_schema');
BEGIN
    PERFORM do_as(current_setting('tests.evil'), format('CREATE OR REPLACE FUNCTION %I.f(a integer) RETURNS text LANGUAGE plpgsql IMMUTABLE AS ''BEGIN RETURN %s; END''', v_schema, call));
    EXECUTE format('ANALYZE %I.t', v_schema);
    RETURN 'it ran';
EXCEPTION WHEN insufficient_privilege THEN
    RETURN SQLSTATE;
END
$$;
SELECT do_as(:'evil', format('CREATE TABLE %1$I.t AS SELECT 1 AS a FROM generate_series(1, 10); CREATE FUNCTION %1$I.f(a integer) RETURNS text LANGUAGE plpgsql IMMUTABLE AS ''BEGIN RETURN a; END''; CREATE INDEX ON %1$I.t (%1$I.f(a))', :'evil_schema')) \g /dev/null
SELECT is(maintained('upper(current_user)'), 'it ran', 'an index''s function is run by ANALYZE');
SELECT is(maintained(call), '42501', 'in maintenance nobody is taken for the session''s login: ' || call)
  FROM unnest(ARRAY[format('pljobs.cancel_job(%s, force => true)', :job_id), 'pljobs.defer_job(''''a task'''')', format('(SELECT s.status FROM pljobs.get_job_statuses_v1(''''{%s}'''') AS s)', :job_id),
                    format('pljobs.delete_job(%s)', :job_id)]) AS call;
SELECT is(status_of(:job_id), 'todo', 'and nothing has happened');

SELECT * FROM finish();
ROLLBACK;

-- sql/ledger.sql. Against who holds one of them: races/lock_relations.spec.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

CREATE VIEW held AS SELECT c.relname::text FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation
 WHERE l.pid = pg_backend_pid() AND l.mode = 'AccessExclusiveLock' AND c.relnamespace = 'pljobs'::regnamespace AND c.relkind IN ('r', 'v');
CREATE TABLE views AS SELECT c.oid, c.relname::text, pg_get_viewdef(c.oid) AS text, c.reloptions, c.relacl FROM pg_class AS c WHERE c.relnamespace = 'pljobs'::regnamespace AND c.relkind = 'v';
SET LOCAL lock_timeout = '7s';
SELECT pljobs._lock_relations() \g /dev/null
SELECT set_eq('SELECT relname FROM held', 'SELECT relname FROM views', 'all views are locked, and no table');
SELECT pljobs._lock_relations('{worker,job_event}') \g /dev/null
SELECT set_eq('SELECT relname FROM held', 'SELECT relname FROM views UNION VALUES (''worker''), (''job_event'')', 'and the tables that are named');
SELECT is(current_setting('lock_timeout'), '7s', 'how long is waited for others stays as it was');
SELECT results_eq('SELECT pg_get_viewdef(oid), c.reloptions, c.relacl FROM pg_class AS c JOIN views AS v USING (oid) ORDER BY oid', 'SELECT text, reloptions, relacl FROM views ORDER BY oid', 'nothing is changed');
SET LOCAL lock_timeout = 0;
SELECT lives_ok('SELECT pljobs._lock_relations(''{worker,no_such_table}'')', 'without a limit; what does not exist is passed over');
SELECT is(current_setting('lock_timeout'), '0', 'and stays without');

SELECT * FROM finish();
ROLLBACK;

-- What it does: prune_jobs.sql. Against others: races/archive.spec.
BEGIN;
\ir ../lib/fixtures.sql
SELECT take_turns() \g /dev/null
SELECT * FROM no_plan();

SELECT is(pljobs._archive_jobs('{}'), '{}', 'no jobs, nothing to do');
SELECT is(pljobs._has_archive('job_archive_1990_02'), false, 'there is no partition before one is needed');
SELECT is(pljobs._make_archive('1990-02-01 00:00+00'), true, 'then it is made');
SELECT is(pljobs._has_archive('job_archive_1990_02'), true, 'it is there');
SELECT is(pljobs._make_archive('1990-02-01 00:00+00'), true, 'and is not made again');
SELECT lives_ok($$INSERT INTO pljobs.job_archive SELECT (jsonb_populate_record(NULL::pljobs.job_archive, '{"id": 1, "created_at": "1990-01-01", "archived_at": "1990-01-01", "finished_at": "1990-02-28T23:59:59.999999Z", "priority": 0, "attempts": 0,
                    "crashes": 0, "status": "failed", "queue": "q", "task": "t", "deferred_by": "d", "args": {}}')).*$$, 'it takes all of its month');
ALTER TABLE pljobs.job_archive DETACH PARTITION pljobs.job_archive_1990_02;
SELECT is(pljobs._has_archive('job_archive_1990_02'), false, 'what is detached is no partition');
SELECT throws_like($$SELECT pljobs._make_archive('1990-02-01 00:00+00')$$, '%job_archive_1990_02 is in the way%detached%', 'and is in the way of a new one');
SELECT is((SELECT array_agg(conname::text ORDER BY 1) FROM pg_constraint WHERE conrelid = 'pljobs.job_archive_1990_02'::regclass AND contype = 'p'), '{job_archive_1990_02_pkey}', 'its key is named after it');

-- Whatever the session, or the owner's default privileges, would do with new tables.
ALTER DEFAULT PRIVILEGES FOR ROLE pljobs_owner GRANT SELECT, DELETE ON TABLES TO pljobs_reader, PUBLIC;
SET LOCAL default_tablespace = pg_global;
SET LOCAL ROLE pljobs_owner;
SELECT pljobs._make_archive('1990-03-01 00:00+00') AS made \gset
RESET ROLE;
SELECT ok(:'made', 'a partition is made where the archive is');
SELECT is_empty($$SELECT a.grantee, a.privilege_type FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a WHERE c.oid = 'pljobs.job_archive_1990_03'::regclass AND a.grantee <> c.relowner$$, 'and is nobody else''s to read');

SELECT * FROM finish();
ROLLBACK;

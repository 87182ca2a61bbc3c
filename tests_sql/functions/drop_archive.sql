-- Against who holds the archive: races/archive.spec.
BEGIN;
\ir ../lib/fixtures.sql
SELECT take_turns() \g /dev/null
SELECT * FROM no_plan();

CREATE FUNCTION months() RETURNS text[]
LANGUAGE sql VOLATILE
RETURN ARRAY(SELECT c.relname::text FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid WHERE i.inhparent = 'pljobs.job_archive'::regclass ORDER BY 1);

SELECT pljobs.drop_archive('0') \g /dev/null
SELECT is(pljobs.drop_archive('0'), 0, 'there may be nothing to drop');
SELECT a_finished_job('succeeded') AS old, a_finished_job('succeeded') AS older, a_finished_job('succeeded') AS young, date_trunc('month', clock_timestamp(), 'UTC') AS this_month \gset
UPDATE pljobs.job SET finished_at = CASE id WHEN :old THEN '2021-01-31 23:59+00' WHEN :older THEN '2020-01-01 00:00+00' ELSE :'this_month' END::timestamptz WHERE id IN (:old, :older, :young);
SELECT pljobs.prune_jobs('0', archive => true) \g /dev/null
ALTER TABLE pljobs.job_archive DETACH PARTITION pljobs.job_archive_2020_01;
SELECT is(pljobs.drop_archive(clock_timestamp() - '2021-01-31 23:59:59.9+00'::timestamptz), 0, 'a month that was not over then stays');
SELECT is(pljobs.drop_archive(clock_timestamp() - '2021-02-01 00:00+00'::timestamptz), 1, 'one that was is dropped');
SELECT is(to_regclass('pljobs.job_archive_2021_01'), NULL, 'with all that was in it');
SELECT isnt(to_regclass('pljobs.job_archive_2020_01'), NULL, 'what somebody has detached stays');
SELECT is(pljobs.drop_archive('0'), 0, 'so does the month that goes on');
SELECT is(a.id, :young::bigint, 'with its jobs') FROM pljobs.archive AS a WHERE a.id = :young;
ALTER TABLE pljobs.job_archive ATTACH PARTITION pljobs.job_archive_2020_01 FOR VALUES FROM ('2020-01-01 00:00+00') TO ('2020-02-01 00:00+00');
-- As DETACH ... CONCURRENTLY that was cut off leaves it, which no transaction can have.
UPDATE pg_inherits SET inhdetachpending = true WHERE inhrelid = 'pljobs.job_archive_2020_01'::regclass;
SELECT is(pljobs.drop_archive('1 day'), 0, 'what is about to be detached stays, too');
UPDATE pg_inherits SET inhdetachpending = false WHERE inhrelid = 'pljobs.job_archive_2020_01'::regclass;
SELECT is(pljobs.drop_archive('1 day'), 1, 'what is attached again is dropped');
SELECT throws_ok(format('SELECT pljobs.drop_archive(%s)', a), 'PJ004', NULL, 'refused: ' || a) FROM unnest(ARRAY['NULL', '''-1 s''']) AS a;

SELECT * FROM finish();
ROLLBACK;

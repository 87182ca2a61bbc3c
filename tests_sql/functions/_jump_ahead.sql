BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT is(pljobs._timeline(), (SELECT timeline_id FROM pg_control_checkpoint())::bigint, 'the timeline is the server''s');
SELECT is((SELECT last_value FROM pljobs.timeline), pljobs._timeline(), 'an installation knows its timeline');

SELECT a_worker() AS worker \gset
SELECT start_job(a_todo_job(), :worker) AS run \gset
SELECT cmp_ok(start_job(a_todo_job(), :worker), '<', :run + 1000000::bigint, 'from fetch to fetch ids go on');

-- As if this server had been promoted since. Sequences know no transactions: whichever test fetches next may be it.
SELECT setval('pljobs.timeline', 4294967295) \g /dev/null
SELECT a_todo_job() AS before \gset
SELECT start_job(:before, :worker) AS jumped \gset
SELECT cmp_ok(:jumped::bigint, '>', :run + 1000000::bigint, 'the first fetch after a promotion draws no run that may have been drawn');
SELECT cmp_ok(a_todo_job(), '>', :before + 1000000::bigint, 'no more does a defer after it draw such a job');
SELECT cmp_ok(a_worker(), '>', :worker + 1000000::bigint, 'nor a registration such a worker');
SELECT is((SELECT last_value FROM pljobs.timeline), pljobs._timeline(), 'it is noted');
SELECT pljobs._jump_ahead() \g /dev/null
SELECT cmp_ok(start_job(a_todo_job(), :worker), '<', :jumped + 1000000::bigint, 'and done once');

SELECT * FROM finish();
ROLLBACK;

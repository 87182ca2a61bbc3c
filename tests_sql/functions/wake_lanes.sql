BEGIN;
\ir ../lib/fixtures.sql
SELECT take_turns() \g /dev/null
SELECT * FROM no_plan();

SELECT is(pljobs.wake_lanes_v1(), 0::bigint, 'without lanes none is woken');
SELECT ids[1] AS one, ids[2] AS two, lock, queue FROM a_lane(2) \gset
SELECT is(pljobs.wake_lanes_v1(), 0::bigint, 'a lane whose head is ready is awake');
UPDATE pljobs.job SET waiting_for = 'lock' WHERE id IN (:one, :two);
SELECT ids[1] AS busy, ids[2] AS waiting, queue AS busy_queue FROM a_lane(2) \gset
SELECT fetch_ids(:'busy_queue') \g /dev/null
SELECT a_name('lane') AS later_lane \gset
SELECT a_todo_job(:'later_lane', scheduled_at => clock_timestamp() + interval '1 day') AS scheduled, a_todo_job(:'later_lane') AS behind \gset
UPDATE pljobs.job SET waiting_for = 'lock' WHERE id IN (:waiting, :behind);
SELECT is(pljobs.wake_lanes_v1(), 1::bigint, 'of three lanes the one that sleeps is woken');
SELECT results_eq(format('SELECT wait_of(%s), wait_of(%s)', :one, :two), $$VALUES ('ready', 'lock')$$, 'its head is ready');
SELECT is(wait_of(:waiting), 'lock', 'a lane of which a job runs sleeps on');
SELECT results_eq(format('SELECT wait_of(%s), wait_of(%s)', :scheduled, :behind), $$VALUES ('schedule', 'lock')$$, 'a lane whose head is scheduled sleeps on');
SELECT is(pljobs.wake_lanes_v1(), 0::bigint, 'a lane is woken once');

SELECT * FROM finish();
ROLLBACK;

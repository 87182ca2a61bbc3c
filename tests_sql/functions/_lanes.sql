-- Lanes under concurrency: races/lane_*.spec.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

-- _lane_key
SELECT is(pljobs._lane_key('a'), pljobs._lane_key('a'), 'a lane has one key');
SELECT isnt(pljobs._lane_key('a'), pljobs._lane_key('b'), 'two lanes have two keys');
SELECT is(pljobs._lane_key(NULL), NULL, 'no lane, no key');

-- _claim_lanes
SELECT ids[1] AS one, ids[2] AS two, ids[3] AS three, lock, queue FROM a_lane(3) \gset
SELECT a_todo_job() AS free \gset
SELECT is(pljobs._claim_lanes(ARRAY[:two, :free, :one, :three]::bigint[], ARRAY[:'lock', NULL, :'lock', :'lock']), ARRAY[:free, :one]::bigint[],
          'of the candidates those without a lock and the head of a free lane may run, in the order given');
SELECT results_eq(format('SELECT wait_of(%s), wait_of(%s), wait_of(%s), wait_of(%s)', :free, :one, :two, :three),
                  $$VALUES ('ready', 'ready', 'lock', 'lock')$$, 'the other candidates of the lane are parked');
SELECT start_job(:one) AS run_id \gset
SELECT a_todo_job(:'lock', priority => 5) AS urgent \gset
SELECT is(pljobs._claim_lanes(ARRAY[:urgent]::bigint[], ARRAY[:'lock']), '{}', 'a busy lane lets nobody run');
SELECT is(wait_of(:urgent), 'lock', 'a candidate of a busy lane is parked');
SELECT is(pljobs._claim_lanes('{}', '{}'), '{}', 'no candidates, nobody runs');
SELECT is(pljobs._claim_lanes(ARRAY[:free]::bigint[], ARRAY[NULL]::text[]), ARRAY[:free]::bigint[], 'a job without a lock always may');

SELECT ids[1] AS one, ids[2] AS two, lock, queue FROM a_lane(2) \gset
UPDATE pljobs.job SET waiting_for = 'lock' WHERE id = :one;
SELECT is(pljobs._claim_lanes(ARRAY[:two]::bigint[], ARRAY[:'lock']), '{}', 'who is not the head does not run, even if the head sleeps');
SELECT results_eq(format('SELECT wait_of(%s), wait_of(%s)', :one, :two), $$VALUES ('ready', 'lock')$$,
                  'where the head of a free lane is parked, it is woken, and the candidate is parked');

SELECT a_name('lane') AS lock \gset
SELECT a_todo_job(:'lock', scheduled_at => clock_timestamp() + interval '1 day', priority => 1) AS head, a_todo_job(:'lock') AS second \gset
SELECT is(pljobs._claim_lanes(ARRAY[:second]::bigint[], ARRAY[:'lock']), '{}', 'a scheduled head holds its lane');
SELECT results_eq(format('SELECT wait_of(%s), wait_of(%s)', :head, :second), $$VALUES ('schedule', 'lock')$$, 'a scheduled head goes on waiting for its time');

-- _wake_lanes
SELECT ids[1] AS one, ids[2] AS two, ids[3] AS three, lock, queue FROM a_lane(3) \gset
UPDATE pljobs.job SET waiting_for = 'lock' WHERE id IN (:two, :three);
SELECT is(pljobs._wake_lanes(ARRAY[:'lock'], true), 0::bigint, 'a lane whose head is ready is awake');
UPDATE pljobs.job SET waiting_for = 'lock' WHERE id = :one;
SELECT is(pljobs._wake_lanes(ARRAY[:'lock', :'lock', NULL], false), 1::bigint, 'a lane is woken once, however often it is named');
SELECT results_eq(format('SELECT wait_of(%s), wait_of(%s), wait_of(%s)', :one, :two, :three), $$VALUES ('ready', 'lock', 'lock')$$,
                  'of a lane exactly the head is woken');
SELECT ok(NOT EXISTS (SELECT FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory' AND NOT granted), 'nothing is waited for');
SELECT is(pljobs._wake_lanes(NULL, true), 0::bigint, 'no lanes, none woken');
SELECT is(pljobs._wake_lanes('{}', true), 0::bigint, 'an empty list of lanes, none woken');
SELECT is(pljobs._wake_lanes(ARRAY[a_name('lane')], true), 0::bigint, 'a lane without jobs is not woken');
SELECT is(pljobs._wake_lanes(ARRAY[NULL]::text[], true), 0::bigint, 'a null lane is none');

SELECT ids[1] AS one, lock FROM a_lane(1) \gset
UPDATE pljobs.job SET waiting_for = 'lock' WHERE id = :one;
SELECT is(pljobs._wake_lanes(ARRAY[:'lock'], true), 1::bigint, 'with take_lane a parked head is woken as well');
SELECT ok(EXISTS (SELECT FROM pg_locks AS l WHERE l.pid = pg_backend_pid() AND l.locktype = 'advisory'
                     AND l.classid::bigint << 32 | l.objid::bigint = pljobs._lane_key(:'lock')), 'with take_lane the lane is held until the end of the transaction');

SELECT * FROM finish();
ROLLBACK;

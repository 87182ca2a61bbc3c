-- Two rescuers, and aborts that commit meanwhile: races/rescue_*.spec.
BEGIN;
\ir ../lib/fixtures.sql
SELECT take_turns() \g /dev/null
SELECT * FROM no_plan();

CREATE FUNCTION rescue_of(job_id bigint, max_crashes integer DEFAULT 3) RETURNS text
LANGUAGE sql VOLATILE
RETURN (SELECT r.outcome FROM pljobs.rescue_jobs_v1(max_crashes => rescue_of.max_crashes) AS r WHERE r.job_id = rescue_of.job_id);

SELECT * FROM a_doing_job() \gset
SELECT is(rescue_of(:job_id), NULL, 'a job whose worker is alive is not rescued');
SELECT is(status_of(:job_id), 'doing', 'it goes on');
SELECT lose_worker(:worker_id) \g /dev/null
SELECT is(rescue_of(:job_id), 'todo', 'a job whose worker''s lease ran out is rescued');
SELECT results_eq(format('SELECT status, attempts, crashes, run_id, message FROM pljobs.job WHERE id = %s', :job_id),
                  format($$VALUES ('todo', 1, 1, NULL::bigint, 'worker %s was lost')$$, :worker_id), 'a crash is counted');
SELECT results_eq(format('SELECT kind, worker_id, run_id FROM pljobs.job_event WHERE job_id = %s', :job_id), format($$VALUES ('rescued', %s::bigint, %s::bigint)$$, :worker_id, :run_id), 'which worker was lost in which run is kept');
SELECT ok(w.stopped_at IS NOT NULL, 'a lost worker is marked stopped') FROM pljobs.worker AS w WHERE w.id = :worker_id;
SELECT throws_ok(format('SELECT pljobs.heartbeat_v1(%s)', :worker_id), 'PJ003', NULL, 'a lost worker that comes back must register again');
SELECT is(finish_run(:job_id, :run_id, 'succeeded'), 'stale', 'and its end is stale');
SELECT is(rescue_of(:job_id), NULL, 'a rescued job is not rescued again');

SELECT * FROM a_doing_job() \gset
DELETE FROM pljobs.worker WHERE id = :worker_id;
SELECT is(rescue_of(:job_id), 'todo', 'a job whose worker''s row is gone is rescued');
SELECT * FROM a_doing_job() \gset
SELECT pljobs.unregister_worker_v1(:worker_id) \g /dev/null
SELECT is(rescue_of(:job_id), 'todo', 'a job whose worker stopped is rescued');

-- The cap.
SELECT * FROM a_doing_job() \gset
SELECT lose_worker(:worker_id) \g /dev/null
SELECT is(rescue_of(:job_id, 2), 'todo', 'below the cap a lost job runs again');
SELECT a_worker() AS w \gset
SELECT start_job(:job_id, :w), lose_worker(:w) \g /dev/null
SELECT is(rescue_of(:job_id, 2), 'failed', 'at the cap it fails');
SELECT is(j.message, 'worker lost 2 times', 'it says why') FROM pljobs.job AS j WHERE j.id = :job_id;
SELECT pljobs.retry_job(:job_id) \g /dev/null
SELECT start_job(:job_id, a_worker()) AS run_id \gset
SELECT finish_run(:job_id, :run_id, 'failed', '{"retry_at": "2001-01-01T00:00:00Z"}') \g /dev/null
SELECT is(j.crashes, 0, 'crashes are counted from zero once a person has put it back') FROM pljobs.job AS j WHERE j.id = :job_id;

-- Asked to abort.
SELECT * FROM an_aborting_job() \gset
SELECT lose_worker(:worker_id) \g /dev/null
SELECT is(rescue_of(:job_id), 'aborted', 'a lost job that was asked to abort is aborted');
SELECT is(r.resolution, 'worker_lost', 'its request says that the worker was lost') FROM pljobs.request AS r WHERE r.id = :request_id;
SELECT * FROM an_aborting_job(delete_job => true) \gset
SELECT lose_worker(:worker_id) \g /dev/null
SELECT is(rescue_of(:job_id), 'deleted', 'where deletion was asked it is gone');

-- Queueing locks and lanes.
SELECT a_name('queueing lock') AS ql \gset
SELECT * FROM a_doing_job(NULL, :'ql') \gset
SELECT a_todo_job(NULL, :'ql') AS newer, lose_worker(:worker_id) \gset
SELECT is(rescue_of(:job_id), 'todo', 'a newer job of the same queueing lock does not keep a job from being rescued');
SELECT is(j.queueing_lock, NULL, 'it gives up its queueing lock') FROM pljobs.job AS j WHERE j.id = :job_id;
SELECT ids[1] AS one, ids[2] AS two, queue, a_worker() AS w FROM a_lane(2) \gset
SELECT start_job(:one, :w), fetch_ids(:'queue'), pljobs.cancel_job(:one, abort => true), lose_worker(:w) \g /dev/null
SELECT is(rescue_of(:one), 'aborted', 'a lost job that holds a lane is rescued');
SELECT is(wait_of(:two), 'ready', 'the next of its lane is woken');

-- Many, in parts.
SELECT a_worker() AS w, a_name('queue') AS q \gset
SELECT pljobs.defer_jobs_v1((SELECT jsonb_agg(jsonb_build_object('task', 't', 'queue', :'q'::text)) FROM generate_series(1, 5))) AS ids, count(*) FROM generate_series(1, 1) \gset
SELECT count(*) FROM pljobs.fetch_jobs_v1(:w, 5, ARRAY[:'q']) \g /dev/null
SELECT lose_worker(:w) \g /dev/null
SELECT is(count(*) FILTER (WHERE r.job_id = ANY (:'ids'::bigint[])), 2::bigint, 'at most max_jobs are rescued') FROM pljobs.rescue_jobs_v1(2) AS r;
SELECT is(pljobs.rescue_jobs(), 3::bigint, 'the next call rescues the others: people are told how many');
SELECT is(pljobs.rescue_jobs(), 0::bigint, 'where nobody is lost nothing is rescued');
SELECT throws_ok(format('SELECT pljobs.rescue_jobs_v1(%s)', a), 'PJ004', NULL, 'refused: ' || a) FROM unnest(ARRAY['0', '-1', 'NULL', '1, 0', '1, -1', '1, NULL']) AS a;

-- By its timeout alone a run was not asked to be aborted for good: it is rescued as any other.
SELECT * FROM a_timed_out_job() \gset
SELECT lose_worker(:worker_id) \g /dev/null
SELECT set_eq('SELECT job_id, outcome FROM pljobs.rescue_jobs_v1()', format($$VALUES (%s::bigint, 'todo')$$, :job_id), 'a run that was over its timeout runs again');
SELECT results_eq(format('SELECT j.crashes, j.request_id, j.timeout_at, r.resolution FROM pljobs.job AS j JOIN pljobs.request AS r ON r.job_id = j.id WHERE j.id = %s', :job_id), $$VALUES (1, NULL::bigint, NULL::timestamptz, 'worker_lost')$$, 'a crash is counted, its request closed');
SELECT * FROM a_timed_out_job() \gset
SELECT lose_worker(:worker_id) \g /dev/null
SELECT set_eq('SELECT job_id, outcome FROM pljobs.rescue_jobs_v1(max_crashes => 1)', format($$VALUES (%s::bigint, 'failed')$$, :job_id), 'at the cap it fails');
SELECT * FROM a_timed_out_job() \gset
SELECT pljobs.cancel_job(:job_id, abort => true), lose_worker(:worker_id) \g /dev/null
SELECT set_eq('SELECT job_id, outcome FROM pljobs.rescue_jobs_v1()', format($$VALUES (%s::bigint, 'aborted')$$, :job_id), 'one that a person asked as well is aborted');

-- The clock was set back: a lease that a lost worker had taken before would last that much longer.
SELECT * FROM a_doing_job() \gset
UPDATE pljobs.worker AS w SET expires_at = clock_timestamp() + w.lease + interval '10 min' WHERE w.id = :worker_id \g /dev/null
SELECT is_empty(format('SELECT FROM pljobs.rescue_jobs_v1() WHERE job_id = %s', :job_id), 'nothing is rescued early for it');
SELECT ok(w.expires_at BETWEEN clock_timestamp() + interval '1 s' AND clock_timestamp() + w.lease, 'but no lease is longer than what its worker asked for') FROM pljobs.worker AS w WHERE w.id = :worker_id;

SELECT * FROM finish();
ROLLBACK;

BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT a_finished_job('failed') AS job_id \gset
SELECT results_eq(format('SELECT outcome, status FROM pljobs.retry_job_v1(%s, reason => ''why'', actor => ''whom'')', :job_id), $$VALUES ('requeued', 'failed')$$, 'a failed job is put back');
SELECT results_eq(format('SELECT status, waiting_for, attempts, crashes, finished_at, started_at, worker_id FROM pljobs.job WHERE id = %s', :job_id),
                  $$VALUES ('todo', NULL::text, 1, 0, NULL::timestamptz, NULL::timestamptz, NULL::bigint)$$, 'it can run at once; its attempts are counted on');
SELECT results_eq(format('SELECT kind, reason, actor, requested_by = session_user, resolution FROM pljobs.request WHERE job_id = %s', :job_id), $$VALUES ('retry', 'why', 'whom', true, 'requeued')$$, 'who put it back, for whom and why is kept');
SELECT is(pljobs.retry_job(a_finished_job(s)), 'requeued', s || ' is put back') FROM unnest('{failed,cancelled,aborted}'::text[]) AS s;

SELECT a_finished_job('aborted') AS job_id \gset
SELECT pljobs.retry_job(:job_id) \g /dev/null
SELECT start_job(:job_id) AS run_id \gset
SELECT is(j.request_id, NULL, 'a job that was aborted and put back is clean of its former request') FROM pljobs.job AS j WHERE j.id = :job_id;
SELECT is(finish_run(:job_id, :run_id, 'failed', '{"retry_at": "2001-01-01T00:00:00Z"}'), 'todo', 'and may be retried as any other');

SELECT * FROM a_doing_job() \gset
SELECT pljobs._release_job(:job_id, true, 1), pljobs.retry_job(:job_id) \g /dev/null
SELECT is(j.crashes, 0, 'its crashes are forgotten') FROM pljobs.job AS j WHERE j.id = :job_id;
SELECT * FROM a_doing_job() \gset
SELECT finish_run(:job_id, :run_id, 'failed', '{"message": "m", "error": "e"}'), pljobs.retry_job(:job_id) \g /dev/null
SELECT results_eq(format('SELECT j.message, j.error, e.message, e.error, e.kind FROM pljobs.job AS j JOIN pljobs.job_event AS e ON e.job_id = j.id WHERE j.id = %s', :job_id),
                  $$VALUES ('m', 'e', 'm', 'e', 'failed')$$, 'how the attempt before ended stays to be read');

SELECT a_finished_job('failed') AS job_id \gset
SELECT pljobs.retry_job(:job_id, clock_timestamp() + interval '1 h', 'q2', -5, 'l2') \g /dev/null
SELECT results_eq(format('SELECT waiting_for, queue, priority, lock FROM pljobs.job WHERE id = %s', :job_id), $$VALUES ('schedule', 'q2', -5, 'l2')$$, 'a job may be put back for later, in another queue, priority and lane');
SELECT a_finished_job('failed', 'its lane') AS job_id \gset
SELECT pljobs.retry_job(:job_id, '2001-01-01 00:00+00') \g /dev/null
SELECT results_eq(format('SELECT waiting_for, priority, lock FROM pljobs.job WHERE id = %s', :job_id), $$VALUES (NULL::text, 0, 'its lane')$$, 'what is not given stays; a time that has passed means at once');
SELECT a_name('queueing lock') AS ql \gset
SELECT a_finished_job('failed', NULL, :'ql') AS job_id, a_todo_job(NULL, :'ql') AS newer \gset
SELECT is(pljobs.retry_job(:job_id), 'requeued', 'a job whose queueing lock a newer one holds is put back all the same');
SELECT is(j.queueing_lock, NULL, 'without its queueing lock') FROM pljobs.job AS j WHERE j.id = :job_id;

SELECT results_eq(format('SELECT outcome, status FROM pljobs.retry_job_v1(%s)', a_todo_job()), $$VALUES ('todo', 'todo')$$, 'a waiting job is left alone');
SELECT results_eq(format('SELECT outcome, status FROM pljobs.retry_job_v1(%s)', a_finished_job('succeeded')), $$VALUES ('succeeded', 'succeeded')$$, 'a job that succeeded is not run again');
SELECT * FROM an_aborting_job() \gset
SELECT results_eq(format('SELECT outcome, status FROM pljobs.retry_job_v1(%s)', :job_id), $$VALUES ('running', 'doing')$$, 'a running job is left alone');
SELECT is(finish_run(:job_id, :run_id, 'aborted'), 'aborted', 'and its abort goes on');
SELECT results_eq(format('SELECT outcome, status FROM pljobs.retry_job_v1(%L)', x), $$VALUES ('not_found', NULL::text)$$, 'not found: ' || coalesce(x::text, 'null')) FROM unnest('{-1,0,9223372036854775807,NULL}'::bigint[]) AS x;

SELECT a_finished_job('failed') AS job_id \gset
SELECT throws_ok(format('SELECT pljobs.retry_job(%s, %s)', :job_id, a), 'PJ004', NULL, 'refused: ' || left(a, 60))
  FROM unnest(ARRAY['''infinity''', '''-infinity''', '''10000-01-01 00:00+00''', 'queue => ''''', 'queue => repeat(''q'', 256)', 'lock => ''''', 'lock => repeat(''l'', 256)', 'priority => -2147483648']) AS a;
SELECT is(status_of(:job_id), 'failed', 'a refused call changes nothing');
SELECT is(pljobs.retry_job(:job_id, '9999-12-30 00:00+00', repeat(chr(128512), 255), 2147483647, '''; -- %' || chr(8238), repeat('r', 5000)), 'requeued', 'names are only text, of at most 255 characters');

SELECT * FROM a_doing_job() \gset
SELECT finish_run(:job_id, :run_id, 'failed', '{"result": 7}'), pljobs.retry_job(:job_id) \g /dev/null
SELECT is(j.result, NULL, 'the result of the attempt before is gone') FROM pljobs.job AS j WHERE j.id = :job_id;

-- One of a cancelled tree: it may start, and defer. One that is cancelled by its time to start: that is forgotten.
SELECT a_todo_job() AS root \gset
SELECT a_child_of(:root) AS child \gset
SELECT count(*) FROM pljobs.cancel_tree(:root) \g /dev/null
SELECT throws_ok(format('SELECT a_child_of(%s)', :child), 'PJ007', NULL, 'what was cancelled with its tree defers nothing');
SELECT is(pljobs.retry_job(:child), 'requeued', 'put back by a person');
SELECT isnt(a_child_of(:child), NULL, 'it may defer');
SELECT throws_ok(format('SELECT a_child_of(%s)', :root), 'PJ007', NULL, 'its parent may not');
SELECT isnt(start_job(:child), NULL, 'and it starts');
SELECT pljobs.defer_job('t', queue => a_name('queue'), start_by => now() + interval '1 h', timeout => '1 h', grace => '3 s', on_cancelled => 'tidy up') AS job_id \gset
UPDATE pljobs.job SET start_by = now() - interval '1 s' WHERE id = :job_id;
SELECT pljobs._expire_jobs(1000) \g /dev/null
SELECT is(pljobs.retry_job(:job_id), 'requeued', 'what did not start in time may be put back');
SELECT results_eq(format('SELECT start_by, timeout, grace, on_cancelled FROM pljobs.job WHERE id = %s', :job_id), $$VALUES (NULL::timestamptz, interval '1 h', interval '3 s', 'tidy up')$$, 'then it may start at any time; its other limits stay');
SELECT isnt(start_job(:job_id), NULL, 'and it starts, too');

-- Whose job it is, and where it may go.
SELECT a_login('pljobs_producer') AS ann, a_login('pljobs_producer') AS bob, a_login('pljobs_canceller') AS guard, a_login('pljobs_operator') AS ops \gset
CREATE FUNCTION ended_job_of(login text, queue text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_id bigint := as_login(login, format('SELECT pljobs.defer_job(''t'', queue => %L)', queue));
BEGIN
    PERFORM finish_run(v_id, start_job(v_id), 'failed');
    RETURN v_id;
END
$$;
SELECT a_name('queue') AS q \gset
SELECT ended_job_of(:'ann', :'q') AS anns \gset
SELECT is(as_login(:'bob', format('SELECT ROW(r.*) FROM pljobs.retry_job_v1(%s) AS r', :anns)), '(not_found,)', 'another producer''s job is as if it were not there');
SELECT is(status_of(:anns), 'failed', 'and stays as it is');
SELECT is(as_login(:'guard', format('SELECT pljobs.retry_job(%s)', :anns)), '42501', 'a canceller puts nothing back');
SELECT pljobs.limit_queues(:'ann', 'defer', '{elsewhere}'), pljobs.limit_queues(:'bob', 'defer', '{elsewhere}') \g /dev/null
SELECT is(as_login(:'bob', format('SELECT pljobs.retry_job(%s, queue => ''nowhere'')', :anns)), 'not_found', 'whatever queue is asked for');
SELECT is(as_login(:'ann', format('SELECT pljobs.retry_job(%s)', :anns)), 'PJ010', 'who may not defer to its queue any more does not put it back there');
SELECT is(as_login(:'ann', format('SELECT pljobs.retry_job(%s, queue => ''nowhere'')', :anns)), 'PJ010', 'nor into another that is not allowed');
SELECT is(status_of(:anns), 'failed', 'nothing was put back');
SELECT is(as_login(:'ann', format('SELECT pljobs.retry_job(%s, queue => ''elsewhere'')', :anns)), 'requeued', 'but into one that is');
SELECT pljobs.limit_queues(:'ann', 'defer', NULL) \g /dev/null
SELECT is(as_login(:'ops', format('SELECT pljobs.retry_job(%s)', ended_job_of(:'ann', :'q'))), 'requeued', 'an operator puts back anybody''s');

SELECT * FROM finish();
ROLLBACK;

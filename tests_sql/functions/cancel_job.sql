-- Under concurrency: races/cancel_*.spec. Every state: transitions.sql.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

-- todo
SELECT a_todo_job() AS job_id \gset
SELECT results_eq(format('SELECT outcome, status_before, status_after, request_id IS NOT NULL, worker_id, run_id FROM pljobs.cancel_job_v1(%s, reason => ''why'', actor => ''whom'')', :job_id),
                  $$VALUES ('cancelled', 'todo', 'cancelled', true, NULL::bigint, NULL::bigint)$$, 'a waiting job is cancelled');
SELECT results_eq(format('SELECT status, message, finished_at IS NOT NULL, attempts FROM pljobs.job WHERE id = %s', :job_id), $$VALUES ('cancelled', 'why', true, 0)$$, 'it says why, and never ran');
SELECT results_eq(format('SELECT kind, reason, actor, requested_by = session_user, resolution, task, queue IS NOT NULL FROM pljobs.request WHERE job_id = %s', :job_id),
                  $$VALUES ('cancel', 'why', 'whom', true, 'cancelled', 'a task', true)$$, 'who cancelled it, for whom and why is kept');
SELECT is(pljobs.cancel_job(a_scheduled_job()), 'cancelled', 'a job that waits for its schedule is cancelled');
SELECT is(pljobs.cancel_job(a_todo_job(), abort => true), 'cancelled', 'a waiting job needs no abort');
SELECT is(pljobs.cancel_job(a_todo_job(), force => true), 'cancelled', 'a waiting job needs no force');
SELECT a_todo_job() AS job_id \gset
SELECT results_eq(format('SELECT outcome, status_before, status_after FROM pljobs.cancel_job_v1(%s, delete_job => true, reason => ''why'')', :job_id), $$VALUES ('deleted', 'todo', NULL::text)$$, 'a waiting job is deleted');
SELECT is(status_of(:job_id), 'gone', 'a deleted job leaves no row');
SELECT results_eq(format('SELECT kind, delete_job, resolution, reason FROM pljobs.request WHERE job_id = %s', :job_id), $$VALUES ('cancel', true, 'deleted', 'why')$$, 'the request outlives the job');
SELECT is(pljobs.cancel_job(:job_id), 'not_found', 'a deleted job is not found');
SELECT a_name('queueing lock') AS ql \gset
SELECT pljobs.cancel_job(a_todo_job(NULL, :'ql')) \g /dev/null
SELECT isnt(a_todo_job(NULL, :'ql'), NULL, 'a cancelled job frees its queueing lock');
SELECT * FROM a_doing_job() \gset
SELECT finish_run(:job_id, :run_id, 'failed', '{"retry_at": "2001-01-01T00:00:00Z"}') \g /dev/null
SELECT is(pljobs.cancel_job(:job_id), 'cancelled', 'a job that waits for its retry is cancelled');

-- A lane's head.
SELECT ids[1] AS one, ids[2] AS two, queue, lock FROM a_lane(2) \gset
UPDATE pljobs.job SET waiting_for = 'lock' WHERE id = :two;
SELECT pljobs.cancel_job(:one) \g /dev/null
SELECT is(wait_of(:two), 'ready', 'cancelling the head of a lane wakes the next');
SELECT ids[1] AS one, ids[2] AS two, queue, lock FROM a_lane(2) \gset
UPDATE pljobs.job SET waiting_for = 'lock' WHERE id = :two;
SELECT pljobs.cancel_job(:one, delete_job => true) \g /dev/null
SELECT is(wait_of(:two), 'ready', 'deleting the head of a lane wakes the next');
SELECT ids[1] AS one, ids[2] AS two, queue, lock FROM a_lane(2) \gset
SELECT start_job(:one) AS run_id, fetch_ids(:'queue') \gset
SELECT pljobs.cancel_job(:one, force => true) \g /dev/null
SELECT is(wait_of(:two), 'ready', 'forcing the job that holds a lane wakes the next');

-- doing, without abort
SELECT * FROM a_doing_job() \gset
SELECT results_eq(format('SELECT outcome, status_before, status_after, request_id, worker_id, run_id FROM pljobs.cancel_job_v1(%s, delete_job => true)', :job_id),
                  format($$VALUES ('running', 'doing', 'doing', NULL::bigint, %s::bigint, %s::bigint)$$, :worker_id, :run_id), 'a running job is not cancelled');
SELECT is_empty(format('SELECT FROM pljobs.request WHERE job_id = %s', :job_id), 'what changed nothing leaves no request');
SELECT is(pljobs.cancel_job(:job_id, abort => NULL, delete_job => NULL, force => NULL), 'running', 'null flags mean false');

-- doing, abort
SELECT request_id FROM pljobs.cancel_job_v1(:job_id, abort => true, reason => 'why', actor => 'whom') \gset
SELECT results_eq(format('SELECT j.status, j.request_id, r.run_id, r.worker_id, r.kind, r.reason, r.actor, r.resolution, r.force, r.delete_job FROM pljobs.job AS j JOIN pljobs.request AS r ON r.id = j.request_id WHERE j.id = %s', :job_id),
                  format($$VALUES ('doing', %s::bigint, %s::bigint, %s::bigint, 'abort', 'why', 'whom', NULL::text, false, false)$$, :request_id, :run_id, :worker_id), 'a running job that is asked to abort goes on, with an open request');
SELECT results_eq(format('SELECT outcome, status_before, status_after, request_id, worker_id, run_id FROM pljobs.cancel_job_v1(%s, abort => true, reason => ''again'')', :job_id),
                  format($$VALUES ('abort_already_requested', 'doing', 'doing', %s::bigint, %s::bigint, %s::bigint)$$, :request_id, :worker_id, :run_id), 'a second request finds the first');
SELECT is(r.reason, 'why', 'the first reason stays') FROM pljobs.request AS r WHERE r.id = :request_id;
SELECT is(count(*), 1::bigint, 'at most one request is open for a run') FROM pljobs.request AS r WHERE r.job_id = :job_id;
SELECT is(pljobs.cancel_job(:job_id, abort => true, delete_job => true), 'abort_already_requested', 'a request may be made stronger');
SELECT is(r.delete_job, true, 'it then deletes the job') FROM pljobs.request AS r WHERE r.id = :request_id;
SELECT is(pljobs.cancel_job(:job_id, abort => true), 'abort_already_requested', 'a weaker request changes nothing');
SELECT is(r.delete_job, true, 'a request never becomes weaker') FROM pljobs.request AS r WHERE r.id = :request_id;
SELECT is(pljobs.cancel_job(:job_id), 'running', 'without abort a running job is left alone, asked or not');
SELECT is(finish_run(:job_id, :run_id, 'aborted'), 'deleted', 'the request that was made stronger is obeyed');

-- doing, force
SELECT * FROM a_doing_job() \gset
SELECT results_eq(format('SELECT outcome, status_before, status_after, request_id IS NOT NULL, worker_id, run_id FROM pljobs.cancel_job_v1(%s, force => true, reason => ''now'')', :job_id),
                  format($$VALUES ('aborted', 'doing', 'aborted', true, %s::bigint, %s::bigint)$$, :worker_id, :run_id), 'force aborts a running job at once');
SELECT results_eq(format('SELECT j.status, j.message, r.kind, r.force, r.resolution FROM pljobs.job AS j JOIN pljobs.request AS r ON r.job_id = j.id WHERE j.id = %s', :job_id),
                  $$VALUES ('aborted', 'now', 'abort', true, 'forced')$$, 'its request says so');
SELECT is(h.verdict, 'lost', 'its worker is told that the run is void') FROM pljobs.heartbeat_v1(:worker_id, ARRAY[:run_id]::bigint[]) AS h;
SELECT is(finish_run(:job_id, :run_id, 'succeeded'), 'stale', 'its end is stale');
SELECT is(pljobs.cancel_job(:job_id, force => true), 'already_cancelled', 'forced once is enough');
SELECT * FROM an_aborting_job() \gset
SELECT is(pljobs.cancel_job(:job_id, force => true), 'aborted', 'force ends a job that was asked to abort');
SELECT results_eq(format('SELECT force, resolution, reason FROM pljobs.request WHERE id = %s', :request_id), $$VALUES (true, 'forced', 'a reason')$$, 'its request is made stronger and closed');
SELECT is(j.message, 'aborted by force', 'without a reason the message says that it was forced') FROM pljobs.job AS j WHERE j.id = :job_id;
SELECT * FROM a_doing_job() \gset
SELECT results_eq(format('SELECT outcome, status_before, status_after FROM pljobs.cancel_job_v1(%s, force => true, delete_job => true)', :job_id), $$VALUES ('deleted', 'doing', NULL::text)$$, 'force deletes a running job at once');
SELECT is(finish_run(:job_id, :run_id, 'succeeded'), 'not_found', 'its end finds nothing');
SELECT * FROM an_aborting_job(delete_job => true) \gset
SELECT is(pljobs.cancel_job(:job_id, force => true), 'deleted', 'a deletion that was asked for is kept when force follows');

-- finished
SELECT is(pljobs.cancel_job(a_finished_job(s), abort => true, force => true), 'already_finished', s || ' is not cancelled') FROM unnest('{succeeded,failed}'::text[]) AS s;
SELECT is(pljobs.cancel_job(a_finished_job(s), delete_job => true), 'already_finished', s || ' is not deleted by a cancel') FROM unnest('{succeeded,failed}'::text[]) AS s;
SELECT is(pljobs.cancel_job(a_finished_job(s), abort => true, force => true), 'already_cancelled', s || ' is not cancelled again') FROM unnest('{cancelled,aborted}'::text[]) AS s;
SELECT results_eq(format('SELECT outcome, status_before, status_after FROM pljobs.cancel_job_v1(%s, delete_job => true)', a_finished_job(s)), format($$VALUES ('deleted', %L, NULL::text)$$, s), s || ' is deleted where deletion is asked')
  FROM unnest('{cancelled,aborted}'::text[]) AS s;

-- The arguments of the call.
SELECT results_eq(format('SELECT * FROM pljobs.cancel_job_v1(%L, true, true, true)', x), $$VALUES ('not_found', NULL::text, NULL::text, NULL::bigint, NULL::bigint, NULL::bigint, NULL::text)$$, 'not found: ' || coalesce(x::text, 'null'))
  FROM unnest('{-1,0,9223372036854775807,NULL}'::bigint[]) AS x;
SELECT is(pljobs.cancel_job(a_todo_job(), reason => r, actor => r), 'cancelled', 'nobody is kept from stopping a job by the explanation')
  FROM unnest(ARRAY['', repeat(chr(128512), 100000), '''; DROP TABLE pljobs.job; -- %s', chr(8238)]) AS r;
SELECT a_todo_job() AS todo \gset
SELECT * FROM a_doing_job() \gset
SELECT pljobs.cancel_job(:todo, reason => repeat('r', 5000)), pljobs.cancel_job(:job_id, force => true, reason => repeat('r', 5000)) \g /dev/null
SELECT is(char_length(j.message), 1000, 'a long reason is cut') FROM pljobs.job AS j WHERE j.id IN (:todo, :job_id);

-- With a deadline, and its SQL.
-- After how many seconds each level begins: as wanted, if it is so from any moment since the request came; a level that it came with was worked out a moment before.
CREATE FUNCTION seconds(request_id bigint, wanted integer[] DEFAULT NULL) RETURNS text
LANGUAGE sql VOLATILE
AS $$
SELECT string_agg(CASE WHEN l.at_ BETWEEN r.requested_at + make_interval(secs => l.wanted - 4) AND clock_timestamp() + make_interval(secs => l.wanted) THEN l.wanted::text
                       ELSE coalesce(extract(epoch FROM l.at_ - r.requested_at)::text, '-') END, ' ' ORDER BY l.place)
  FROM pljobs.request AS r CROSS JOIN LATERAL unnest(ARRAY[r.sql_at, r.term_at, r.kill_at], seconds.wanted) WITH ORDINALITY AS l(at_, wanted, place)
 WHERE r.id = seconds.request_id;
$$;
SELECT * FROM a_doing_job() \gset
SELECT request_id FROM pljobs.cancel_job_v1(:job_id, abort => true) \gset
SELECT is(seconds(:request_id), '- - -', 'without a grace nothing happens by force, ever');
SELECT pljobs.cancel_job(:job_id, abort => true, grace => '100 s') \g /dev/null
SELECT is(seconds(:request_id, '{50,100,105}'), '50 100 105', 'a grace gives what was asked before a deadline');
SELECT pljobs.cancel_job(:job_id, abort => true, grace => '200 s', term_grace => '0') \g /dev/null
SELECT is(seconds(:request_id, '{50,100,105}'), '50 100 105', 'a later one changes nothing');
SELECT pljobs.cancel_job(:job_id, abort => true, grace => '10 s', term_grace => '1 h') \g /dev/null
SELECT is(seconds(:request_id, '{5,10,105}'), '5 10 105', 'each level only comes nearer');
SELECT is(sql_way, 'none', 'its SQL at once, too: it is in none') FROM pljobs.cancel_job_v1(:job_id, abort => true, sql => true);
SELECT is(seconds(:request_id, '{0,10,105}'), '0 10 105', 'that is due from now on');
SELECT results_eq(format('SELECT outcome, sql_way FROM pljobs.cancel_job_v1(%s, sql => true)', :job_id), $$VALUES ('running', NULL::text)$$, 'without abort its SQL is left alone');
SELECT results_eq(format('SELECT outcome, sql_way FROM pljobs.cancel_job_v1(%s, sql => true, grace => ''1 s'')', a_todo_job()), $$VALUES ('cancelled', NULL::text)$$, 'a waiting job has no SQL, and needs no grace');
SELECT throws_ok(format('SELECT pljobs.cancel_job(%s, abort => true, %s)', :job_id, a), 'PJ004', NULL, 'refused: ' || a) FROM unnest(ARRAY['grace => ''-1 s''', 'term_grace => ''1 s''', 'grace => ''1 s'', term_grace => ''-1 s''']) AS a;
SELECT throws_ok('SELECT pljobs.cancel_job(-1, grace => ''-1 s'')', 'PJ004', NULL, 'refused, whether there is such a job or not');
SELECT lives_ok(format('SELECT pljobs.cancel_job(%s, abort => true, grace => %L, term_grace => %2$L)', (SELECT job_id FROM a_doing_job()), g), 'a grace of ' || g) FROM unnest('{0,1 year,300000 years,178000000 years,1 month -30 days,5000000 years -1800000000 days}'::text[]) AS g;
-- What people are told of its SQL.
CREATE FUNCTION notice_of(way text) RETURNS text
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_job record := a_doing_job();
    v_answer text;
BEGIN
    EXECUTE format('CREATE OR REPLACE FUNCTION pljobs.cancel_sql_v1(run_id bigint) RETURNS text LANGUAGE plpgsql AS $f$BEGIN RETURN %L; END$f$', way);
    v_answer := pljobs.cancel_job(v_job.job_id, abort => true, sql => true);
    RETURN v_answer || ' ' || (SELECT r.sql_way FROM pljobs.request AS r WHERE r.job_id = v_job.job_id);
END
$$;
SELECT is(notice_of(way), 'abort_requested ' || kept, 'its SQL: ' || way) FROM (VALUES ('server', 'server'), ('denied', 'asked'), ('busy', 'busy'), ('none', 'none')) AS v(way, kept);

-- Asked by its timeout before: it becomes the person's, and is never retried.
SELECT * FROM a_timed_out_job() \gset
SELECT results_eq(format('SELECT outcome, request_id FROM pljobs.cancel_job_v1(%s, abort => true, reason => ''why'', actor => ''whom'')', :job_id), format($$VALUES ('abort_already_requested', %s::bigint)$$, :request_id), 'a person joins a timeout''s request');
SELECT results_eq(format('SELECT h.source, h.reason, h.actor, h.requested_by = session_user FROM pljobs.heartbeat_v1(%s) AS h', :worker_id), $$VALUES ('user', 'why', 'whom', true)$$, 'it is the person''s then, and its worker is told so');
SELECT is(seconds(:request_id, '{5,10,15}'), '5 10 15', 'its deadline stays');
SELECT is(finish_run(:job_id, :run_id, 'aborted', '{"retry_at": "2001-01-01T00:00:00Z"}'), 'aborted', 'and is not retried');
SELECT * FROM a_timed_out_job() \gset
SELECT is(pljobs.cancel_job(:job_id), 'running', 'without abort it is left alone');
SELECT is(pljobs.cancel_job(:job_id, force => true), 'aborted', 'by force it is ended');

-- Whose job it is.
SELECT a_login('pljobs_producer') AS ann, a_login('pljobs_producer') AS bob, a_login('pljobs_canceller') AS guard, a_login('pljobs_operator') AS ops \gset
CREATE FUNCTION job_of(login text, more text DEFAULT '') RETURNS bigint LANGUAGE sql VOLATILE RETURN as_login(login, format('SELECT pljobs.defer_job(''t'', queue => %L%s)', a_name('queue'), more))::bigint;
SELECT job_of(:'ann') AS anns \gset
SELECT is(as_login(:'bob', format('SELECT pljobs.cancel_job(%s, abort => true, delete_job => true, force => true)', :anns)), 'not_found', 'another producer''s job is as if it were not there');
SELECT results_eq(format('SELECT status, (SELECT count(*) FROM pljobs.request AS r WHERE r.job_id = j.id) FROM pljobs.job AS j WHERE j.id = %s', :anns), $$VALUES ('todo', 0::bigint)$$, 'nothing happens to it, and nobody asked');
SELECT results_eq(format('SELECT outcome, status_before, status_after, request_id, worker_id, run_id, sql_way FROM pljobs.cancel_job_v1(-1)'), $$VALUES ('not_found', NULL::text, NULL::text, NULL::bigint, NULL::bigint, NULL::bigint, NULL::text)$$, 'an unknown id');
SELECT is(as_login(:'bob', format('SELECT ROW(c.*) FROM pljobs.cancel_job_v1(%s) AS c', :anns)), (SELECT ROW(c.*)::text FROM pljobs.cancel_job_v1(-1) AS c), 'is answered the same, in every column');
SELECT is(as_login(:'ann', format('SELECT pljobs.cancel_job(%s)', :anns)), 'cancelled', 'its own it cancels');
SELECT is(as_login(who, format('SELECT pljobs.cancel_job(%s, reason => ''why'')', job_of(:'ann'))), 'cancelled', 'of anybody: ' || what) FROM (VALUES (:'guard', 'a canceller'), (:'ops', 'an operator'), (current_user::text, 'a superuser')) AS w(who, what);
SELECT is(r.requested_by, :'guard', 'who did it is written down') FROM pljobs.request AS r WHERE r.requested_by = :'guard';
SELECT a_login('pljobs_producer', :'ann') AS pool \gset
SELECT is(as_login(:'pool', format('SELECT pljobs.cancel_job(%s)', job_of(:'ann'))), 'cancelled', 'a member of the role that deferred it owns it, too');
SELECT is(as_login(:'pool', format('SELECT pljobs.cancel_job(%s)', job_of(:'ann')), :'ann'), 'cancelled', 'and after SET ROLE to it');
SELECT is(as_login(:'pool', format('SELECT pljobs.cancel_job(%s)', job_of(:'bob')), :'ann'), 'not_found', 'but not what others have');
SELECT is(as_login(:'ann', format('SELECT pljobs.cancel_job(%s)', job_of(:'pool'))), 'not_found', 'nor does the role own what its members defer as themselves');
SELECT is(as_login(a_login('pljobs_worker'), format('SELECT pljobs.cancel_job(%s)', job_of(:'ann'))), '42501', 'a worker cancels nothing');

SELECT * FROM finish();
ROLLBACK;

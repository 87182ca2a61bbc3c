-- What a pause keeps from being fetched: fetch_jobs.sql.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT a_name('queue') AS q \gset
SELECT is(pljobs.pause_queue(:'q', 'why', 'whom'), 'paused', 'a queue is paused by its name, whether it has jobs or not');
SELECT results_eq(format('SELECT paused, paused_by, pause_reason, todo FROM pljobs.queues WHERE queue = %L', :'q'), format('VALUES (true, %L, ''why'', 0::bigint)', session_user), 'people see who paused it and why');
SELECT results_eq(format('SELECT kind, job_id, reason, actor, requested_by = session_user, resolution, requested_at = resolved_at FROM pljobs.request WHERE queue = %L', :'q'),
                  $$VALUES ('pause', NULL::bigint, 'why', 'whom', true, 'paused', true)$$, 'a pause is a request that is kept');
SELECT is(pljobs.pause_queue(:'q', 'another'), 'already_paused', 'a paused queue is paused already');
SELECT is(q.pause_reason, 'why', 'the first pause stays') FROM pljobs.queue AS q WHERE q.name = :'q';
SELECT is(count(*), 1::bigint, 'what changed nothing leaves no request') FROM pljobs.request AS r WHERE r.queue = :'q';
SELECT isnt(a_todo_job(queue => :'q'), NULL, 'deferring to a paused queue goes on');
SELECT pljobs.resume_queue(:'q') \g /dev/null
SELECT is(pljobs.pause_queue(:'q', 'again'), 'paused', 'a resumed queue may be paused again');
SELECT is(q.pause_reason, 'again', 'for another reason') FROM pljobs.queue AS q WHERE q.name = :'q';

SELECT * FROM a_doing_job() \gset
SELECT pljobs.pause_queue((SELECT queue FROM pljobs.job WHERE id = :job_id)) \g /dev/null
SELECT is(finish_run(:job_id, :run_id, 'succeeded'), 'succeeded', 'running jobs of a paused queue go on');

SELECT throws_ok(format('SELECT pljobs.pause_queue(%s)', a), 'PJ004', NULL, 'refused: ' || a) FROM unnest(ARRAY['NULL', '''''', 'repeat(''q'', 256)']) AS a;
SELECT is(pljobs.pause_queue(rpad(a_name('''; -- %' || chr(8238)), 255, chr(128512)), repeat('r', 5000)), 'paused', 'names are only text, of at most 255 characters; a long reason is cut');

-- The driver's name.
SELECT a_name('queue') AS q \gset
SELECT is(pljobs.pause_queue_v1(:'q', reason => 'why', actor => 'whom'), 'paused', 'drivers pause by the versioned name');
SELECT is(pljobs.pause_queue(:'q'), 'already_paused', 'both names pause the same queue');
SELECT is(pljobs.pause_queue_v1(queue => :'q'), 'already_paused', 'a driver is answered the same word as a person');
SELECT results_eq(format('SELECT reason, actor FROM pljobs.request WHERE queue = %L', :'q'), $$VALUES ('why', 'whom')$$,
                  'the driver''s reason and actor are kept');
SELECT throws_ok('SELECT pljobs.pause_queue_v1(NULL)', 'PJ004', NULL, 'no name is refused of a driver, too');

SELECT * FROM finish();
ROLLBACK;

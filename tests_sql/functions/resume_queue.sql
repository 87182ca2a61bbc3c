BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT a_name('queue') AS q \gset
SELECT is(pljobs.resume_queue(:'q'), 'not_paused', 'a queue that was never paused is not paused');
SELECT pljobs.pause_queue(:'q') \g /dev/null
SELECT is(pljobs.resume_queue(:'q', 'why', 'whom'), 'resumed', 'a paused queue is resumed');
SELECT results_eq(format('SELECT paused, paused_at, paused_by, pause_reason FROM pljobs.queues WHERE queue = %L', :'q'), 'VALUES (false, NULL::timestamptz, NULL::text, NULL::text)', 'nothing of the pause is left');
SELECT results_eq(format('SELECT kind, reason, actor, resolution FROM pljobs.request WHERE queue = %L ORDER BY id DESC LIMIT 1', :'q'), $$VALUES ('resume', 'why', 'whom', 'resumed')$$, 'a resumption is a request that is kept');
SELECT is(pljobs.resume_queue(:'q'), 'not_paused', 'a resumed queue is not paused');
SELECT is(count(*), 2::bigint, 'what changed nothing leaves no request') FROM pljobs.request AS r WHERE r.queue = :'q';
SELECT is(pljobs.resume_queue(x), 'not_paused', 'not paused: ' || coalesce(x, 'null')) FROM unnest(ARRAY[NULL, '', '%']) AS x;

-- The driver's name.
SELECT a_name('queue') AS q \gset
SELECT is(pljobs.resume_queue_v1(:'q'), 'not_paused', 'a driver is answered the same word as a person');
SELECT pljobs.pause_queue_v1(:'q') \g /dev/null
SELECT is(pljobs.resume_queue_v1(:'q', reason => 'why', actor => 'whom'), 'resumed', 'drivers resume by the versioned name');
SELECT is(pljobs.resume_queue(:'q'), 'not_paused', 'both names resume the same queue');
SELECT results_eq(format('SELECT reason, actor FROM pljobs.request WHERE queue = %L AND kind = ''resume''', :'q'),
                  $$VALUES ('why', 'whom')$$, 'the driver''s reason and actor are kept');

SELECT * FROM finish();
ROLLBACK;

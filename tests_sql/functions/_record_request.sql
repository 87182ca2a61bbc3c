BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT pljobs._record_request('cancel', 42, 'a queue', 'a task', 'a reason', 'an actor', 'cancelled') AS id \gset
SELECT results_eq(
    format('SELECT kind, job_id, run_id, worker_id, queue, task, reason, actor, requested_by = session_user, resolution, force, delete_job FROM pljobs.request WHERE id = %s', :id),
    $$VALUES ('cancel', 42::bigint, NULL::bigint, NULL::bigint, 'a queue', 'a task', 'a reason', 'an actor', true, 'cancelled', false, false)$$,
    'a request says what was asked, by whom, for whom, why, and what became of it');
SELECT ok(r.requested_at = r.resolved_at AND r.delivered_at IS NULL AND r.handling IS NULL, 'a request that is answered at once is closed at once')
  FROM pljobs.request AS r WHERE r.id = :id;

SELECT pljobs._record_request('abort', 42, 'a queue', 'a task', NULL, NULL, NULL, true, true, -7, 3) AS id \gset
SELECT results_eq(format('SELECT run_id, worker_id, resolved_at IS NULL, resolution, force, delete_job FROM pljobs.request WHERE id = %s', :id),
                  $$VALUES (-7::bigint, 3::bigint, true, NULL::text, true, true)$$, 'without a resolution a request stays open for its run');
SELECT throws_ok($$SELECT pljobs._record_request('abort', 42, 'a queue', 'a task', NULL, NULL, NULL, run_id => -7)$$, '23505', NULL,
                 'at most one request is open for a run');
SELECT throws_ok($$SELECT pljobs._record_request('cancel', 42, 'a queue', 'a task', NULL, NULL, NULL)$$, '23514', NULL,
                 'only a run''s request stays open');
SELECT throws_ok($$SELECT pljobs._record_request('shout', 42, 'a queue', 'a task', NULL, NULL, 'cancelled')$$, '23514', NULL,
                 'a kind that is not known is refused');

SELECT pljobs._record_request('cancel', 42, 'a queue', 'a task', repeat(chr(252), 1001), repeat(chr(128512), 1001), 'cancelled') AS id \gset
SELECT results_eq(format('SELECT char_length(reason), char_length(actor) FROM pljobs.request WHERE id = %s', :id), 'VALUES (1000, 1000)',
                  'a reason or actor of more than 1,000 characters is cut');

SELECT * FROM finish();
ROLLBACK;

BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT pljobs.defer_job('t') AS job_id \gset
SELECT results_eq(format('SELECT status, queue, task, args, priority, lock, queueing_lock, scheduled_at FROM pljobs.job WHERE id = %s', :job_id),
                  $$VALUES ('todo', 'default', 't', '{}'::jsonb, 0, NULL::text, NULL::text, NULL::timestamptz)$$, 'a task''s name is all that a job needs');
SELECT a_name('q') AS ql \gset
SELECT pljobs.defer_job('t', '{"a": "b"}', 'q', 7, 'l', :'ql', '2001-01-01 00:00+00') AS job_id \gset
SELECT results_eq(format('SELECT queue, args, priority, lock, queueing_lock, scheduled_at FROM pljobs.job WHERE id = %s', :job_id),
                  format($$VALUES ('q', '{"a": "b"}'::jsonb, 7, 'l', %L, '2001-01-01 00:00+00'::timestamptz)$$, :'ql'), 'every parameter is stored');
SELECT pljobs.defer_job('t', NULL, NULL, NULL, NULL, NULL, NULL) AS job_id \gset
SELECT results_eq(format('SELECT queue, args, priority FROM pljobs.job WHERE id = %s', :job_id), $$VALUES ('default', '{}'::jsonb, 0)$$, 'null means the default');
SELECT ok(pljobs.defer_job('t') < pljobs.defer_job('t'), 'ids ascend');
SELECT throws_ok(format('SELECT pljobs.defer_job(''t'', queueing_lock => %L)', :'ql'), 'PJ001', NULL, 'a queueing lock admits one waiting job');
SELECT throws_ok('SELECT pljobs.defer_job(NULL)', 'PJ002', NULL, 'a null task is refused');
SELECT throws_ok($$SELECT pljobs.defer_job('')$$, 'PJ002', NULL, 'an empty task is refused');
SELECT throws_ok($$SELECT pljobs.defer_job('t', '[]')$$, 'PJ002', NULL, 'arguments that are no object are refused');
SELECT throws_ok($$SELECT pljobs.defer_job('t', scheduled_at => 'infinity')$$, 'PJ002', NULL, 'a job is not scheduled for never');
SELECT throws_ok($$SELECT pljobs.defer_job('t', scheduled_at => '-infinity')$$, 'PJ002', NULL, 'a job is not scheduled for the beginning of time');
SELECT throws_ok($$SELECT pljobs.defer_job('t', queue => repeat('q', 256))$$, 'PJ002', NULL, 'a queue of 256 characters is refused');
SELECT throws_ok($$SELECT pljobs.defer_job('t', lock => '')$$, 'PJ002', NULL, 'an empty lock is refused');

SELECT pljobs.defer_job('t', start_by => '9999-01-01 00:00+00', timeout => '1 h', grace => '0', on_cancelled => 'another', parent_id => :job_id) AS child \gset
SELECT results_eq(format('SELECT start_by, timeout, grace, on_cancelled, parent_id FROM pljobs.job WHERE id = %s', :child), format($$VALUES ('9999-01-01 00:00+00'::timestamptz, interval '1 h', interval '0', 'another', %s::bigint)$$, :job_id), 'its limits, what follows it, and who deferred it');
SELECT throws_ok(format('SELECT pljobs.defer_job(''t'', %s)', a), 'PJ002', NULL, 'refused: ' || a) FROM unnest(ARRAY['start_by => ''infinity''', 'timeout => ''0''', 'timeout => ''-1 s''', 'grace => ''-1 s''', 'timeout => ''11 years''', 'on_cancelled => ''''']) AS a;
SELECT count(*) FROM pljobs.cancel_tree(:job_id) \g /dev/null
SELECT throws_ok(format('SELECT pljobs.defer_job(''t'', parent_id => %s)', :job_id), 'PJ007', NULL, 'not as the child of a cancelled tree');

SELECT * FROM finish();
ROLLBACK;

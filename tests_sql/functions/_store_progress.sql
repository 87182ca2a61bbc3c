-- That it waits for nobody: races/heartbeat.spec.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT * FROM a_doing_job() \gset
CREATE FUNCTION store(job_id bigint, run_id bigint, progress jsonb, message text) RETURNS text
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    PERFORM pljobs._store_progress(jsonb_build_array(jsonb_build_object('job_id', store.job_id, 'run_id', store.run_id, 'progress', store.progress, 'progress_message', store.message)));
    RETURN (SELECT format('%s %s %s', p.run_id, coalesce(p.fraction::text, '-'), coalesce(p.message, '-')) FROM pljobs.progress AS p WHERE p.job_id = store.job_id);
END
$$;
SELECT is(store(:job_id, :run_id, NULL, NULL), NULL, 'nothing said, nothing stored');
SELECT is(store(:job_id, :run_id, '0.25', 'a quarter'), :'run_id' || ' 0.25 a quarter', 'what a task says is stored');
SELECT is(store(:job_id, :run_id, '0.5', NULL), :'run_id' || ' 0.5 -', 'the last counts');
SELECT is(store(:job_id, :run_id, NULL, 'half'), :'run_id' || ' - half', 'a message alone');
SELECT is(store(:job_id, :run_id, '"abc"', NULL), :'run_id' || ' - half', 'what is no number changes nothing');
SELECT is(store(:job_id, :run_id + 1000000, '0.9', NULL), :'run_id' || ' - half', 'another run''s changes nothing');
SELECT is(store(j, r, '0.9', NULL), NULL, format('unknown: job %s, run %s', j, r)) FROM (VALUES (-1, 1), (NULL, 1), (1, NULL), (999999999999999999, 1)) AS v(j, r);
SELECT is(store(a_todo_job(), NULL, '0.9', NULL), NULL, 'a waiting job has no progress');
SELECT ok(p.at BETWEEN now() AND clock_timestamp(), 'and when') FROM pljobs.progress AS p WHERE p.job_id = :job_id;
SELECT results_eq(format('SELECT progress, progress_message, progress_at IS NOT NULL FROM pljobs.jobs WHERE id = %s', :job_id), $$VALUES (NULL::real, 'half', true)$$, 'people see it');
SELECT * FROM a_doing_job() \gset other_
SELECT pljobs._store_progress(format('[{"job_id": %1$s, "run_id": %2$s, "progress": 0.7}, {"job_id": %3$s, "run_id": %4$s, "progress": 0.8}, {"job_id": %3$s, "run_id": %4$s, "progress": 0.9}, {"job_id": %3$s, "run_id": -4, "progress": 0.1}]', :other_job_id, :other_run_id, :job_id, :run_id)::jsonb) \g /dev/null
SELECT results_eq(format('SELECT job_id, fraction FROM pljobs.progress WHERE job_id IN (%s, %s) ORDER BY job_id', :job_id, :other_job_id), format('VALUES (%s::bigint, 0.9::real), (%s, 0.7)', :job_id, :other_job_id), 'of many runs at once, in any order');
SELECT finish_run(:job_id, :run_id, 'failed', '{"retry_at": "2001-01-01T00:00:00Z"}') \g /dev/null
SELECT start_job(:job_id) AS run_2 \gset
SELECT is(store(:job_id, :run_id, '0.95', NULL), :'run_id' || ' 0.9 -', 'an old run''s changes nothing');
SELECT is(store(:job_id, :run_2, '0.1', NULL), :'run_2' || ' 0.1 -', 'the next run begins anew');
SELECT pljobs.cancel_job(:job_id, force => true, delete_job => true) \g /dev/null
SELECT is_empty(format('SELECT FROM pljobs.progress WHERE job_id = %s', :job_id), 'progress goes with its job');

SELECT * FROM finish();
ROLLBACK;

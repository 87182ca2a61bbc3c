-- Waiting for others, and them for it: races/finish_job.spec.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT * FROM a_doing_job() \gset
SELECT is(pljobs.finish_job_v1(:job_id, :run_id, '{"a": 1}', 'done'), 'succeeded', 'a running job ends in its body''s transaction');
SELECT results_eq(format('SELECT status, result, message, run_id, last_run_id FROM pljobs.job WHERE id = %s', :job_id),
                  format($$VALUES ('succeeded', '{"a": 1}'::jsonb, 'done', NULL::bigint, %s::bigint)$$, :run_id), 'with its result and message');
SELECT is(pljobs.finish_job_v1(:job_id, :run_id), 'succeeded', 'once more changes nothing');
SELECT results_eq(format('SELECT status FROM pljobs.finish_jobs_v1(%L)', jsonb_build_array(jsonb_build_object('job_id', :job_id, 'run_id', :run_id, 'outcome', o))),
                  $$VALUES ('succeeded')$$, 'what the worker reports afterwards changes nothing: ' || o) FROM unnest('{succeeded,failed,aborted,interrupted,abandoned}'::text[]) AS o;
SELECT is(j.result, '{"a": 1}', 'nor the result') FROM pljobs.job AS j WHERE j.id = :job_id;

SELECT * FROM an_aborting_job() \gset
SELECT is(pljobs.finish_job_v1(:job_id, :run_id), 'succeeded', 'a job that was asked to abort may have ended first');
SELECT is(r.resolution, 'finished_first', 'and its request says so') FROM pljobs.request AS r WHERE r.id = :request_id;

SELECT * FROM a_doing_job() \gset
SELECT throws_ok(format('SELECT pljobs.finish_job_v1(%s, %s)', :job_id, :run_id + 1), 'PJ011', NULL, 'another run of the job is refused');
SELECT throws_ok(format('SELECT pljobs.finish_job_v1(%s, NULL)', :job_id), 'PJ011', NULL, 'no run is refused');
SELECT throws_ok(format('SELECT pljobs.finish_job_v1(%L, 1)', x), 'PJ011', NULL, 'refused: job ' || coalesce(x, 'null')) FROM unnest('{-1,0,9223372036854775807,NULL}'::text[]) AS x;
SELECT is(status_of(:job_id), 'doing', 'and nothing has changed');
SELECT is(pljobs.cancel_job(:job_id, force => true), 'aborted', 'a job is forced');
SELECT throws_ok(format('SELECT pljobs.finish_job_v1(%s, %s)', :job_id, :run_id), 'PJ011', NULL, 'a forced job is not its run''s any more');
SELECT * FROM a_doing_job() \gset
SELECT status FROM pljobs.finish_jobs_v1(jsonb_build_array(jsonb_build_object('job_id', :job_id, 'run_id', :run_id, 'outcome', 'failed'))) \g /dev/null
SELECT throws_ok(format('SELECT pljobs.finish_job_v1(%s, %s)', :job_id, :run_id), 'PJ011', NULL, 'a run that has failed does not succeed afterwards');

SELECT * FROM a_doing_job() \gset
SELECT is(pljobs.finish_job_v1(:job_id, :run_id, to_jsonb(repeat('x', 1048576)), repeat('m', 2000)), 'succeeded', 'too long a result is no hindrance');
SELECT results_eq(format('SELECT result, char_length(message) FROM pljobs.job WHERE id = %s', :job_id), 'VALUES (NULL::jsonb, 1000)', 'it is left out, the message cut');

SELECT a_name('lane') AS lane \gset
SELECT * FROM a_doing_job(lock => :'lane') \gset
SELECT a_todo_job(lock => :'lane') AS next \gset
UPDATE pljobs.job SET waiting_for = 'lock' WHERE id = :next;
SELECT pljobs.finish_job_v1(:job_id, :run_id) \g /dev/null
SELECT is(j.waiting_for, NULL, 'the next of its lane is woken') FROM pljobs.job AS j WHERE j.id = :next;

SELECT * FROM finish();
ROLLBACK;

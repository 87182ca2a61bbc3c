BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT a_todo_job() AS todo, a_finished_job('aborted') AS aborted, a_todo_job() AS other \gset
SELECT * FROM a_doing_job() \gset
SELECT finish_run(:job_id, :run_id, 'interrupted') \g /dev/null
SELECT isnt_empty(format('SELECT FROM pljobs.job_event WHERE job_id = %s', :job_id), 'a job that was interrupted has an event');
SELECT pljobs._delete_jobs(ARRAY[:todo, :aborted, :job_id, -1]::bigint[]) \g /dev/null
SELECT is(status_of(:todo), 'gone', 'a waiting job is gone');
SELECT is(status_of(:aborted), 'gone', 'a finished job is gone');
SELECT is_empty(format('SELECT FROM pljobs.job_event WHERE job_id = %s', :job_id), 'the events of its attempts go with the job');
SELECT isnt_empty(format('SELECT FROM pljobs.request WHERE job_id = %s', :aborted), 'the requests about a deleted job stay');
SELECT is(status_of(:other), 'todo', 'other jobs stay');
SELECT lives_ok('SELECT pljobs._delete_jobs(NULL), pljobs._delete_jobs(''{}'')', 'no ids, nothing deleted');
SELECT is(status_of(:other), 'todo', 'null ids mean none, not all');

SELECT * FROM finish();
ROLLBACK;

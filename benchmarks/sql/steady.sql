-- A job's whole life, for some at once: defer, commit, fetch, commit, finish, commit.
SELECT count(*) FROM pljobs.defer_jobs_v1(
       (SELECT jsonb_agg('{"task": "noop"}'::jsonb) FROM generate_series(1, :batch)), notify => false);
SELECT coalesce(jsonb_agg(jsonb_build_object('job_id', f.job_id, 'run_id', f.run_id, 'outcome', 'succeeded')), '[]') AS runs
  FROM pljobs.fetch_jobs_v1(worker_id => 1, max_jobs => :batch) AS f \gset
SELECT count(*) FROM pljobs.finish_jobs_v1(runs => :runs::jsonb) AS a;

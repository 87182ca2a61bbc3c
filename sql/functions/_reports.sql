CREATE OR REPLACE FUNCTION pljobs._reports(reports jsonb)
RETURNS TABLE (
    job_id bigint, run_id bigint, handling text, sql text, progress real, progress_message text
)
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
AS $$
-- What a worker says of its runs, in heartbeat_v1's `observed` or finish_jobs_v1's `runs`: the last object of
-- each run, by job. Never raises, for neither a lease nor a run's end may hang on it: what has no run_id is
-- left out; an unknown word, or a progress that is no number, is null. Progress is cut to 0 or 1, a message
-- at 200 characters.
DECLARE
    c_id CONSTANT text := '^(0|-?[1-9][0-9]{0,18})$';
    c_last CONSTANT numeric := 9223372036854775807.0;
BEGIN
    RETURN QUERY
    SELECT u.job_id, u.run_id, u.handling, u.sql, u.progress, u.progress_message
      FROM (SELECT DISTINCT ON (e.x ->> 'run_id')
                   CASE WHEN e.x ->> 'job_id' ~ c_id
                        THEN CASE WHEN abs((e.x ->> 'job_id')::numeric) <= c_last
                                  THEN (e.x ->> 'job_id')::bigint END END AS job_id,
                   CASE WHEN e.x ->> 'run_id' ~ c_id
                        THEN CASE WHEN abs((e.x ->> 'run_id')::numeric) <= c_last
                                  THEN (e.x ->> 'run_id')::bigint END END AS run_id,
                   CASE WHEN e.x ->> 'handling' IN ('handling', 'swallowed') THEN e.x ->> 'handling' END
                        AS handling,
                   CASE WHEN e.x ->> 'sql' IN ('worker', 'none', 'pooled', 'denied', 'busy')
                        THEN e.x ->> 'sql' END AS sql,
                   -- Rounded, for what is nearly 0 is no real.
                   CASE WHEN jsonb_typeof(e.x -> 'progress') = 'number'
                        THEN round(least(greatest((e.x -> 'progress')::numeric, 0), 1), 6)::real END
                        AS progress,
                   left(e.x ->> 'progress_message', 200) AS progress_message
              FROM jsonb_array_elements(CASE WHEN jsonb_typeof(_reports.reports) = 'array'
                                             THEN _reports.reports END) WITH ORDINALITY AS e(x, place)
             ORDER BY e.x ->> 'run_id', e.place DESC) AS u
     WHERE u.run_id IS NOT NULL
     ORDER BY u.job_id, u.run_id;
END
$$;
COMMENT ON FUNCTION pljobs._reports(jsonb) IS 'What a worker says of its runs, as far as it makes sense.';

CREATE OR REPLACE FUNCTION pljobs.next_fetch_v1(
    worker_id bigint, queues text[] DEFAULT NULL, tasks text[] DEFAULT NULL
) RETURNS interval
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
SET enable_sort = off
SET enable_bitmapscan = off
AS $$
-- How long until a fetch with these arguments may find something that it doesn't find now: until the next
-- job is due, of `queues` and `tasks` (null: all), that waits for its schedule; or until a rate that is used
-- up lets the next one start. Zero or less is 'now'; null: nothing is known, or the worker gets nothing (not
-- registered, stopped, tainted). A hint, after which to fetch once more, besides polling: where the next
-- hundred are for others, it says when the last of them is due; and that job may be gone by then. Changes,
-- locks and notifies nothing.
DECLARE
    c_looked_at CONSTANT integer := 100;
    v_now timestamptz := clock_timestamp();
    v_at timestamptz;
    v_token_at timestamptz;
BEGIN
    IF NOT EXISTS (SELECT FROM pljobs.worker AS w
                    WHERE w.id = next_fetch_v1.worker_id AND w.stopped_at IS NULL
                      AND w.tainted_at IS NULL) THEN
        RETURN NULL;
    END IF;
    SELECT coalesce(min(s.scheduled_at) FILTER (
               WHERE (next_fetch_v1.queues IS NULL OR s.queue = ANY (next_fetch_v1.queues))
                 AND (next_fetch_v1.tasks IS NULL OR s.task = ANY (next_fetch_v1.tasks))),
               CASE WHEN count(*) = c_looked_at THEN max(s.scheduled_at) END) INTO v_at
      FROM (SELECT j.scheduled_at, j.queue, j.task FROM pljobs.job AS j
             WHERE j.status = 'todo' AND j.waiting_for = 'schedule'
             ORDER BY j.scheduled_at LIMIT c_looked_at) AS s;
    IF EXISTS (SELECT FROM pljobs.throttle) THEN
        SELECT min(n.at) INTO v_token_at
          FROM pljobs.throttle AS t
         CROSS JOIN LATERAL (
               SELECT pljobs._lasts(t.burst - 1, t.rate, t.period) AS but_one,
                      pljobs._latest_full(t.burst, t.rate, t.period) AS latest OFFSET 0) AS l
         CROSS JOIN LATERAL (
               SELECT min(b.full_at) - l.but_one AS at FROM pljobs.bucket AS b
                WHERE b.scope = t.scope AND b.name = t.name AND b.set_at = t.set_at
                  AND b.full_at > v_now + l.but_one AND b.full_at <= l.latest) AS n
         WHERE t.rate IS NOT NULL
           AND CASE t.scope WHEN 'task' THEN (t.name = ANY (next_fetch_v1.tasks)) IS NOT FALSE
                            ELSE (t.name = ANY (next_fetch_v1.queues)) IS NOT FALSE END;
    END IF;
    RETURN least(v_at, v_token_at) - clock_timestamp();
END
$$;
COMMENT ON FUNCTION pljobs.next_fetch_v1(bigint, text[], text[])
    IS 'How long until a fetch may find something that it does not find now. Driver contract, version 1.';

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
-- job is due, of `queues` and `tasks` (null: all), that waits for its schedule. Zero or less is 'now'; null:
-- nothing is known, or the worker gets nothing (not registered, tainted). A hint, after which to fetch once
-- more, besides polling: where the next hundred are for others, it says when the last of them is due; and
-- that job may be gone by then. Changes, locks and notifies nothing.
DECLARE
    c_looked_at CONSTANT integer := 100;
    v_at timestamptz;
BEGIN
    SELECT coalesce(min(s.scheduled_at) FILTER (
               WHERE (next_fetch_v1.queues IS NULL OR s.queue = ANY (next_fetch_v1.queues))
                 AND (next_fetch_v1.tasks IS NULL OR s.task = ANY (next_fetch_v1.tasks))),
               CASE WHEN count(*) = c_looked_at THEN max(s.scheduled_at) END) INTO v_at
      FROM (SELECT j.scheduled_at, j.queue, j.task FROM pljobs.job AS j
             WHERE j.status = 'todo' AND j.waiting_for = 'schedule'
               AND EXISTS (SELECT FROM pljobs.worker AS w
                            WHERE w.id = next_fetch_v1.worker_id AND w.stopped_at IS NULL
                              AND w.tainted_at IS NULL)
             ORDER BY j.scheduled_at LIMIT c_looked_at) AS s;
    RETURN v_at - clock_timestamp();
END
$$;
COMMENT ON FUNCTION pljobs.next_fetch_v1(bigint, text[], text[])
    IS 'How long until a fetch may find something that it does not find now. Driver contract, version 1.';

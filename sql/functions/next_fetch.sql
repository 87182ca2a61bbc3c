CREATE OR REPLACE FUNCTION pljobs.next_fetch_v1(
    worker_id bigint, queues text[] DEFAULT NULL, tasks text[] DEFAULT NULL
) RETURNS interval
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
SET enable_sort = off
SET enable_bitmapscan = off
AS $$
-- How long until a fetch with these arguments may find something that it doesn't find now: until the next
-- job is due that waits for its schedule. Zero or less is 'now'; null: nothing is known of. A hint, after which
-- to fetch once more, besides polling: that job may be for other queues or tasks, or be gone by then. Reads
-- one entry of an index. Changes, locks and notifies nothing.
BEGIN
    RETURN (SELECT j.scheduled_at - clock_timestamp() FROM pljobs.job AS j
             WHERE j.status = 'todo' AND j.waiting_for = 'schedule'
             ORDER BY j.scheduled_at LIMIT 1);
END
$$;
COMMENT ON FUNCTION pljobs.next_fetch_v1(bigint, text[], text[])
    IS 'How long until a fetch may find something that it does not find now. Driver contract, version 1.';

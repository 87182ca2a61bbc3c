CREATE OR REPLACE FUNCTION pljobs._deliver_requests(request_ids bigint[], observed jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- Records that a worker hears of these open requests, at which level each of them is by now, and what the
-- worker has seen (see heartbeat_v1); from level 2 on cancels the run's SQL: until a statement was cancelled,
-- and from level 3 on again and again, but below that not what a task runs that is seen handling its abort.
-- Skips requests that somebody holds, or that are resolved by now. SQL that takes long to cancel ('busy') is
-- left to the next call. What a worker says of one connection ('pooled', 'denied') neither hides that another
-- one's statement was cancelled, nor keeps it from being so: 'denied' counts once SQL was tried.
DECLARE
    v_now timestamptz := clock_timestamp();
    v_ids bigint[];
    v_id bigint;
    v_seen record;
BEGIN
    -- num_nulls hides the predicate of the index of open requests: the way to these is the primary key. There
    -- each open one of all workers would be compared with each of these.
    v_ids := ARRAY(SELECT r.id FROM pljobs.request AS r WHERE r.id = ANY (_deliver_requests.request_ids)
                      AND num_nulls(r.resolved_at) = 1 ORDER BY r.id FOR NO KEY UPDATE SKIP LOCKED);
    -- Row by row: as a join, statistics may make this read all requests, or take the square of their number.
    FOR v_seen IN
        SELECT r.id, x.handling, x.sql, n.level
          FROM pljobs.request AS r
         CROSS JOIN LATERAL (
               SELECT CASE WHEN r.kill_at <= v_now THEN 4 WHEN r.term_at <= v_now THEN 3
                           WHEN r.sql_at <= v_now THEN 2 ELSE 1 END AS level) AS n
          LEFT JOIN pljobs._reports(_deliver_requests.observed) AS x ON x.run_id = r.run_id
         WHERE r.id = ANY (v_ids)
           AND (r.delivered_at IS NULL OR n.level > r.level OR x.sql IS NOT NULL
                OR x.handling <> coalesce(r.handling, ''))
    LOOP
        UPDATE pljobs.request AS r
           SET delivered_at = coalesce(r.delivered_at, v_now),
               level = greatest(v_seen.level, r.level),
               escalated_at = CASE WHEN v_seen.level > r.level THEN v_now ELSE r.escalated_at END,
               handling = coalesce(v_seen.handling, r.handling),
               sql_way = CASE WHEN r.sql_way IN ('server', 'worker') AND v_seen.sql IS DISTINCT FROM 'worker'
                                   THEN r.sql_way
                              WHEN v_seen.sql = 'denied'
                                   AND coalesce(r.sql_way, '') NOT IN ('asked', 'none', 'busy') THEN r.sql_way
                              WHEN v_seen.sql = 'none' THEN coalesce(r.sql_way, 'none')
                              ELSE coalesce(v_seen.sql, r.sql_way) END
         WHERE r.id = v_seen.id;
    END LOOP;

    FOR v_id IN
        SELECT r.id FROM pljobs.request AS r
         WHERE r.id = ANY (v_ids) AND r.level >= 2
           AND (r.level >= 3 OR coalesce(r.sql_way, '') NOT IN ('server', 'worker')
                            AND r.handling IS DISTINCT FROM 'handling')
         ORDER BY r.id
    LOOP
        EXIT WHEN clock_timestamp() > v_now + interval '2 s';
        PERFORM pljobs._cancel_sql_of_request(v_id);
    END LOOP;
END
$$;
COMMENT ON FUNCTION pljobs._deliver_requests(bigint[], jsonb)
    IS 'Records what a worker hears of open requests, and takes their next step.';

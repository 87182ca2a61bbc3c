CREATE OR REPLACE FUNCTION pljobs._set_throttle(
    scope text, name text, max_running integer, rate integer, period interval, burst integer
) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Sets one throttle, 'throttled'; or takes it away, 'unthrottled', 'unchanged' if there was none. What runs
-- already counts for it.
DECLARE
    c_longest CONSTANT interval := interval '10 years';
BEGIN
    IF (char_length(_set_throttle.name) BETWEEN 1 AND 255) IS NOT TRUE THEN
        RAISE EXCEPTION 'the name of a % has 1 to 255 characters',
            CASE _set_throttle.scope WHEN 'task' THEN 'task' ELSE 'queue' END USING ERRCODE = 'PJ004';
    ELSIF _set_throttle.max_running < 1 OR _set_throttle.rate < 1 OR _set_throttle.burst < 1 THEN
        RAISE EXCEPTION 'max_running, rate and burst must be at least 1' USING ERRCODE = 'PJ004',
            HINT = 'To let nothing start: SELECT pause_queue(...). Null means no limit.';
    ELSIF num_nulls(_set_throttle.rate, _set_throttle.period) = 1
       OR _set_throttle.rate IS NULL AND _set_throttle.burst IS NOT NULL THEN
        RAISE EXCEPTION 'a rate needs its period, and the other way round' USING ERRCODE = 'PJ004',
            HINT = 'For example: rate => 100, period => ''1 min''.';
    ELSIF _set_throttle.rate > 1000000
       -- Not compared as intervals: '-1 year 360 days 1 s' would be a second.
       OR extract(epoch FROM _set_throttle.period) NOT BETWEEN 1 AND extract(epoch FROM c_longest)
       OR _set_throttle.burst > 1000000
       OR extract(epoch FROM _set_throttle.period) * _set_throttle.burst / _set_throttle.rate
          > extract(epoch FROM c_longest) THEN
        RAISE EXCEPTION 'a rate is of 1 to 1000000 starts, a period of 1 s to 10 years, a burst of 1 to '
                        '1000000 starts, which come back within 10 years' USING ERRCODE = 'PJ004';
    END IF;
    PERFORM pljobs._require_flow();

    IF num_nonnulls(_set_throttle.max_running, _set_throttle.rate) = 0 THEN
        DELETE FROM pljobs.throttle AS t
         WHERE t.scope = _set_throttle.scope AND t.name = _set_throttle.name;
        RETURN CASE WHEN FOUND THEN 'unthrottled' ELSE 'unchanged' END;
    END IF;
    INSERT INTO pljobs.throttle AS t (scope, name, max_running, rate, period, burst, set_by, set_at)
    VALUES (_set_throttle.scope, _set_throttle.name, _set_throttle.max_running, _set_throttle.rate,
            _set_throttle.period, coalesce(_set_throttle.burst, _set_throttle.rate),
            pljobs._caller(), clock_timestamp())
        ON CONFLICT ON CONSTRAINT throttle_pkey
        DO UPDATE SET max_running = EXCLUDED.max_running, rate = EXCLUDED.rate, period = EXCLUDED.period,
                      burst = EXCLUDED.burst, set_by = EXCLUDED.set_by, set_at = EXCLUDED.set_at;
    UPDATE pljobs.job AS j SET throttled = true
     WHERE j.id = ANY (ARRAY(
           SELECT d.id FROM pljobs.job AS d
            WHERE d.status = 'doing' AND d.throttled IS NOT TRUE
              AND CASE _set_throttle.scope WHEN 'task' THEN d.task ELSE d.queue END = _set_throttle.name
            ORDER BY d.id FOR NO KEY UPDATE SKIP LOCKED));
    RETURN 'throttled';
END
$$;
COMMENT ON FUNCTION pljobs._set_throttle(text, text, integer, integer, interval, integer)
    IS 'Sets a throttle, or takes it away.';

CREATE OR REPLACE FUNCTION pljobs.throttle_queue_v1(
    queue text, max_running integer DEFAULT NULL, rate integer DEFAULT NULL, period interval DEFAULT NULL,
    burst integer DEFAULT NULL, each_key boolean DEFAULT false
) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- From the next fetch on at most max_running jobs of the queue run at once, and `rate` start per `period`,
-- over all workers: 'throttled'. With each_key the same of each fairness_key in the queue, beside what holds
-- for the queue as a whole. A call replaces what was set before; one without limits takes it away:
-- 'unthrottled', or 'unchanged'. The rate is a token bucket: after a quiet time up to `burst` jobs (null: as
-- many as the rate) start at once, then one each period / rate; so in any period at most burst + rate. Runs
-- that are being fetched right now may be one limit too many, and are counted from their next start on.
-- Raises PJ004 for limits below 1, a rate or burst above 1,000,000, a rate without its period, a period not
-- of 1 s to 10 years, a burst that takes longer to come back, or a name not of 1 to 255 characters; PJ013
-- while an index is missing. Locks the throttle; marks running jobs, skipping those that somebody holds.
-- Notifies the queue's workers.
DECLARE
    v_outcome text := pljobs._set_throttle(
        CASE WHEN throttle_queue_v1.each_key THEN 'key' ELSE 'queue' END, throttle_queue_v1.queue,
        throttle_queue_v1.max_running, throttle_queue_v1.rate, throttle_queue_v1.period,
        throttle_queue_v1.burst);
BEGIN
    PERFORM pljobs._notify_todo(ARRAY[throttle_queue_v1.queue]);
    RETURN v_outcome;
END
$$;
COMMENT ON FUNCTION pljobs.throttle_queue_v1(text, integer, integer, interval, integer, boolean)
    IS 'Limits what runs of a queue, or of each key in it. Driver contract, version 1.';

CREATE OR REPLACE FUNCTION pljobs.throttle_queue(
    queue text, max_running integer DEFAULT NULL, rate integer DEFAULT NULL, period interval DEFAULT NULL,
    burst integer DEFAULT NULL, each_key boolean DEFAULT false
) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- What throttle_queue_v1 does, for people.
BEGIN
    RETURN pljobs.throttle_queue_v1(throttle_queue.queue, throttle_queue.max_running, throttle_queue.rate,
                                    throttle_queue.period, throttle_queue.burst, throttle_queue.each_key);
END
$$;
COMMENT ON FUNCTION pljobs.throttle_queue(text, integer, integer, interval, integer, boolean)
    IS 'Limits what runs of a queue: SELECT throttle_queue(''mail'', max_running => 10, rate => 100, '
       'period => ''1 min'');';

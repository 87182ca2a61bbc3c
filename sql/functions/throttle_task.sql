CREATE OR REPLACE FUNCTION pljobs.throttle_task_v1(
    task text, max_running integer DEFAULT NULL, rate integer DEFAULT NULL, period interval DEFAULT NULL,
    burst integer DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- As throttle_queue_v1, of the jobs of a task, in whatever queues. Jobs of it that have to wait don't keep
-- others waiting: a fetch that meets them parks them (waiting_for 'limit'), and a later one starts them, by
-- priority, then id. Answers, raises and locks as throttle_queue_v1 does. Notifies nobody: what has become
-- free to run is seen at the next poll.
BEGIN
    RETURN pljobs._set_throttle('task', throttle_task_v1.task, throttle_task_v1.max_running,
                                throttle_task_v1.rate, throttle_task_v1.period, throttle_task_v1.burst);
END
$$;
COMMENT ON FUNCTION pljobs.throttle_task_v1(text, integer, integer, interval, integer)
    IS 'Limits what runs of a task. Driver contract, version 1.';

CREATE OR REPLACE FUNCTION pljobs.throttle_task(
    task text, max_running integer DEFAULT NULL, rate integer DEFAULT NULL, period interval DEFAULT NULL,
    burst integer DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- What throttle_task_v1 does, for people.
BEGIN
    RETURN pljobs.throttle_task_v1(throttle_task.task, throttle_task.max_running, throttle_task.rate,
                                   throttle_task.period, throttle_task.burst);
END
$$;
COMMENT ON FUNCTION pljobs.throttle_task(text, integer, integer, interval, integer)
    IS 'Limits what runs of a task: SELECT throttle_task(''resize'', max_running => 4);';

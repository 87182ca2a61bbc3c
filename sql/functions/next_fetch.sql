-- The helpers' plans are made under the settings of their caller.

CREATE OR REPLACE FUNCTION pljobs._waiting_keys(queue text, most integer) RETURNS TABLE (key text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- The keys of a queue that have jobs which run once their limits let them: '' of those without a key, up to
-- `most` in the order of their turns, and those of up to `most` jobs that are parked. A key may come twice.
BEGIN
    RETURN QUERY
    WITH RECURSIVE turn AS (
        (SELECT 1 AS nth, -j.priority AS place, j.fairness_key AS name FROM pljobs.job AS j
          WHERE j.status = 'todo' AND j.waiting_for = 'turn' AND j.queue = _waiting_keys.queue
          ORDER BY j.queue, -j.priority, j.fairness_key, j.id LIMIT 1)
        UNION ALL
        SELECT s.nth + 1, n.place, n.name
          FROM turn AS s
         CROSS JOIN LATERAL (
               SELECT -j.priority AS place, j.fairness_key AS name FROM pljobs.job AS j
                WHERE j.status = 'todo' AND j.waiting_for = 'turn' AND j.queue = _waiting_keys.queue
                  AND (j.queue, -j.priority, j.fairness_key) > (_waiting_keys.queue, s.place, s.name)
                ORDER BY j.queue, -j.priority, j.fairness_key, j.id LIMIT 1) AS n
         WHERE s.nth < _waiting_keys.most
    )
    -- As a range: else statistics could make this walk all queues' jobs.
    (SELECT '' FROM pljobs.job AS j
      WHERE j.status = 'todo' AND j.waiting_for IS NULL
        AND j.queue >= _waiting_keys.queue AND j.queue <= _waiting_keys.queue
      ORDER BY j.queue, -j.priority, j.id LIMIT 1)
    UNION ALL
    SELECT turn.name FROM turn
    UNION ALL
    (SELECT coalesce(j.fairness_key, '') FROM pljobs.job AS j
      WHERE j.status = 'todo' AND j.waiting_for = 'limit' AND j.queue = _waiting_keys.queue
      ORDER BY j.queue, j.task, -j.priority, j.id LIMIT _waiting_keys.most);
END
$$;
COMMENT ON FUNCTION pljobs._waiting_keys(text, integer) IS 'Keys of a queue that have jobs waiting.';

CREATE OR REPLACE FUNCTION pljobs._waits_for(scope text, name text, queues text[]) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- Whether jobs wait that the throttle of this queue or task holds back: of a task those are parked, in
-- `queues` (null: all).
BEGIN
    IF _waits_for.scope = 'queue' THEN
        RETURN EXISTS (SELECT FROM pljobs._waiting_keys(_waits_for.name, 1));
    END IF;
    RETURN EXISTS (
        SELECT FROM unnest(coalesce(_waits_for.queues, pljobs._queues_with_parked())) AS q(name)
         CROSS JOIN LATERAL (
               SELECT FROM pljobs.job AS j
                WHERE j.status = 'todo' AND j.waiting_for = 'limit' AND j.queue = q.name
                  AND j.task = _waits_for.name ORDER BY j.queue, j.task LIMIT 1) AS p);
END
$$;
COMMENT ON FUNCTION pljobs._waits_for(text, text, text[]) IS 'Whether a throttle holds jobs back.';

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
-- up, or was a second ago, lets one start of those that wait. Zero or less is 'now'; null: nothing is known,
-- or the worker gets nothing (not registered, stopped, tainted). A hint, after which to fetch once more,
-- besides polling: where the next hundred are for others, it says when the last of them is due; of the keys
-- that have jobs waiting in a queue it looks at a hundred; and that job may be gone by then. Changes, locks
-- and notifies nothing.
DECLARE
    c_looked_at CONSTANT integer := 100;
    -- So late may who asks be: a worker that finds nothing sleeps for some ms before it does.
    c_lately CONSTANT interval := interval '1 s';
    v_now timestamptz := clock_timestamp();
    v_from timestamptz := pljobs._hint_from('due');
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
             WHERE j.status = 'todo' AND j.waiting_for = 'schedule' AND j.scheduled_at >= v_from
             ORDER BY j.scheduled_at LIMIT c_looked_at) AS s;
    IF EXISTS (SELECT FROM pljobs.throttle) THEN
        -- In the FILTER, so that it is asked of those few alone whose next one starts soon.
        SELECT min(b.full_at - l.but_one) FILTER (
                   WHERE t.scope = 'key' OR pljobs._waits_for(t.scope, t.name, next_fetch_v1.queues))
          INTO v_token_at
          FROM pljobs.throttle AS t
         CROSS JOIN LATERAL (
               SELECT pljobs._lasts(t.burst - 1, t.rate, t.period) AS but_one,
                      pljobs._latest_full(t.burst, t.rate, t.period) AS latest OFFSET 0) AS l
         CROSS JOIN LATERAL (
               SELECT '' AS name WHERE t.scope <> 'key'
               UNION ALL
               SELECT w.key FROM pljobs._waiting_keys(t.name, c_looked_at) AS w WHERE t.scope = 'key') AS k
         CROSS JOIN LATERAL (
               SELECT c.full_at FROM pljobs.bucket AS c
                WHERE c.scope = t.scope AND c.name = t.name AND c.key = k.name AND c.set_at = t.set_at
                  AND c.full_at > v_now + l.but_one - c_lately AND c.full_at <= l.latest OFFSET 0) AS b
         WHERE t.rate IS NOT NULL
           AND CASE t.scope WHEN 'task' THEN (t.name = ANY (next_fetch_v1.tasks)) IS NOT FALSE
                            ELSE (t.name = ANY (next_fetch_v1.queues)) IS NOT FALSE END;
    END IF;
    RETURN least(v_at, v_token_at) - clock_timestamp();
END
$$;
COMMENT ON FUNCTION pljobs.next_fetch_v1(bigint, text[], text[])
    IS 'How long until a fetch may find something that it does not find now. Driver contract, version 1.';

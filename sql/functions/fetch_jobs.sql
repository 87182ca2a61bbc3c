CREATE OR REPLACE FUNCTION pljobs._may_fetch_from(queues text[], paused text[]) RETURNS text[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
SET enable_sort = off
SET enable_bitmapscan = off
AS $$
-- `queues` (null: all that have jobs to start) without the paused ones. Walks the index from queue to queue.
DECLARE
    v_queues text[] := _may_fetch_from.queues;
    v_more text[];
BEGIN
    IF v_queues IS NULL THEN
        WITH RECURSIVE ready AS (
            SELECT (SELECT j.queue FROM pljobs.job AS j
                     WHERE j.status = 'todo' AND j.waiting_for IS NULL ORDER BY j.queue LIMIT 1) AS name
            UNION ALL
            SELECT (SELECT j.queue FROM pljobs.job AS j
                     WHERE j.status = 'todo' AND j.waiting_for IS NULL AND j.queue > ready.name
                     ORDER BY j.queue LIMIT 1)
              FROM ready WHERE ready.name IS NOT NULL
        )
        SELECT array_agg(ready.name) INTO v_queues FROM ready;
        IF pljobs._flows() THEN
            WITH RECURSIVE turn AS (
                SELECT (SELECT j.queue FROM pljobs.job AS j
                         WHERE j.status = 'todo' AND j.waiting_for = 'turn' ORDER BY j.queue LIMIT 1) AS name
                UNION ALL
                SELECT (SELECT j.queue FROM pljobs.job AS j
                         WHERE j.status = 'todo' AND j.waiting_for = 'turn' AND j.queue > turn.name
                         ORDER BY j.queue LIMIT 1)
                  FROM turn WHERE turn.name IS NOT NULL
            )
            SELECT array_agg(turn.name) INTO v_more FROM turn;
            v_queues := v_queues || v_more || pljobs._queues_with_parked();
        END IF;
    END IF;
    RETURN ARRAY(SELECT DISTINCT q.name FROM unnest(v_queues) AS q(name)
                  WHERE q.name <> ALL (_may_fetch_from.paused));
END
$$;
COMMENT ON FUNCTION pljobs._may_fetch_from(text[], text[]) IS 'The queues that a worker may fetch from now.';

CREATE OR REPLACE FUNCTION pljobs._apart(worker_id bigint, job_ids bigint[]) RETURNS bigint[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- Of these jobs all that were lost less than twice; of the others the first, if the worker has started none
-- of them in the last minute. Jobs that are lost together are put back together, and would be fetched
-- together again: one that kills its workers would take its neighbours along to the third time, which ends
-- them. A minute at most, for a job may run for days.
BEGIN
    RETURN ARRAY(
        SELECT t.id
          FROM (SELECT u.id, u.place, j.suspect,
                       row_number() OVER (PARTITION BY j.suspect ORDER BY u.place) AS nth
                  FROM unnest(_apart.job_ids) WITH ORDINALITY AS u(id, place)
                 CROSS JOIN LATERAL (
                       SELECT c.crashes >= 2 AS suspect FROM pljobs.job AS c
                        WHERE c.id = u.id OFFSET 0) AS j) AS t
         WHERE NOT t.suspect OR t.nth = 1 AND NOT EXISTS (
               SELECT FROM pljobs.job AS d
                WHERE d.worker_id = _apart.worker_id AND d.status = 'doing' AND d.crashes >= 2
                  AND d.started_at > clock_timestamp() - interval '1 min')
         ORDER BY t.place);
END
$$;
COMMENT ON FUNCTION pljobs._apart(bigint, bigint[])
    IS 'Keeps jobs that were lost twice from starting together in one worker.';

CREATE OR REPLACE FUNCTION pljobs.fetch_jobs_v1(
    worker_id bigint, max_jobs integer DEFAULT 1, queues text[] DEFAULT NULL, tasks text[] DEFAULT NULL
) RETURNS TABLE (
    job_id bigint, run_id bigint, queue text, task text, priority integer, lock text, queueing_lock text,
    args jsonb, attempts integer, scheduled_at timestamptz, created_at timestamptz, started_at timestamptz,
    timeout interval, parent_id bigint
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
-- PL/pgSQL would plan LIMIT $n anew each time; no statistics, however stale, may turn the walk into a scan or
-- a sort; and the price that this puts on a plan must not start the JIT compiler.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
SET enable_sort = off
SET enable_bitmapscan = off
AS $$
-- todo -> doing, for up to max_jobs jobs that can run now: due, not paused, first of their lane if they have
-- a lock, within the throttles, in `queues` and among `tasks` (null: all), and in queues that the caller's
-- role is not kept from. Higher priority first, then lower id; but within a queue, jobs with a fairness_key
-- as it is their key's turn. Draws a run_id, counts the attempt, and returns what the worker
-- needs, in that order. Jobs that were lost with their workers twice are not started together: one after
-- the other, or one a minute. The worker must list each run in its heartbeats until its finish, and call
-- the first of them within `timeout`, if it has one. Cancels what has not started by its start_by
-- ('expired'), and jobs whose parent's tree was cancelled. A tainted worker gets nothing.
-- Skips rows that somebody holds; never waits for a row. Locks the lanes and trees it meets, without waiting;
-- waits, for a second at most, for other fetches from throttled queues, and returns nothing after that.
-- Raises PJ003 if the worker is not registered, its lease ran out, or it is another's and the caller's role
-- limited to queues; PJ004 for max_jobs below 1.
-- Notifies workers of a lane's head that nobody else would look for, and of what has become due and was left
-- to others. Call it in a short READ COMMITTED
-- transaction of its own.
DECLARE
    v_queues text[] := fetch_jobs_v1.queues;
    -- A variable: an index can't be searched for a volatile value.
    v_now timestamptz := clock_timestamp();
    v_allowed text[] := pljobs._allowed_queues('fetch');
    v_paused text[];
    v_flows boolean;
    v_in_turn boolean := false;                   -- keys take turns, or tasks have limits
    v_rooms integer[];                            -- how many of each queue may start; null: any number
    v_key text;                                   -- which walk a hint is about
    v_hint text[];
    v_slow_before boolean;                        -- whether there is one about this walk
    v_past text[];                                -- that, if its time is over
    v_since timestamptz;                          -- where a walk through times starts
    v_first timestamptz;                          -- and finds something
    v_from_priority integer;                      -- where the walk starts, as (-priority, id)
    v_from_id bigint;
    v_from_due boolean;                           -- which is before the hint
    v_began timestamptz;
    v_ms numeric;
    v_slow_ms numeric;
    v_want integer := least(fetch_jobs_v1.max_jobs, 100000);
    v_ahead integer := 50;
    v_heads bigint;                               -- how many of several queues it chose from
    v_ids bigint[];
    v_locks text[];
    v_parents bigint[];
    v_crashes integer;
    v_take bigint[];
    v_refused bigint[];                           -- what can't start now, and would be in the way of others
    v_tainted_at timestamptz;
    v_due bigint[];                               -- what it has made ready
    v_more bigint[];
    v_step integer;
BEGIN
    IF coalesce(fetch_jobs_v1.max_jobs, 0) < 1 THEN
        RAISE EXCEPTION 'max_jobs must be at least 1' USING ERRCODE = 'PJ004';
    END IF;
    SELECT w.tainted_at INTO v_tainted_at FROM pljobs.worker AS w
     WHERE w.id = fetch_jobs_v1.worker_id AND w.stopped_at IS NULL AND w.expires_at > clock_timestamp()
       AND (v_allowed IS NULL OR w.id = ANY (pljobs._own_workers()));
    IF NOT FOUND THEN
        RAISE EXCEPTION 'worker % is not registered', fetch_jobs_v1.worker_id USING ERRCODE = 'PJ003',
            HINT = 'Its lease ran out, or it was unregistered. '
                   'Call register_worker_v2 with its id, then fetch again.';
    ELSIF v_tainted_at IS NOT NULL THEN
        RETURN;
    END IF;
    v_began := clock_timestamp();
    v_since := pljobs._hint_from('due');
    SELECT j.scheduled_at INTO v_first FROM pljobs.job AS j
     WHERE j.status = 'todo' AND j.waiting_for = 'schedule'
       AND j.scheduled_at >= v_since AND j.scheduled_at <= v_now
     ORDER BY j.scheduled_at LIMIT 1;
    PERFORM pljobs._note_walk('due', v_began, v_since, coalesce(v_first, v_now));
    IF v_first IS NOT NULL THEN
        -- All that are due, for one queue's many must not keep another's few waiting; but not for long: the
        -- next fetch goes on. In few steps, for each walks past what those before it have made ready.
        v_step := greatest(2 * v_want, 100);
        LOOP
            v_more := pljobs._promote_due_jobs(v_step);
            v_due := v_due || v_more;
            EXIT WHEN cardinality(v_more) < v_step OR clock_timestamp() > v_now + interval '50 ms';
            v_step := least(10 * v_step, 10000);
        END LOOP;
    END IF;
    v_began := clock_timestamp();
    v_since := pljobs._hint_from('late');
    SELECT j.start_by INTO v_first FROM pljobs.job AS j
     WHERE j.status = 'todo' AND j.start_by >= v_since AND j.start_by <= v_now
     ORDER BY j.start_by LIMIT 1;
    PERFORM pljobs._note_walk('late', v_began, v_since, coalesce(v_first, v_now));
    IF v_first IS NOT NULL THEN
        PERFORM pljobs._expire_jobs(1000);
    END IF;
    -- Now: what has just become due may wait for its turn.
    v_flows := pljobs._flows();

    IF v_allowed IS NOT NULL THEN
        v_queues := ARRAY(SELECT a.name FROM unnest(v_allowed) AS a(name)
                           WHERE v_queues IS NULL OR a.name = ANY (v_queues));
    END IF;
    SELECT array_agg(q.name) INTO v_paused FROM pljobs.queue AS q WHERE q.paused_at IS NOT NULL;
    IF v_paused IS NOT NULL OR v_flows THEN
        v_queues := pljobs._may_fetch_from(v_queues, coalesce(v_paused, '{}'));
    END IF;
    IF v_flows THEN
        IF NOT pljobs._take_throttles(v_queues, fetch_jobs_v1.tasks) THEN
            PERFORM pljobs._notify_of(v_due, NULL);
            RETURN;
        END IF;
        SELECT q.names, q.rooms, q.in_turn INTO v_queues, v_rooms, v_in_turn
          FROM pljobs._open_queues(v_queues) AS q;
    END IF;
    v_key := hashtextextended(
        concat_ws('|', coalesce(v_queues::text, '*'), coalesce(fetch_jobs_v1.tasks::text, '*')), 0)::text;

    -- Up to 20 rounds: one that finds nothing but jobs of busy lanes parks them, and looks further.
    FOR v_round IN 1..20 LOOP
        -- While somebody holds an old snapshot, every walk passes the index entries of all the jobs that are
        -- done since. The session keeps a hint: walks were slow, and the last found its first row there. The
        -- next start there until its time is over (_hints.sql): so long may an older job wait that was put
        -- back, or woken. Not a more urgent one: that is asked for; nor one that this fetch has made ready.
        -- Nothing else depends on it. One that finds nothing there looks before it; if that was slow, and in
        -- vain, it does not again for a while.
        v_from_due := false;
        v_from_priority := -2147483648;
        v_from_id := 0;
        v_hint := string_to_array(current_setting('pljobs.fetch_hint', true), '|');
        v_slow_before := coalesce(v_hint[1] = v_key, false);
        IF NOT v_in_turn AND v_hint[1] = v_key AND pljobs._hint_holds(v_hint[4]) THEN
            SELECT f.place, f.id, f.is_due INTO v_from_priority, v_from_id, v_from_due
              FROM (SELECT v_hint[2]::integer AS place, v_hint[3]::bigint AS id, false AS is_due
                    UNION ALL
                    SELECT -j.priority, j.id, true FROM pljobs.job AS j
                     -- NOT DISTINCT: by the primary key, not by the order of the ready index.
                     WHERE j.id = ANY (v_due) AND j.status IS NOT DISTINCT FROM 'todo'
                       AND j.waiting_for IS NULL AND -j.priority = v_hint[2]::integer
                       AND (v_queues IS NULL OR j.queue = ANY (v_queues))
                       AND (fetch_jobs_v1.tasks IS NULL OR j.task = ANY (fetch_jobs_v1.tasks))) AS f
             ORDER BY f.id LIMIT 1;
            IF (CASE WHEN v_queues IS NULL THEN EXISTS (
                   SELECT FROM pljobs.job AS j
                    WHERE j.status = 'todo' AND j.waiting_for IS NULL AND -j.priority < v_from_priority
                      AND (fetch_jobs_v1.tasks IS NULL OR j.task = ANY (fetch_jobs_v1.tasks)))
               ELSE EXISTS (
                   SELECT FROM unnest(v_queues) AS q(name)
                    CROSS JOIN LATERAL (
                          SELECT FROM pljobs.job AS j
                           WHERE j.status = 'todo' AND j.waiting_for IS NULL AND j.queue <= q.name
                             AND (j.queue, -j.priority) >= (q.name, -2147483648)
                             AND (j.queue, -j.priority) < (q.name, v_from_priority)
                             AND (fetch_jobs_v1.tasks IS NULL OR j.task = ANY (fetch_jobs_v1.tasks))
                           ORDER BY j.queue, -j.priority, j.id LIMIT 1) AS h)
               END) THEN
                v_from_due := false;
                v_from_priority := -2147483648;
                v_from_id := 0;
                v_hint := NULL;
            END IF;
        ELSE
            v_past := CASE WHEN v_slow_before AND NOT v_in_turn THEN v_hint END;
            v_hint := NULL;
        END IF;

        v_began := clock_timestamp();
        IF v_in_turn THEN
            SELECT array_agg(c.id), array_agg(c.lock), array_agg(c.parent_id), max(c.crashes)
              INTO v_ids, v_locks, v_parents, v_crashes
              FROM pljobs._next_in_turn_but(
                   v_queues, v_rooms, fetch_jobs_v1.tasks, v_want, v_now, v_refused) AS c;
        ELSIF v_queues IS NULL THEN
            SELECT array_agg(c.id), array_agg(c.lock), array_agg(c.parent_id), max(c.crashes)
              INTO v_ids, v_locks, v_parents, v_crashes
              FROM (SELECT j.id, j.lock, j.parent_id, j.crashes FROM pljobs.job AS j
                     WHERE j.status = 'todo' AND j.waiting_for IS NULL
                       AND (-j.priority, j.id) >= (v_from_priority, v_from_id)
                       AND (j.start_by IS NULL OR j.start_by > v_now)
                       AND (fetch_jobs_v1.tasks IS NULL OR j.task = ANY (fetch_jobs_v1.tasks))
                     ORDER BY -j.priority, j.id LIMIT v_want FOR UPDATE SKIP LOCKED) AS c;
        ELSIF cardinality(v_queues) = 1 THEN
            -- The queue as a range, and first in the order: so that no statistics can make this walk all
            -- queues' jobs.
            SELECT array_agg(c.id), array_agg(c.lock), array_agg(c.parent_id), max(c.crashes)
              INTO v_ids, v_locks, v_parents, v_crashes
              FROM (SELECT j.id, j.lock, j.parent_id, j.crashes FROM pljobs.job AS j
                     WHERE j.status = 'todo' AND j.waiting_for IS NULL AND j.queue <= v_queues[1]
                       AND (j.queue, -j.priority, j.id) >= (v_queues[1], v_from_priority, v_from_id)
                       AND (j.start_by IS NULL OR j.start_by > v_now)
                       AND (fetch_jobs_v1.tasks IS NULL OR j.task = ANY (fetch_jobs_v1.tasks))
                       AND (v_refused IS NULL OR j.id NOT IN (SELECT x.id FROM unnest(v_refused) AS x(id)))
                     ORDER BY j.queue, -j.priority, j.id LIMIT least(v_want, v_rooms[1])
                       FOR UPDATE SKIP LOCKED) AS c;
        ELSE
            -- The heads of the queues whose first are first, merged, then locked in the merged order.
            WITH head AS MATERIALIZED (
                SELECT h.id
                  FROM (SELECT u.name, u.room
                          FROM (SELECT DISTINCT n.name, n.room
                                  FROM unnest(v_queues, v_rooms) AS n(name, room)) AS u
                         CROSS JOIN LATERAL (
                               SELECT -f.priority AS place, f.id FROM pljobs.job AS f
                                WHERE f.status = 'todo' AND f.waiting_for IS NULL
                                  AND f.queue <= u.name
                                  AND (f.queue, -f.priority, f.id)
                                      >= (u.name, v_from_priority, v_from_id)
                                  AND (f.start_by IS NULL OR f.start_by > v_now)
                                  AND (fetch_jobs_v1.tasks IS NULL
                                       OR f.task = ANY (fetch_jobs_v1.tasks))
                                  AND (v_refused IS NULL
                                       OR f.id NOT IN (
                                          SELECT x.id FROM unnest(v_refused) AS x(id)))
                                ORDER BY f.queue, -f.priority, f.id LIMIT 1) AS f
                         ORDER BY f.place, f.id LIMIT 2 * (v_want + v_ahead)) AS q
                 CROSS JOIN LATERAL (
                       SELECT t.id, -t.priority AS place FROM pljobs.job AS t
                        WHERE t.status = 'todo' AND t.waiting_for IS NULL AND t.queue <= q.name
                          AND (t.queue, -t.priority, t.id) >= (q.name, v_from_priority, v_from_id)
                          AND (t.start_by IS NULL OR t.start_by > v_now)
                          AND (fetch_jobs_v1.tasks IS NULL OR t.task = ANY (fetch_jobs_v1.tasks))
                          AND (v_refused IS NULL
                               OR t.id NOT IN (SELECT x.id FROM unnest(v_refused) AS x(id)))
                        ORDER BY t.queue, -t.priority, t.id
                        LIMIT least(v_want + v_ahead, q.room)) AS h
                 ORDER BY h.place, h.id
                 -- The last round sees as much of each queue: others may hold all of one.
                 LIMIT CASE WHEN v_ahead <= 10000 THEN 2 * (v_want + v_ahead) END
            )
            SELECT array_agg(c.id), array_agg(c.lock), array_agg(c.parent_id), max(c.crashes),
                   (SELECT count(*) FROM head)
              INTO v_ids, v_locks, v_parents, v_crashes, v_heads
              FROM (SELECT j.id, j.lock, j.parent_id, j.crashes
                      FROM pljobs.job AS j
                     -- NOT DISTINCT hides the predicate of the ready indexes: the way to these rows is the
                     -- primary key.
                     WHERE j.status IS NOT DISTINCT FROM 'todo' AND j.waiting_for IS NULL
                       -- Somebody may have moved it since.
                       AND j.queue = ANY (v_queues)
                       AND j.id = ANY (ARRAY(SELECT h.id FROM head AS h))
                     ORDER BY -j.priority, j.id LIMIT v_want FOR UPDATE SKIP LOCKED) AS c;
            -- Others may hold all that a throttle leaves room for: by turn, it finds those behind.
            IF coalesce(cardinality(v_ids), 0) < least(v_want, v_heads)
               AND array_remove(v_rooms, NULL) <> '{}' THEN
                v_in_turn := true;
                CONTINUE;
            END IF;
        END IF;
        v_ms := 1000 * extract(epoch FROM clock_timestamp() - v_began);
        v_slow_ms := 0.3 + 0.01 * v_want;

        IF v_ids IS NULL AND v_hint IS NOT NULL THEN
            IF v_hint[5] IS NOT NULL THEN
                -- With several queues: perhaps others held all that it looked at (below).
                EXIT WHEN coalesce(v_heads, 0) = 0 OR v_ahead > 10000;
                v_ahead := v_ahead * 16;
                CONTINUE;
            END IF;
            PERFORM set_config('pljobs.fetch_hint', concat_ws('|', v_key, v_hint[2], v_hint[3], 0), false);
            CONTINUE;
        ELSIF v_ids IS NULL THEN
            IF v_ms > v_slow_ms AND v_past IS NOT NULL THEN
                PERFORM set_config('pljobs.fetch_hint', concat_ws('|', v_key, v_past[2], v_past[3],
                            pljobs._hint_until(v_ms), 'nothing'), false);
            ELSIF v_past IS NOT NULL THEN
                PERFORM set_config('pljobs.fetch_hint', 'none', false);
            END IF;
            -- With several queues: perhaps others held all that it looked at. Look further ahead, then
            -- give up.
            EXIT WHEN v_in_turn OR coalesce(cardinality(v_queues), 0) < 2 OR v_ahead > 10000;
            v_ahead := v_ahead * 16;
            CONTINUE;
        END IF;
        IF NOT v_in_turn AND NOT v_from_due
           AND (v_ms > v_slow_ms OR v_ids[1] - v_from_id > 500 AND v_hint IS NOT NULL) THEN
            PERFORM set_config('pljobs.fetch_hint', concat_ws('|', v_key, -j.priority, j.id, CASE
                        WHEN v_hint IS NOT NULL THEN v_hint[4]
                        WHEN v_slow_before THEN pljobs._hint_until(v_ms, in_vain => (
                            (-j.priority, j.id) < (v_past[2]::integer, v_past[3]::bigint)) IS NOT TRUE)::text
                        ELSE '0' END, v_hint[5]), false)
               FROM pljobs.job AS j WHERE j.id = v_ids[1];
        ELSIF v_from_due AND cardinality(v_ids) >= v_want THEN
            -- The next one looks whether it has left some of what it had made ready.
            PERFORM set_config('pljobs.fetch_hint', concat_ws('|', v_key, v_hint[2], v_hint[3], 0), false);
        ELSIF v_past IS NOT NULL AND v_hint IS NULL THEN
            PERFORM set_config('pljobs.fetch_hint', 'none', false);
        END IF;

        v_take := v_ids;
        EXIT WHEN v_crashes < 2 AND cardinality(array_remove(v_locks || v_parents::text[], NULL)) = 0;
        IF cardinality(array_remove(v_locks, NULL)) > 0 THEN
            v_take := pljobs._claim_lanes(v_ids, v_locks);
        END IF;
        IF cardinality(array_remove(v_parents, NULL)) > 0 THEN
            v_take := pljobs._claim_children(v_take);
        END IF;
        IF v_crashes >= 2 THEN
            v_take := pljobs._apart(fetch_jobs_v1.worker_id, v_take);
        END IF;
        -- Where it saw all there was, one more round: it may have woken the head of a sleeping lane.
        -- Where a throttle leaves room for few, it has seen no more than these.
        EXIT WHEN v_take <> '{}' OR (cardinality(v_ids) < v_want AND v_round > 1 AND NOT v_flows);
        IF v_flows THEN
            v_refused := v_refused || v_ids;
        END IF;
        -- Twice as many: what it doesn't start, no other fetch can until this one commits.
        v_want := least(2 * v_want, greatest(v_want, 10000));
    END LOOP;

    IF v_take <> '{}' AND (SELECT t.last_value FROM pljobs.timeline AS t) <> pljobs._timeline() THEN
        PERFORM pljobs._jump_ahead();
    END IF;
    -- Who looked before these were due, and asks next_fetch_v1 only now, is told of no schedule any more.
    IF v_due <> '{}' THEN
        PERFORM pljobs._notify_of(v_due, v_take[1:fetch_jobs_v1.max_jobs]);
    END IF;
    IF v_flows THEN
        PERFORM pljobs._use_buckets(v_take[1:fetch_jobs_v1.max_jobs]);
    END IF;
    RETURN QUERY
    WITH started AS (
        UPDATE pljobs.job AS j
           SET status = 'doing', worker_id = fetch_jobs_v1.worker_id, run_id = nextval('pljobs.run_id'),
               started_at = clock_timestamp(), timeout_at = clock_timestamp() + j.timeout,
               attempts = j.attempts + 1, waiting_for = NULL,
               throttled = CASE WHEN v_flows THEN EXISTS (
                   SELECT FROM pljobs.throttle AS t
                    WHERE t.name = CASE t.scope WHEN 'task' THEN j.task ELSE j.queue END) END
         WHERE j.id = ANY (v_take[1:fetch_jobs_v1.max_jobs])
        RETURNING j.id, j.run_id, j.queue, j.task, j.priority, j.lock, j.queueing_lock, j.args, j.attempts,
                  j.scheduled_at, j.created_at, j.started_at, j.timeout, j.parent_id
    )
    SELECT s.id, s.run_id, s.queue, s.task, s.priority, s.lock, s.queueing_lock, s.args, s.attempts,
           s.scheduled_at, s.created_at, s.started_at, s.timeout, s.parent_id
      FROM started AS s ORDER BY -s.priority, s.id;
END
$$;
COMMENT ON FUNCTION pljobs.fetch_jobs_v1(bigint, integer, text[], text[])
    IS 'Starts up to max_jobs jobs and returns them. Driver contract, version 1.';

-- Flow control: keys take turns, throttles limit queues, keys and tasks over all workers. Jobs with a
-- fairness_key wait for their 'turn', and are started from there; jobs of a task that is at its limit are
-- parked (waiting_for 'limit') by the fetch that meets them, and started from there once there is room. What
-- runs is counted, what started lately is in the buckets: nothing has to be given back when a run ends, but
-- the tokens of one that never began.
--
-- A fetch takes the throttles that concern it (their transaction advisory locks) before it counts; who gives
-- tokens back does so last. Whoever holds a throttle waits for no row and no lane.
--
-- Fetches call these helpers, often, and finish_jobs_v1 the last of the buckets': the settings about plans
-- are theirs.

CREATE OR REPLACE FUNCTION pljobs._require_flow() RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- Raises PJ013 while an index that keys and throttles need is not made, or invalid.
DECLARE
    v_missing text;
BEGIN
    SELECT n.name INTO v_missing
      FROM unnest('{job_turn,job_limit,job_running_by_key,job_running_by_task}'::text[]) AS n(name)
      LEFT JOIN pg_index AS i ON i.indexrelid = to_regclass('pljobs.' || n.name) AND i.indisvalid
     WHERE i.indexrelid IS NULL ORDER BY 1 LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'fairness keys and throttles need index pljobs.%, which is not there yet', v_missing
            USING ERRCODE = 'PJ013', HINT = 'Nothing was changed. psql -f sql/indexes.sql makes it.';
    END IF;
END
$$;
COMMENT ON FUNCTION pljobs._require_flow() IS 'Raises while flow control lacks an index.';

CREATE OR REPLACE FUNCTION pljobs._flows() RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- Whether anything is throttled, waits for its turn, or is parked at a limit: the fetch that parked it may
-- have committed after its throttle was taken away.
BEGIN
    IF EXISTS (SELECT FROM pljobs.throttle) THEN
        RETURN true;
    END IF;
    -- Without its index a question would be a scan.
    RETURN EXISTS (SELECT FROM pg_index AS i
                    WHERE i.indexrelid = to_regclass('pljobs.job_turn') AND i.indisvalid)
           AND EXISTS (SELECT FROM pljobs.job AS j WHERE j.status = 'todo' AND j.waiting_for = 'turn')
        OR EXISTS (SELECT FROM pg_index AS i
                    WHERE i.indexrelid = to_regclass('pljobs.job_limit') AND i.indisvalid)
           AND EXISTS (SELECT FROM pljobs.job AS j WHERE j.status = 'todo' AND j.waiting_for = 'limit');
END
$$;
COMMENT ON FUNCTION pljobs._flows() IS 'Whether a fetch has to look at turns and throttles.';

CREATE OR REPLACE FUNCTION pljobs._queues_with_parked() RETURNS text[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_sort = off
SET enable_bitmapscan = off
SET jit = off
AS $$
-- The queues that have jobs parked at a limit. Walks the index from queue to queue.
BEGIN
    RETURN ARRAY(
        WITH RECURSIVE parked AS (
            SELECT (SELECT j.queue FROM pljobs.job AS j
                     WHERE j.status = 'todo' AND j.waiting_for = 'limit' ORDER BY j.queue LIMIT 1) AS name
            UNION ALL
            SELECT (SELECT j.queue FROM pljobs.job AS j
                     WHERE j.status = 'todo' AND j.waiting_for = 'limit' AND j.queue > parked.name
                     ORDER BY j.queue LIMIT 1)
              FROM parked WHERE parked.name IS NOT NULL
        )
        SELECT p.name FROM parked AS p WHERE p.name IS NOT NULL);
END
$$;
COMMENT ON FUNCTION pljobs._queues_with_parked() IS 'The queues that have jobs parked at a limit.';

CREATE OR REPLACE FUNCTION pljobs._notify_room(queues text[], tasks text[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_sort = off
SET enable_bitmapscan = off
SET jit = off
AS $$
-- Tells workers that throttled jobs of these queues and tasks have ended: there is room again, and whose job
-- it was may have no slot free. Of a task that has a limit, also those of other queues where jobs of it are
-- parked.
DECLARE
    v_limited text[] := ARRAY(SELECT t.name FROM pljobs.throttle AS t
                               WHERE t.scope = 'task' AND t.name = ANY (_notify_room.tasks));
    v_others text[];
BEGIN
    IF v_limited <> '{}' THEN
        SELECT array_agg(p.name) INTO v_others
          FROM unnest(pljobs._queues_with_parked()) AS p(name)
         WHERE p.name <> ALL (_notify_room.queues)
           AND (SELECT true FROM unnest(v_limited) AS t(name)
                 CROSS JOIN LATERAL (
                       SELECT FROM pljobs.job AS j
                        WHERE j.status = 'todo' AND j.waiting_for = 'limit' AND j.queue = p.name
                          AND j.task = t.name ORDER BY j.queue, j.task LIMIT 1) AS j LIMIT 1);
    END IF;
    PERFORM pljobs._notify_todo(_notify_room.queues || v_others);
END
$$;
COMMENT ON FUNCTION pljobs._notify_room(text[], text[]) IS 'Tells workers where throttled jobs have ended.';

CREATE OR REPLACE FUNCTION pljobs._notify_room_of(job_id bigint) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Tells workers of the room that a job leaves, if it was throttled. Its row still exists.
DECLARE
    v_job record;
BEGIN
    SELECT j.queue, j.task INTO v_job FROM pljobs.job AS j
     WHERE j.id = _notify_room_of.job_id AND j.throttled IS TRUE;
    IF FOUND THEN
        PERFORM pljobs._notify_room(ARRAY[v_job.queue], ARRAY[v_job.task]);
    END IF;
END
$$;
COMMENT ON FUNCTION pljobs._notify_room_of(bigint) IS 'Tells workers of the room that a job leaves.';

CREATE OR REPLACE FUNCTION pljobs._throttle_key(name text) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- The advisory lock of a throttle: one of 1,024, which leaves room in the server's table of locks; not those
-- of trees.
BEGIN
    RETURN 7205759020000 + (hashtextextended(_throttle_key.name, 7205759) & 1023);
END
$$;
COMMENT ON FUNCTION pljobs._throttle_key(text) IS 'The advisory lock key of a throttle.';

CREATE OR REPLACE FUNCTION pljobs._lasts(tokens bigint, rate integer, period interval) RETURNS interval
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- How long it takes until so many tokens of a rate have flowed in. In seconds, a month as 30 days, a year as
-- 365.25: as days or months, which are of different lengths, a time and the same time later would not tell
-- how many tokens lie between them.
BEGIN
    RETURN make_interval(
        secs => _lasts.tokens * (extract(epoch FROM _lasts.period)::double precision / _lasts.rate));
END
$$;
COMMENT ON FUNCTION pljobs._lasts(bigint, integer, interval) IS 'How long so many tokens of a rate last.';

CREATE OR REPLACE FUNCTION pljobs._latest_full(burst integer, rate integer, period interval)
RETURNS timestamptz
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- By when an empty bucket of this rate is full, and a second: one that says later was written while the clock
-- was ahead, and counts as full.
BEGIN
    RETURN clock_timestamp() + interval '1 s'
           + pljobs._lasts(_latest_full.burst, _latest_full.rate, _latest_full.period);
END
$$;
COMMENT ON FUNCTION pljobs._latest_full(integer, integer, interval) IS 'By when an empty bucket is full.';

CREATE OR REPLACE FUNCTION pljobs._take_throttles(queues text[], tasks text[]) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET lock_timeout = '1s'
AS $$
-- Takes the throttles of these queues, and of these tasks (null: of all), so that what is counted next holds
-- until the commit; in order of their keys. Waits for fetches that hold one; false if that took a second.
BEGIN
    PERFORM pg_advisory_xact_lock(k.key)
       FROM (SELECT DISTINCT pljobs._throttle_key(t.name) AS key
               FROM pljobs.throttle AS t
              WHERE CASE t.scope WHEN 'task' THEN (t.name = ANY (_take_throttles.tasks)) IS NOT FALSE
                                 ELSE t.name = ANY (_take_throttles.queues) END
              ORDER BY 1) AS k;
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END
$$;
COMMENT ON FUNCTION pljobs._take_throttles(text[], text[])
    IS 'Keeps others from starting what these throttles limit.';

CREATE OR REPLACE FUNCTION pljobs._room(scope text, name text, key text DEFAULT '') RETURNS integer
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- How many jobs more a throttle lets start now; null: any number. The caller has taken the throttle in an
-- earlier statement.
DECLARE
    v_throttle record;
    v_room integer;
    v_running integer;
    v_full_at timestamptz;
    v_each double precision;
BEGIN
    SELECT t.max_running, t.rate, t.burst, t.period, t.set_at INTO v_throttle
      FROM pljobs.throttle AS t WHERE t.scope = _room.scope AND t.name = _room.name;
    IF v_throttle.max_running IS NOT NULL THEN
        -- As ranges, and in their order: so that no statistics can make this walk all that runs.
        CASE _room.scope
            WHEN 'queue' THEN
                SELECT count(*)::integer INTO v_running
                  FROM (SELECT FROM pljobs.job AS j
                         WHERE j.status = 'doing' AND j.throttled
                           AND j.queue >= _room.name AND j.queue <= _room.name
                         ORDER BY j.queue LIMIT v_throttle.max_running) AS r;
            WHEN 'key' THEN
                SELECT count(*)::integer INTO v_running
                  FROM (SELECT FROM pljobs.job AS j
                         WHERE j.status = 'doing' AND j.throttled AND j.queue <= _room.name
                           AND (j.queue, coalesce(j.fairness_key, '')) >= (_room.name, _room.key)
                           AND (j.queue, coalesce(j.fairness_key, '')) <= (_room.name, _room.key)
                         ORDER BY j.queue, coalesce(j.fairness_key, '')
                         LIMIT v_throttle.max_running) AS r;
            WHEN 'task' THEN
                SELECT count(*)::integer INTO v_running
                  FROM (SELECT FROM pljobs.job AS j
                         WHERE j.status = 'doing' AND j.throttled
                           AND j.task >= _room.name AND j.task <= _room.name
                         ORDER BY j.task LIMIT v_throttle.max_running) AS r;
        END CASE;
        v_room := v_throttle.max_running - v_running;
    END IF;
    IF v_throttle.rate IS NOT NULL THEN
        SELECT b.full_at INTO v_full_at FROM pljobs.bucket AS b
         WHERE b.scope = _room.scope AND b.name = _room.name AND b.key = _room.key
           AND b.set_at = v_throttle.set_at
           AND b.full_at <= pljobs._latest_full(v_throttle.burst, v_throttle.rate, v_throttle.period);
        v_each := extract(epoch FROM v_throttle.period)::double precision / v_throttle.rate;
        -- What is lacking to a full bucket, in tokens; a microsecond is what a time may be off. One that
        -- rests for long would have more than an integer can be.
        v_room := least(v_room, greatest(0, least(v_throttle.burst, floor(v_throttle.burst - (
            coalesce(extract(epoch FROM v_full_at - clock_timestamp()), 0) - 0.000001) / v_each)))::integer);
    END IF;
    RETURN v_room;
END
$$;
COMMENT ON FUNCTION pljobs._room(text, text, text) IS 'How many jobs more a throttle lets start now.';

CREATE OR REPLACE FUNCTION pljobs._use_buckets(job_ids bigint[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Takes a token for each of these jobs from each bucket that it starts under. The caller has taken their
-- throttles, so nobody else makes these rows; but for those that were set since, which it tries to take, or
-- leaves alone. Does not wait for who is just forgetting a full one.
DECLARE
    v_now timestamptz := clock_timestamp();
    v_used record;
BEGIN
    FOR v_used IN
        SELECT t.scope, t.name, u.key, t.set_at, pljobs._lasts(count(*), t.rate, t.period) AS lasts,
               pljobs._latest_full(t.burst, t.rate, t.period) AS latest
          FROM pljobs.job AS j
         CROSS JOIN LATERAL (VALUES ('queue', j.queue, ''), ('key', j.queue, coalesce(j.fairness_key, '')),
                                    ('task', j.task, '')) AS u(scope, name, key)
          JOIN pljobs.throttle AS t ON t.scope = u.scope AND t.name = u.name AND t.rate IS NOT NULL
         WHERE j.id = ANY (_use_buckets.job_ids)
         GROUP BY t.scope, t.name, u.key, t.set_at, t.period, t.rate, t.burst
    LOOP
        CONTINUE WHEN NOT pg_try_advisory_xact_lock(pljobs._throttle_key(v_used.name));
        UPDATE pljobs.bucket AS b
           SET full_at = v_used.lasts
                         + CASE WHEN b.full_at <= v_used.latest THEN greatest(b.full_at, v_now) ELSE v_now END
         WHERE b.ctid = ANY (ARRAY(
               SELECT o.ctid FROM pljobs.bucket AS o
                WHERE o.scope = v_used.scope AND o.name = v_used.name AND o.key = v_used.key
                  AND o.set_at = v_used.set_at FOR NO KEY UPDATE SKIP LOCKED));
        IF NOT FOUND AND NOT EXISTS (
            SELECT FROM pljobs.bucket AS o
             WHERE o.scope = v_used.scope AND o.name = v_used.name AND o.key = v_used.key
               AND o.set_at = v_used.set_at
        ) THEN
            INSERT INTO pljobs.bucket AS b (scope, name, key, set_at, full_at)
            VALUES (v_used.scope, v_used.name, v_used.key, v_used.set_at, v_now + v_used.lasts);
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION pljobs._use_buckets(bigint[]) IS 'Counts the start of these jobs against their rates.';

CREATE OR REPLACE FUNCTION pljobs._refill_buckets(unused jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Gives back the tokens of runs that never began: `unused` has an object for each, with the queue, key, task
-- and started_at. They are put back as if each bucket had been full before: less what has flowed in since the
-- first of them started, which would then have found no room. So however late they come, and whatever has
-- started meanwhile, no more than burst + rate start in any period. Takes the throttles, after which the
-- caller waits for nothing; what others keep for a second stays used up.
DECLARE
    v_now timestamptz;
    v_back record;
BEGIN
    IF NOT pljobs._take_throttles(
        ARRAY(SELECT r.run ->> 'queue' FROM jsonb_array_elements(_refill_buckets.unused) AS r(run)),
        ARRAY(SELECT r.run ->> 'task' FROM jsonb_array_elements(_refill_buckets.unused) AS r(run))
    ) THEN
        RETURN;
    END IF;
    v_now := clock_timestamp();
    FOR v_back IN
        SELECT t.scope, t.name, u.key, t.set_at,
               pljobs._lasts(count(*), t.rate, t.period) - (v_now - min(r.started_at)) AS lasts
          FROM jsonb_to_recordset(_refill_buckets.unused) AS r(
               queue text, key text, task text, started_at timestamptz)
         CROSS JOIN LATERAL (VALUES ('queue', r.queue, ''), ('key', r.queue, r.key),
                                    ('task', r.task, '')) AS u(scope, name, key)
          JOIN pljobs.throttle AS t ON t.scope = u.scope AND t.name = u.name AND t.rate IS NOT NULL
         WHERE r.started_at > t.set_at
         GROUP BY t.scope, t.name, u.key, t.set_at, t.period, t.rate
        HAVING pljobs._lasts(count(*), t.rate, t.period) > v_now - min(r.started_at)
    LOOP
        UPDATE pljobs.bucket AS b SET full_at = b.full_at - v_back.lasts
         WHERE b.ctid = ANY (ARRAY(
               SELECT o.ctid FROM pljobs.bucket AS o
                WHERE o.scope = v_back.scope AND o.name = v_back.name AND o.key = v_back.key
                  AND o.set_at = v_back.set_at FOR NO KEY UPDATE SKIP LOCKED));
    END LOOP;
END
$$;
COMMENT ON FUNCTION pljobs._refill_buckets(jsonb) IS 'Takes back the starts of runs that never began.';

CREATE OR REPLACE FUNCTION pljobs._keys_after(
    queue text, place integer, after text, until text, most integer
) RETURNS TABLE (key text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- The keys of a queue that have jobs waiting for their turn at one place (-priority), in order: those above
-- `after`, up to `until` (null: to the last), at most `most`. One probe of the index each.
BEGIN
    RETURN QUERY
    WITH RECURSIVE step AS (
        SELECT 0 AS nth, _keys_after.place AS at, _keys_after.after COLLATE "C" AS name
        UNION ALL
        SELECT s.nth + 1, n.at, n.name
          FROM step AS s
         CROSS JOIN LATERAL (
               SELECT -j.priority AS at, j.fairness_key AS name FROM pljobs.job AS j
                WHERE j.status = 'todo' AND j.waiting_for = 'turn' AND j.queue <= _keys_after.queue
                  AND (j.queue, -j.priority, j.fairness_key) > (_keys_after.queue, s.at, s.name)
                ORDER BY j.queue, -j.priority, j.fairness_key, j.id LIMIT 1) AS n
         WHERE s.nth < _keys_after.most AND s.at = _keys_after.place
           AND (n.name <= _keys_after.until COLLATE "C") IS NOT FALSE
    )
    SELECT step.name FROM step WHERE step.nth > 0 AND step.at = _keys_after.place ORDER BY step.nth;
END
$$;
COMMENT ON FUNCTION pljobs._keys_after(text, integer, text, text, integer)
    IS 'Keys that have jobs waiting for their turn.';

CREATE OR REPLACE FUNCTION pljobs._cursor_of(queue text) RETURNS text
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- The session's setting that holds the key that had the last turn, among those of this place of this queue,
-- "<-priority> <queue>"; empty if jobs without a key had it. Those that share one only begin at another key.
BEGIN
    RETURN 'pljobs.turn_' || (hashtextextended(_cursor_of.queue, 0) & 4095);
END
$$;
COMMENT ON FUNCTION pljobs._cursor_of(text) IS 'Where a session notes whose turn it was.';

CREATE OR REPLACE FUNCTION pljobs._keys_with_room(queue text, keys text[]) RETURNS text[]
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Those of these keys, in their order, of which the throttle of the queue's keys lets something start: for
-- many at once what _room is for one.
DECLARE
    v_now timestamptz := clock_timestamp();
    v_throttle record;
    v_used_up timestamptz;                        -- a bucket that is full later than that has no token
    v_latest timestamptz;
BEGIN
    SELECT t.max_running, t.rate, t.burst, t.period, t.set_at INTO v_throttle
      FROM pljobs.throttle AS t WHERE t.scope = 'key' AND t.name = _keys_with_room.queue;
    IF NOT FOUND THEN
        RETURN _keys_with_room.keys;
    END IF;
    v_used_up := v_now + pljobs._lasts(v_throttle.burst - 1, v_throttle.rate, v_throttle.period)
                 + interval '1 us';
    v_latest := pljobs._latest_full(v_throttle.burst, v_throttle.rate, v_throttle.period);
    RETURN ARRAY(
        SELECT k.name FROM unnest(_keys_with_room.keys) WITH ORDINALITY AS k(name, ord)
         WHERE (v_throttle.rate IS NULL OR coalesce((
                   SELECT b.full_at <= v_used_up OR b.full_at > v_latest
                     FROM pljobs.bucket AS b
                    WHERE b.scope = 'key' AND b.name = _keys_with_room.queue AND b.key = k.name
                      AND b.set_at = v_throttle.set_at), true))
           -- As a range, and in its order, as _room has it.
           AND (v_throttle.max_running IS NULL OR v_throttle.max_running > (
                   SELECT count(*)
                     FROM (SELECT FROM pljobs.job AS j
                            WHERE j.status = 'doing' AND j.throttled AND j.queue <= _keys_with_room.queue
                              AND (j.queue, coalesce(j.fairness_key, '')) >= (_keys_with_room.queue, k.name)
                              AND (j.queue, coalesce(j.fairness_key, '')) <= (_keys_with_room.queue, k.name)
                            ORDER BY j.queue, coalesce(j.fairness_key, '')
                            LIMIT v_throttle.max_running) AS r))
         ORDER BY k.ord);
END
$$;
COMMENT ON FUNCTION pljobs._keys_with_room(text, text[])
    IS 'The keys of which the throttle of a queue''s keys lets something start.';

CREATE OR REPLACE FUNCTION pljobs._keys_in_turn(queue text, most integer)
RETURNS TABLE (place integer, key text, turn bigint)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- The keys of a queue that have jobs waiting for their turn and, where each key has a limit, room: at most
-- `most`, by priority; within one, from the key after the one that had its last turn in this session, and
-- round. So every session goes round. Besides, '' for jobs without a key, which begin each round: where it
-- has come to that. Where very many keys have no room, looking at all of them takes long:
-- who has done that, and found one in 20 at most and less than it wants, looks at 100 more than it wants, for
-- 10 times what it took, and goes on from there the next time.
DECLARE
    v_cursor text;
    v_first text;                                 -- the key that had the last turn; null: nobody had one yet
    v_rest_name text := pljobs._cursor_of(_keys_in_turn.queue) || '_rest';
    v_rest numeric := nullif(current_setting(v_rest_name, true), '')::numeric;
    v_began timestamptz := clock_timestamp();
    v_left integer := _keys_in_turn.most;
    v_looks integer;                              -- how many keys more it looks at; null: at all
    v_most integer;
    v_after text;
    v_until text;
    v_keys text[];
    v_seen text;
    v_looked integer := 0;
    v_turn bigint := 0::bigint;
    v_place integer;
BEGIN
    -- Not one that lasts longer than any does: the clock was set back.
    IF v_rest - extract(epoch FROM v_began) BETWEEN 0 AND 61 THEN
        v_looks := _keys_in_turn.most + 100;
    END IF;
    LOOP
        SELECT -j.priority INTO v_place FROM pljobs.job AS j
         WHERE j.status = 'todo' AND j.waiting_for = 'turn' AND j.queue <= _keys_in_turn.queue
           AND (j.queue, -j.priority) > (_keys_in_turn.queue, coalesce(v_place, -2147483648))
         ORDER BY j.queue, -j.priority, j.fairness_key, j.id LIMIT 1;
        EXIT WHEN NOT FOUND OR v_left <= 0 OR v_looks <= 0;
        v_cursor := pljobs._cursor_of(v_place || ' ' || _keys_in_turn.queue);
        v_first := current_setting(v_cursor, true);
        -- First those after the cursor; then the others, from the beginning.
        v_after := coalesce(v_first, '');
        v_until := NULL;
        IF v_first IS NULL THEN
            RETURN QUERY SELECT v_place, '', 2 * v_turn + 1;
        END IF;
        LOOP
            v_most := greatest(v_left, CASE WHEN v_seen IS NULL THEN 0 ELSE 100 END);
            v_keys := ARRAY(SELECT k.key FROM pljobs._keys_after(
                _keys_in_turn.queue, v_place, v_after, v_until, least(v_most, v_looks)) AS k);
            IF v_keys = '{}' THEN
                EXIT WHEN v_first IS NULL OR v_until IS NOT NULL;
                RETURN QUERY SELECT v_place, '', 2 * v_turn + 1;
                EXIT WHEN v_first = '';
                v_after := '';
                v_until := v_first;
                CONTINUE;
            END IF;
            v_looks := v_looks - cardinality(v_keys);
            v_looked := v_looked + cardinality(v_keys);
            v_after := v_keys[cardinality(v_keys)];
            v_seen := v_after;
            v_keys := (pljobs._keys_with_room(_keys_in_turn.queue, v_keys))[1:v_left];
            RETURN QUERY SELECT v_place, k.name, 2 * (v_turn + k.ord)
                           FROM unnest(v_keys) WITH ORDINALITY AS k(name, ord);
            v_left := v_left - cardinality(v_keys);
            v_turn := v_turn + cardinality(v_keys);
            EXIT WHEN v_left <= 0 OR v_looks <= 0;
        END LOOP;
    END LOOP;
    IF v_looks IS NOT NULL AND v_left = _keys_in_turn.most AND v_seen IS NOT NULL THEN
        PERFORM set_config(v_cursor, v_seen, false);
    ELSIF v_looks IS NULL AND v_left > 0 AND 20 * v_turn < v_looked
          AND clock_timestamp() - v_began > interval '10 ms' THEN
        PERFORM set_config(v_rest_name, (extract(epoch FROM clock_timestamp())
            + least(60, 10 * extract(epoch FROM clock_timestamp() - v_began)))::text, false);
    END IF;
END
$$;
COMMENT ON FUNCTION pljobs._keys_in_turn(text, integer) IS 'Keys in the order in which it is their turn.';

CREATE OR REPLACE FUNCTION pljobs._open_queues(
    queues text[], OUT names text[], OUT rooms integer[], OUT in_turn boolean
)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Those of these queues whose throttles let something start, with how many (null: any number); in_turn:
-- whether more than that is to be minded: keys, or a task's limit. The caller has taken the throttles in an
-- earlier statement.
BEGIN
    SELECT coalesce(array_agg(r.name), '{}'), array_agg(r.room), coalesce(bool_or(r.in_turn), false)
           OR EXISTS (SELECT FROM pljobs.throttle AS t WHERE t.scope = 'task')
      INTO names, rooms, in_turn
      FROM (SELECT u.name, CASE WHEN q.name IS NOT NULL THEN pljobs._room('queue', u.name) END AS room,
                   -- Not as EXISTS, of which statistics may make a set of all that wait.
                   coalesce((SELECT true FROM pljobs.job AS j
                              WHERE j.status = 'todo' AND j.waiting_for = 'turn' AND j.queue = u.name
                              ORDER BY j.queue, -j.priority, j.fairness_key, j.id LIMIT 1),
                            (SELECT true FROM pljobs.job AS j
                              WHERE j.status = 'todo' AND j.waiting_for = 'limit' AND j.queue = u.name
                              ORDER BY j.queue, j.task, -j.priority, j.id LIMIT 1),
                            EXISTS (SELECT FROM pljobs.throttle AS k
                                     WHERE k.scope = 'key' AND k.name = u.name)) AS in_turn
              FROM (SELECT DISTINCT x.name FROM unnest(_open_queues.queues) AS x(name)) AS u
              LEFT JOIN pljobs.throttle AS q ON q.scope = 'queue' AND q.name = u.name) AS r
     WHERE (r.room > 0) IS NOT FALSE;
END
$$;
COMMENT ON FUNCTION pljobs._open_queues(text[]) IS 'The queues that something may start of now.';

CREATE OR REPLACE FUNCTION pljobs._next_in_turn_but(
    queues text[], rooms integer[], tasks text[], want integer, at timestamptz, refused bigint[]
) RETURNS TABLE (id bigint, lock text, parent_id bigint, crashes integer)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- At most `want` jobs of these queues (with their rooms, as _open_queues has them) that can run now and for
-- which the throttles leave room, locked, in the order in which they are to start: by priority; in a queue
-- the keys take turns, each with its oldest (jobs without a key are one key of their own); between queues the
-- older first; none of `refused`. Of some 2,000 keys at most that have none of `tasks`: more of them at a
-- higher priority keep lower ones waiting; and some 2,000 parked jobs of keys at their limit those parked
-- behind them. What somebody holds takes no room from others. Parks what waits for a task that is at its
-- limit. The caller has taken the throttles in an earlier statement.
DECLARE
    v_ahead integer := 8;                          -- of what others may be starting at this moment
    v_refused bigint[] := coalesce(_next_in_turn_but.refused, '{}');
    v_found bigint;
    v_found_before bigint := -1::bigint;
    v_ids bigint[];
    v_queues text[];                               -- of each
    v_heads bigint[];                              -- all that it chose from
    v_held bigint[];                               -- of these, by others
    v_keys jsonb;
    v_cut boolean;                                 -- there are more keys than it has looked at
    v_parked_cut boolean;                          -- more parked jobs, where keys have limits, tasks room
    v_park bigint[];
    v_taken bigint[];
BEGIN
    -- Up to three rounds: one that finds less than was wanted looks further ahead, if the one before made a
    -- difference, or where parked jobs may hide those of other keys. More while others hold what there is
    -- room for.
    FOR v_round IN 1..10 LOOP
        WITH RECURSIVE task_room AS MATERIALIZED (
            SELECT t.name, pljobs._room('task', t.name) AS room FROM pljobs.throttle AS t
             WHERE t.scope = 'task' AND (t.name = ANY (_next_in_turn_but.tasks)) IS NOT FALSE
        ), queue AS MATERIALIZED (
            SELECT q.name, q.room, k.name IS NOT NULL AS by_key
              FROM unnest(_next_in_turn_but.queues, _next_in_turn_but.rooms) AS q(name, room)
              LEFT JOIN pljobs.throttle AS k ON k.scope = 'key' AND k.name = q.name
        ), parked AS MATERIALIZED (
            SELECT q.name AS queue, (
                   SELECT j.task FROM pljobs.job AS j
                    WHERE j.status = 'todo' AND j.waiting_for = 'limit' AND j.queue = q.name
                    ORDER BY j.queue, j.task, -j.priority, j.id LIMIT 1) AS task
              FROM queue AS q
            UNION ALL
            SELECT p.queue, (
                   SELECT j.task FROM pljobs.job AS j
                    WHERE j.status = 'todo' AND j.waiting_for = 'limit' AND j.queue = p.queue
                      AND j.task > p.task
                    ORDER BY j.queue, j.task, -j.priority, j.id LIMIT 1)
              FROM parked AS p WHERE p.task IS NOT NULL
        ), parked_head AS MATERIALIZED (
            SELECT h.id, h.place, h.key, p.task, p.queue, q.by_key,
                   count(*) OVER (PARTITION BY p.queue, p.task)
                       >= least(r.room, _next_in_turn_but.want) + v_ahead AS is_cut
              FROM parked AS p
              JOIN queue AS q ON q.name = p.queue
              LEFT JOIN task_room AS r ON r.name = p.task
             CROSS JOIN LATERAL (
                   SELECT j.id, -j.priority AS place, coalesce(j.fairness_key, '') AS key
                     FROM pljobs.job AS j
                    WHERE j.status = 'todo' AND j.waiting_for = 'limit' AND j.queue = p.queue
                      AND j.task = p.task AND (j.start_by IS NULL OR j.start_by > _next_in_turn_but.at)
                      AND j.id NOT IN (SELECT x.id FROM unnest(v_refused) AS x(id))
                    ORDER BY j.queue, j.task, -j.priority, j.id
                    LIMIT least(r.room, _next_in_turn_but.want) + v_ahead) AS h
             WHERE (r.room > 0) IS NOT FALSE AND p.task IS NOT NULL
               AND (_next_in_turn_but.tasks IS NULL OR p.task = ANY (_next_in_turn_but.tasks))
        ), round AS MATERIALIZED (
            SELECT q.name AS queue, q.by_key, k.place, k.key, k.turn
              FROM queue AS q
             CROSS JOIN LATERAL pljobs._keys_in_turn(
                   q.name, least(q.room, _next_in_turn_but.want) + v_ahead) AS k
        ), key_in_turn AS MATERIALIZED (
            SELECT k.queue, k.place, k.key, k.turn,
                   CASE WHEN k.by_key THEN pljobs._room('key', k.queue, k.key) END AS room,
                   1 + (_next_in_turn_but.want + v_ahead) / count(*) OVER (PARTITION BY k.queue) AS most
              FROM round AS k WHERE k.key <> ''
        ), head AS MATERIALIZED (
            -- Without a key; last where keys take turns and the round has not come to it. The queue as a
            -- range, and first in the order: so that no statistics can make this walk all queues' jobs.
            SELECT h.id, h.task, h.place, q.name AS queue, '' AS key,
                   CASE WHEN r.in_turn THEN k.turn ELSE 0 END AS turn, r.room, false AS is_parked
              FROM queue AS q
             CROSS JOIN LATERAL (
                   SELECT CASE WHEN q.by_key THEN pljobs._room('key', q.name) END AS room,
                          EXISTS (SELECT FROM round AS k WHERE k.queue = q.name) AS in_turn OFFSET 0) AS r
             CROSS JOIN LATERAL (
                   SELECT j.id, j.task, -j.priority AS place FROM pljobs.job AS j
                    WHERE j.status = 'todo' AND j.waiting_for IS NULL AND j.queue <= q.name
                      AND (j.queue, -j.priority, j.id) >= (q.name, -2147483648, 0)
                      AND (j.start_by IS NULL OR j.start_by > _next_in_turn_but.at)
                      AND (_next_in_turn_but.tasks IS NULL OR j.task = ANY (_next_in_turn_but.tasks))
                      AND j.id NOT IN (SELECT x.id FROM unnest(v_refused) AS x(id))
                    ORDER BY j.queue, -j.priority, j.id
                    LIMIT least(q.room, _next_in_turn_but.want) + v_ahead) AS h
              LEFT JOIN round AS k ON k.queue = q.name AND k.place = h.place AND k.key = ''
             WHERE (r.room > 0) IS NOT FALSE
            UNION ALL
            SELECT h.id, h.task, k.place, k.queue, k.key, k.turn, k.room, false
              FROM key_in_turn AS k
             CROSS JOIN LATERAL (
                   SELECT j.id, j.task FROM pljobs.job AS j
                    WHERE j.status = 'todo' AND j.waiting_for = 'turn' AND j.queue = k.queue
                      AND -j.priority = k.place AND j.fairness_key = k.key COLLATE "C"
                      AND (j.start_by IS NULL OR j.start_by > _next_in_turn_but.at)
                      AND (_next_in_turn_but.tasks IS NULL OR j.task = ANY (_next_in_turn_but.tasks))
                      AND j.id NOT IN (SELECT x.id FROM unnest(v_refused) AS x(id))
                    ORDER BY j.queue, -j.priority, j.fairness_key, j.id
                    LIMIT least(k.room + cardinality(v_refused), k.most)) AS h
             WHERE (k.room > 0) IS NOT FALSE
            UNION ALL
            -- The room of each key is asked for once: there may be 2,000 of one.
            SELECT h.id, h.task, h.place, h.queue, h.key, 0,
                   max(h.room) OVER (PARTITION BY h.queue, h.key), true
              FROM (SELECT p.id, p.task, p.place, p.queue, p.key,
                           CASE WHEN p.by_key AND row_number() OVER (PARTITION BY p.queue, p.key) = 1
                                THEN pljobs._room('key', p.queue, p.key) END AS room
                      FROM parked_head AS p) AS h
        ), by_key AS (
            SELECT h.id, h.task, h.place, h.queue, h.key, h.turn, h.room, h.is_parked,
                   row_number() OVER (PARTITION BY h.queue, h.key ORDER BY h.place, h.id) AS nth,
                   row_number() OVER (PARTITION BY h.queue, h.key, h.place ORDER BY h.id) AS lap
              FROM head AS h
        ), by_task AS MATERIALIZED (
            SELECT k.id, k.task, k.place, k.queue, k.key, k.turn, k.is_parked, k.lap, r.room,
                   row_number() OVER (PARTITION BY k.task ORDER BY k.place, k.lap, k.turn, k.id) AS nth
              FROM by_key AS k LEFT JOIN task_room AS r ON r.name = k.task
             WHERE (k.nth <= k.room) IS NOT FALSE
        ), by_queue AS (
            -- A queue has its place among the others by the oldest job that has run once this one does.
            SELECT t.id, t.place, t.queue, t.key, t.turn,
                   row_number() OVER (PARTITION BY t.queue ORDER BY t.place, t.lap, t.turn, t.id) AS nth,
                   max(t.id) OVER (PARTITION BY t.queue, t.place ORDER BY t.lap, t.turn, t.id) AS age
              FROM by_task AS t WHERE (t.nth <= t.room) IS NOT FALSE
        ), placed AS (
            SELECT b.id, b.place, b.queue, b.key, b.turn,
                   row_number() OVER (ORDER BY b.place, b.age, b.nth) AS nth
              FROM by_queue AS b JOIN queue AS q ON q.name = b.queue
             WHERE (b.nth <= q.room) IS NOT FALSE
        )
        SELECT count(*), (SELECT array_agg(t.id) FROM by_task AS t WHERE t.nth > t.room AND NOT t.is_parked),
               array_agg(p.id ORDER BY p.nth), array_agg(p.queue ORDER BY p.nth),
               EXISTS (SELECT FROM key_in_turn AS k JOIN queue AS q ON q.name = k.queue
                        GROUP BY q.name, q.room
                       HAVING count(*) >= least(q.room, _next_in_turn_but.want) + v_ahead),
               EXISTS (SELECT h.task FROM parked_head AS h WHERE h.by_key AND h.is_cut
                       EXCEPT SELECT t.task FROM by_task AS t WHERE t.nth >= t.room),
               -- The key of each place of a queue that has the last turn; where none could have one, the last
               -- one that was looked at. What was parked takes none.
               coalesce((SELECT jsonb_object_agg(k.place || ' ' || k.queue, k.key ORDER BY k.turn)
                           FROM key_in_turn AS k
                          WHERE (k.place, k.queue) NOT IN (
                                SELECT b.place, b.queue FROM by_queue AS b
                                 WHERE b.key <> '' AND b.turn > 0)), '{}')
               || coalesce(jsonb_object_agg(p.place || ' ' || p.queue, p.key ORDER BY p.nth)
                               FILTER (WHERE p.turn > 0 AND p.nth <= _next_in_turn_but.want), '{}'),
               (SELECT array_agg(h.id) FROM head AS h)
          INTO v_found, v_park, v_ids, v_queues, v_cut, v_parked_cut, v_keys, v_heads
          FROM placed AS p;
        UPDATE pljobs.job AS j SET waiting_for = 'limit'
         WHERE j.id = ANY (ARRAY(
               SELECT w.id FROM pljobs.job AS w
                WHERE w.id = ANY (v_park) AND w.status = 'todo'
                  AND (w.waiting_for IS NULL OR w.waiting_for = 'turn')
                ORDER BY w.id FOR NO KEY UPDATE SKIP LOCKED));
        v_taken := ARRAY(
            SELECT j.id FROM unnest(v_ids, v_queues) WITH ORDINALITY AS c(id, queue, ord)
              JOIN pljobs.job AS j ON j.id = c.id
             -- NOT DISTINCT hides the predicate of the partial indexes: the way to these rows is the primary
             -- key. By ANY, for where the planner believes in one row the join alone may walk all there are.
             WHERE j.id = ANY (v_ids) AND j.status IS NOT DISTINCT FROM 'todo'
               AND coalesce(j.waiting_for, 'turn') NOT IN ('schedule', 'lock')
               -- Somebody may have moved it since.
               AND j.queue = c.queue
             ORDER BY c.ord LIMIT _next_in_turn_but.want FOR UPDATE OF j SKIP LOCKED);
        EXIT WHEN cardinality(v_taken) >= _next_in_turn_but.want;
        -- What somebody holds uses up no room.
        v_held := '{}';
        IF cardinality(v_taken) < v_found AND EXISTS (
            SELECT FROM pljobs.throttle AS t
             WHERE t.scope = 'task' OR t.name = ANY (_next_in_turn_but.queues)
        ) THEN
            v_held := ARRAY(
                SELECT h.id FROM unnest(v_heads) AS h(id)
                EXCEPT
                SELECT f.id FROM (SELECT j.id FROM pljobs.job AS j
                                   WHERE j.id = ANY (v_heads) AND j.status IS NOT DISTINCT FROM 'todo'
                                     FOR UPDATE SKIP LOCKED) AS f);
            v_refused := v_refused || v_held;
        END IF;
        EXIT WHEN v_held = '{}' AND (v_round >= 3 OR v_found = v_found_before AND NOT v_parked_cut
                                     AND (v_found > 0 OR v_park IS NULL AND NOT v_cut));
        v_found_before := v_found;
        v_ahead := least(v_ahead * 16, 2048);
    END LOOP;
    PERFORM set_config(pljobs._cursor_of(k.place), k.key, false)
       FROM jsonb_each_text(v_keys) AS k(place, key);
    RETURN QUERY
    SELECT j.id, j.lock, j.parent_id, j.crashes
      FROM unnest(v_taken) WITH ORDINALITY AS c(id, ord)
     CROSS JOIN LATERAL (
           SELECT t.id, t.lock, t.parent_id, t.crashes FROM pljobs.job AS t WHERE t.id = c.id OFFSET 0) AS j
     ORDER BY c.ord;
END
$$;
COMMENT ON FUNCTION pljobs._next_in_turn_but(text[], integer[], text[], integer, timestamptz, bigint[])
    IS 'Locks the jobs that are to start next, as turns and throttles have it.';

CREATE OR REPLACE FUNCTION pljobs._next_in_turn(
    queues text[], rooms integer[], tasks text[], want integer, at timestamptz
) RETURNS TABLE (id bigint, lock text, parent_id bigint, crashes integer)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- What _next_in_turn_but does with none refused: for fetches of 0.3.0 that an upgrade overtakes.
BEGIN
    RETURN QUERY SELECT n.id, n.lock, n.parent_id, n.crashes
                   FROM pljobs._next_in_turn_but(
                        _next_in_turn.queues, _next_in_turn.rooms, _next_in_turn.tasks, _next_in_turn.want,
                        _next_in_turn.at, NULL) AS n;
END
$$;
COMMENT ON FUNCTION pljobs._next_in_turn(text[], integer[], text[], integer, timestamptz)
    IS 'Locks the jobs that are to start next, as turns and throttles have it.';

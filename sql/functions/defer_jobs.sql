CREATE OR REPLACE FUNCTION pljobs._refuse_queueing_locks(jobs jsonb, added bigint[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- Raises PJ001 if a waiting job holds the queueing lock of one of these jobs. `added`: null before they are
-- inserted; afterwards those that were, and then there is one that was not.
DECLARE
    v_held record;
BEGIN
    SELECT g.queueing_lock, j.id, j.id = ANY (_refuse_queueing_locks.added) AS is_added INTO v_held
      FROM (SELECT a.queueing_lock, count(*) AS times
              FROM jsonb_to_recordset(_refuse_queueing_locks.jobs) AS a(queueing_lock text)
             WHERE a.queueing_lock IS NOT NULL GROUP BY a.queueing_lock OFFSET 0) AS g
      LEFT JOIN LATERAL (  -- one by one, by the index
           SELECT w.id FROM pljobs.job AS w
            WHERE w.queueing_lock = g.queueing_lock AND w.status = 'todo' LIMIT 1) AS j ON true
     WHERE CASE WHEN _refuse_queueing_locks.added IS NULL THEN j.id IS NOT NULL
                ELSE (j.id = ANY (_refuse_queueing_locks.added)) IS NOT TRUE OR g.times > 1 END
     ORDER BY (j.id = ANY (_refuse_queueing_locks.added)) IS TRUE, g.queueing_lock LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'queueing lock % is %', quote_literal(v_held.queueing_lock),
            CASE WHEN v_held.is_added THEN 'asked for by two jobs of this call'
                 WHEN v_held.id IS NULL THEN 'held by a job that starts at this moment'
                 ELSE format('held by waiting job %s', v_held.id) END
            USING ERRCODE = 'PJ001',
                  HINT = 'Nothing was deferred. That job will run; '
                         'defer again once it has started, if it must run again.';
    END IF;
END
$$;
COMMENT ON FUNCTION pljobs._refuse_queueing_locks(jsonb, bigint[])
    IS 'Refuses jobs whose queueing lock a waiting job holds.';

CREATE OR REPLACE FUNCTION pljobs.defer_jobs_v1(jobs jsonb, notify boolean DEFAULT true) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- - -> todo, for each element of a JSON array of objects {"task", "args", "queue", "priority", "lock",
-- "queueing_lock", "scheduled_at", "scheduled_in", "start_by", "start_within", "timeout", "grace",
-- "on_cancelled", "parent_id"}, of which only the task is required (queue 'default', priority 0, args {}).
-- start_by: when not started by then, the job is cancelled. timeout: a run that takes longer is asked to
-- abort, and stopped by force after `grace` (null: 10 s). on_cancelled: the task to defer if the job is
-- cancelled or aborted. parent_id: the job that defers it; cancel_tree takes both. Of the pairs "..._at" and
-- "..._in", "start_by" and "start_within" at most one; scheduled_in and start_within are intervals, from now
-- and from when the job is due, by the database's clock, and not negative.
-- Returns the ids in the order given. All or none: raises PJ002 for a job that can't be deferred, naming its
-- place and what is wrong with it; PJ001 if a waiting job holds the queueing lock, or two of the call ask for
-- one; PJ007 if the tree of a parent was cancelled; PJ010 for a queue that the caller's role may not defer
-- to. Locks nothing; waits only for a transaction that is inserting the same queueing lock.
-- Notifies pljobs_todo, one message a queue, unless notify is false or the jobs can't run within a minute: a
-- worker that sleeps until later has to hear of what is due before.
DECLARE
    -- What every client can read.
    c_earliest CONSTANT timestamptz := timestamptz '0001-01-02 00:00+00';
    c_latest CONSTANT timestamptz := timestamptz '9999-12-30 00:00+00';
    c_shortest CONSTANT interval := interval '1 ms';
    c_longest CONSTANT interval := interval '10 years';
    v_now timestamptz := clock_timestamp();
    v_by text := pljobs._caller();
    v_bad record;
    v_job jsonb;
    v_queue text;
    v_id bigint;
    v_ids bigint[];
    v_queues text[];
    v_parents bigint[];
BEGIN
    IF defer_jobs_v1.jobs IS NULL OR jsonb_typeof(defer_jobs_v1.jobs) <> 'array' THEN
        RAISE EXCEPTION 'jobs must be a JSON array of objects' USING ERRCODE = 'PJ002',
            HINT = 'One object a job: {"task": "...", "args": {...}}.';
    END IF;
    v_job := defer_jobs_v1.jobs -> 0;
    IF jsonb_array_length(defer_jobs_v1.jobs) = 1 AND jsonb_typeof(v_job) = 'object' THEN
        -- One plain job, as most calls have it, for half of what it would cost below. Whatever else it has or
        -- lacks is looked at there.
        v_queue := coalesce(v_job ->> 'queue', 'default');
        IF v_job - '{task,queue,priority,args}'::text[] = '{}'
           AND char_length(v_job ->> 'task') BETWEEN 1 AND 255 AND char_length(v_queue) BETWEEN 1 AND 255
           AND coalesce(v_job ->> 'priority', '0') ~ '^-?[0-9]{1,9}$'
           AND jsonb_typeof(coalesce(v_job -> 'args', '{}')) = 'object'
           AND octet_length((v_job -> 'args')::text) <= 1048576 IS NOT FALSE
           AND NOT EXISTS (SELECT FROM pljobs.queue_limit AS l WHERE l.verb = 'defer') THEN
            INSERT INTO pljobs.job (task, args, queue, priority, created_at, deferred_by)
            VALUES (v_job ->> 'task', coalesce(v_job -> 'args', '{}'), v_queue,
                    coalesce((v_job ->> 'priority')::integer, 0), v_now, v_by)
            RETURNING id INTO v_id;
            IF defer_jobs_v1.notify IS NOT FALSE THEN
                PERFORM pljobs._notify_todo(ARRAY[v_queue]);
            END IF;
            RETURN ARRAY[v_id];
        END IF;
    END IF;

    BEGIN
        SELECT v.ord, v.task, v.what INTO v_bad FROM (
          SELECT g.ord, g.task, CASE
                     WHEN g.task IS NULL THEN 'has no task'
                     WHEN NOT char_length(g.task) BETWEEN 1 AND 255 THEN 'task must have 1 to 255 characters'
                     WHEN NOT char_length(g.queue) BETWEEN 1 AND 255
                          THEN 'queue must have 1 to 255 characters'
                     WHEN NOT char_length(g.lock) BETWEEN 1 AND 255 THEN 'lock must have 1 to 255 characters'
                     WHEN NOT char_length(g.queueing_lock) BETWEEN 1 AND 255
                          THEN 'queueing_lock must have 1 to 255 characters'
                     WHEN jsonb_typeof(g.args) <> 'object'
                          THEN 'args must be a JSON object, not ' || jsonb_typeof(g.args)
                     -- As text, for so it is sent to a worker: 1e131000 is a few bytes of jsonb.
                     WHEN octet_length(g.args::text) > 1048576
                          THEN format('args have %s bytes; at most 1 MiB (1048576) is accepted',
                                      octet_length(g.args::text))
                     WHEN g.priority = -2147483648 THEN 'priority must be above -2147483648'
                     WHEN num_nonnulls(g.scheduled_at, g.scheduled_in) = 2
                          THEN 'give scheduled_at or scheduled_in, not both'
                     WHEN v_now + g.scheduled_in < v_now THEN 'scheduled_in must not be negative'
                     WHEN coalesce(g.scheduled_at, v_now + g.scheduled_in) NOT BETWEEN c_earliest AND c_latest
                          THEN 'its time must be in the years 1 to 9999'
                     WHEN num_nonnulls(g.start_by, g.start_within) = 2
                          THEN 'give start_by or start_within, not both'
                     WHEN v_now + g.start_within < v_now THEN 'start_within must not be negative'
                     WHEN coalesce(g.start_by, v_now + g.start_within) NOT BETWEEN c_earliest AND c_latest
                          THEN 'start_by must be in the years 1 to 9999'
                     WHEN g.start_by <= coalesce(g.scheduled_at, v_now + g.scheduled_in)
                          THEN 'start_by must be later than its schedule'
                     -- Compared both ways: '1 month -30 days' is another length each time it is added.
                     WHEN g.timeout NOT BETWEEN c_shortest AND c_longest
                       OR v_now + g.timeout NOT BETWEEN v_now AND v_now + 2 * c_longest
                          THEN 'timeout must be 1 ms to 10 years'
                     WHEN g.grace NOT BETWEEN interval '0' AND c_longest
                       OR v_now + g.grace NOT BETWEEN v_now AND v_now + 2 * c_longest
                          THEN 'grace must be 0 to 10 years'
                     WHEN NOT char_length(g.on_cancelled) BETWEEN 1 AND 255
                          THEN 'on_cancelled must have 1 to 255 characters'
                     WHEN NOT char_length(g.fairness_key) BETWEEN 1 AND 255
                          THEN 'fairness_key must have 1 to 255 characters'
                 END AS what
            FROM ROWS FROM (jsonb_to_recordset(defer_jobs_v1.jobs) AS (
                     task text, args jsonb, queue text, priority integer, lock text, queueing_lock text,
                     scheduled_at timestamptz, scheduled_in interval, start_by timestamptz,
                     start_within interval, timeout interval, grace interval, on_cancelled text,
                     parent_id bigint, fairness_key text))
                 WITH ORDINALITY
                 AS g(task, args, queue, priority, lock, queueing_lock, scheduled_at, scheduled_in, start_by,
                      start_within, timeout, grace, on_cancelled, parent_id, fairness_key, ord)
        ) AS v
         WHERE v.what IS NOT NULL ORDER BY v.ord LIMIT 1;
    EXCEPTION WHEN data_exception THEN
        RAISE EXCEPTION 'jobs can''t be deferred: %', SQLERRM USING ERRCODE = 'PJ002',
            HINT = 'Nothing was deferred. One object a job: {"task": "...", "args": {...}}.';
    END;
    IF FOUND THEN
        RAISE EXCEPTION 'job % of the call (task %) can''t be deferred: %',
            v_bad.ord, quote_nullable(left(v_bad.task, 255)), v_bad.what
            USING ERRCODE = 'PJ002', HINT = 'Nothing was deferred.';
    END IF;
    IF EXISTS (SELECT FROM pljobs.queue_limit AS l WHERE l.verb = 'defer') THEN
        PERFORM pljobs._refuse_queues('defer', ARRAY(
            SELECT coalesce(g.queue, 'default') FROM jsonb_to_recordset(defer_jobs_v1.jobs) AS g(queue text)),
            'nothing was deferred');
    END IF;
    IF defer_jobs_v1.jobs @? '$[*].fairness_key ? (@ != null)' THEN
        PERFORM pljobs._require_flow();
    END IF;
    -- Where most calls find the lock held, none should draw an id and leave a dead row. Only by a snapshot of
    -- now: an older one shows a job waiting that has started since.
    IF defer_jobs_v1.jobs @? '$[*].queueing_lock ? (@ != null)'
       AND current_setting('transaction_isolation') = 'read committed' THEN
        PERFORM pljobs._refuse_queueing_locks(defer_jobs_v1.jobs, NULL);
    END IF;

    WITH added AS (
        INSERT INTO pljobs.job (id, task, args, queue, priority, lock, queueing_lock, scheduled_at,
                                start_by, timeout, grace, on_cancelled, parent_id, fairness_key,
                                waiting_for, created_at, deferred_by)
        OVERRIDING SYSTEM VALUE
        SELECT g.id, g.task, coalesce(g.args, '{}'), coalesce(g.queue, 'default'), coalesce(g.priority, 0),
               g.lock, g.queueing_lock, coalesce(g.scheduled_at, v_now + g.scheduled_in),
               coalesce(g.start_by, CASE WHEN g.start_within IS NOT NULL THEN least(c_latest,
                        greatest(v_now, g.scheduled_at, v_now + g.scheduled_in) + g.start_within) END),
               g.timeout, g.grace, g.on_cancelled, g.parent_id, g.fairness_key,
               CASE WHEN coalesce(g.scheduled_at, v_now + g.scheduled_in) > v_now THEN 'schedule'
                    -- The others of a lane queue up behind the first of this call: one commit, so no wake-up
                    -- is lost.
                    WHEN g.lock IS NOT NULL
                     AND row_number() OVER (PARTITION BY g.lock
                                            ORDER BY coalesce(g.priority, 0) DESC, g.ord) > 1
                         THEN 'lock'
                    WHEN g.fairness_key IS NOT NULL THEN 'turn'
               END,
               v_now, v_by
          FROM (SELECT x.*, nextval('pljobs.job_id_seq') AS id
                  FROM ROWS FROM (jsonb_to_recordset(defer_jobs_v1.jobs) AS (
                           task text, args jsonb, queue text, priority integer, lock text, queueing_lock text,
                           scheduled_at timestamptz, scheduled_in interval, start_by timestamptz,
                           start_within interval, timeout interval, grace interval, on_cancelled text,
                           parent_id bigint, fairness_key text))
                       WITH ORDINALITY
                       AS x(task, args, queue, priority, lock, queueing_lock, scheduled_at, scheduled_in,
                            start_by, start_within, timeout, grace, on_cancelled, parent_id, fairness_key,
                            ord)
                 ORDER BY x.ord) AS g
         -- In order of queueing lock: two calls that ask for the same ones must not wait for each other.
         ORDER BY g.queueing_lock, g.ord
        -- By whatever index: while one is rebuilt there are two.
        ON CONFLICT DO NOTHING
        RETURNING id, queue, waiting_for, scheduled_at, parent_id
    )
    SELECT coalesce(array_agg(a.id ORDER BY a.id), '{}'),
           array_agg(DISTINCT a.queue) FILTER (
               WHERE a.waiting_for IS NULL OR a.waiting_for = 'turn'
                  OR a.waiting_for = 'schedule' AND a.scheduled_at < v_now + interval '1 min'),
           array_agg(DISTINCT a.parent_id) FILTER (WHERE a.parent_id IS NOT NULL)
      INTO v_ids, v_queues, v_parents FROM added AS a;

    IF cardinality(v_ids) < jsonb_array_length(defer_jobs_v1.jobs) THEN
        IF (SELECT s.last_value FROM pljobs.job_id_seq AS s)
           >= (SELECT max(j.id) FROM pljobs.job AS j) THEN
            PERFORM pljobs._refuse_queueing_locks(defer_jobs_v1.jobs, v_ids);
        END IF;
        RAISE EXCEPTION 'pljobs.job_id_seq draws ids that jobs have already' USING ERRCODE = '23505',
            HINT = 'Nothing was deferred. As the owner of the schema: SELECT setval(''pljobs.job_id_seq'', '
                   '(SELECT max(id) FROM pljobs.job));';
    END IF;
    -- A courtesy: what commits at the same time as the cancellation is met by fetch_jobs_v1.
    IF v_parents IS NOT NULL THEN
        v_parents := ARRAY(SELECT t.job_id FROM pljobs.closed_tree AS t WHERE t.job_id = ANY (v_parents));
        IF v_parents <> '{}' THEN
            RAISE EXCEPTION 'job % can''t defer jobs: its tree was cancelled', v_parents[1]
                USING ERRCODE = 'PJ007', HINT = 'Nothing was deferred. Jobs without a parent can be.';
        END IF;
    END IF;
    IF defer_jobs_v1.notify IS NOT FALSE THEN
        PERFORM pljobs._notify_todo(v_queues);
    END IF;
    RETURN v_ids;
END
$$;
COMMENT ON FUNCTION pljobs.defer_jobs_v1(jsonb, boolean)
    IS 'Defers many jobs, all or none, and returns their ids in the order given. Driver contract, version 1.';

CREATE OR REPLACE FUNCTION pljobs.defer_jobs_v2(jobs jsonb, notify boolean DEFAULT true)
RETURNS TABLE (job_id bigint, is_new boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- What defer_jobs_v1 does, for objects that may have an "idempotency_key" besides, of 1 to 255 characters;
-- answers a row for each, in the order given. The first job that a role defers under a key is deferred. When
-- that role comes with the key again, nothing is: it is answered the same id, is_new false, whatever has
-- become of that job since, until prune_history_v2 forgets the key. So a call whose answer was lost can be
-- repeated. Raises what defer_jobs_v1 does (the place that it names counts the new ones), and PJ012 for a key
-- that was used for another task or other args. Waits for a transaction that is deferring under the same key:
-- if that one rolls back, this one defers. Keys are taken in order.
DECLARE
    v_by text := pljobs._caller();
    v_bad record;
    v_keys text[];
    v_won text[];
    v_new jsonb;
    v_ords bigint[];
    v_ids bigint[];
    v_id_of jsonb;
BEGIN
    IF jsonb_typeof(defer_jobs_v2.jobs) IS DISTINCT FROM 'array'
       OR NOT defer_jobs_v2.jobs @? '$[*].idempotency_key ? (@ != null)' THEN
        RETURN QUERY SELECT i.id, true
                       FROM unnest(pljobs.defer_jobs_v1(defer_jobs_v2.jobs, defer_jobs_v2.notify))
                            WITH ORDINALITY AS i(id, ord) ORDER BY i.ord;
        RETURN;
    END IF;
    SELECT e.ord, left(e.job ->> 'task', 255) AS task INTO v_bad
      FROM jsonb_array_elements(defer_jobs_v2.jobs) WITH ORDINALITY AS e(job, ord)
     WHERE coalesce(jsonb_typeof(e.job -> 'idempotency_key'), 'null') <> 'null'
       AND (jsonb_typeof(e.job -> 'idempotency_key') <> 'string'
            OR char_length(e.job ->> 'idempotency_key') NOT BETWEEN 1 AND 255
            OR e.job ->> 'task' IS NULL)
     ORDER BY e.ord LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'job % of the call (task %) can''t be deferred: idempotency_key must have 1 to 255 '
                        'characters, and the job a task', v_bad.ord, quote_nullable(v_bad.task)
            USING ERRCODE = 'PJ002', HINT = 'Nothing was deferred.';
    END IF;

    -- Those that are there are locked, so that prune_history_v2 does not forget them before this call has
    -- answered; one that is just being forgotten is waited for.
    v_keys := ARRAY(SELECT e.job ->> 'idempotency_key'
                      FROM jsonb_array_elements(defer_jobs_v2.jobs) AS e(job));
    PERFORM FROM pljobs.idempotency AS i
      WHERE i.deferred_by = v_by AND i.key = ANY (v_keys) ORDER BY i.key FOR KEY SHARE;
    WITH won AS (
        INSERT INTO pljobs.idempotency AS i (deferred_by, key, task, args_hash, deferred_at)
        SELECT DISTINCT ON (e.job ->> 'idempotency_key')
               v_by, e.job ->> 'idempotency_key', e.job ->> 'task',
               hashtextextended(coalesce(nullif(e.job -> 'args', 'null'), '{}')::text, 0), clock_timestamp()
          FROM jsonb_array_elements(defer_jobs_v2.jobs) WITH ORDINALITY AS e(job, ord)
         WHERE e.job ->> 'idempotency_key' IS NOT NULL
         ORDER BY e.job ->> 'idempotency_key', e.ord
            ON CONFLICT ON CONSTRAINT idempotency_pkey DO NOTHING
        RETURNING i.key
    )
    SELECT coalesce(array_agg(won.key), '{}') INTO v_won FROM won;

    -- A new statement: it sees what was committed while the former waited.
    SELECT e.job ->> 'idempotency_key' AS key, i.job_id, i.task INTO v_bad
      FROM jsonb_array_elements(defer_jobs_v2.jobs) WITH ORDINALITY AS e(job, ord)
     CROSS JOIN LATERAL (  -- one by one, by the index
           SELECT k.job_id, k.task, k.args_hash FROM pljobs.idempotency AS k
            WHERE k.deferred_by = v_by AND k.key = e.job ->> 'idempotency_key' OFFSET 0) AS i
     WHERE i.task <> e.job ->> 'task'
        OR i.args_hash <> hashtextextended(coalesce(nullif(e.job -> 'args', 'null'), '{}')::text, 0)
     ORDER BY e.ord LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'idempotency key % was used for another job: %, of task %',
            quote_literal(v_bad.key), coalesce(v_bad.job_id::text, 'of this call'), quote_literal(v_bad.task)
            USING ERRCODE = 'PJ012',
                  HINT = 'Nothing was deferred. A key stands for one task and its arguments.';
    END IF;

    SELECT coalesce(jsonb_agg(n.job ORDER BY n.ord), '[]'), coalesce(array_agg(n.ord ORDER BY n.ord), '{}')
      INTO v_new, v_ords
      FROM (SELECT e.job, e.ord,
                   row_number() OVER (PARTITION BY e.job ->> 'idempotency_key' ORDER BY e.ord) AS place
              FROM jsonb_array_elements(defer_jobs_v2.jobs) WITH ORDINALITY AS e(job, ord)) AS n
     WHERE n.job ->> 'idempotency_key' IS NULL OR n.place = 1 AND
           -- Hashed: an array would be searched from end to end for each.
           n.job ->> 'idempotency_key' IN (SELECT w.key FROM unnest(v_won) AS w(key));
    v_ids := pljobs.defer_jobs_v1(v_new, defer_jobs_v2.notify);
    -- By a map, for a join may compare each with each, where the planner believes that there are few.
    SELECT jsonb_object_agg(n.key, n.id) INTO v_id_of
      FROM (SELECT defer_jobs_v2.jobs -> (d.ord - 1)::integer ->> 'idempotency_key' AS key, d.id
              FROM unnest(v_ords, v_ids) AS d(ord, id)) AS n
     WHERE n.key IS NOT NULL;
    UPDATE pljobs.idempotency AS i SET job_id = (v_id_of ->> i.key)::bigint
     WHERE i.deferred_by = v_by AND i.key = ANY (v_keys) AND v_id_of ? i.key;
    RETURN QUERY
    SELECT coalesce(d.id, i.job_id), d.id IS NOT NULL
      FROM jsonb_array_elements(defer_jobs_v2.jobs) WITH ORDINALITY AS e(job, ord)
      LEFT JOIN unnest(v_ords, v_ids) AS d(ord, id) ON d.ord = e.ord
      LEFT JOIN LATERAL (
           SELECT k.job_id FROM pljobs.idempotency AS k
            WHERE k.deferred_by = v_by AND k.key = e.job ->> 'idempotency_key' OFFSET 0) AS i ON true
     ORDER BY e.ord;
END
$$;
COMMENT ON FUNCTION pljobs.defer_jobs_v2(jsonb, boolean)
    IS 'Defers jobs, each at most once under its idempotency key. Driver contract, version 2.';

CREATE OR REPLACE FUNCTION pljobs.defer_jobs_v3(jobs jsonb, notify boolean DEFAULT true)
RETURNS TABLE (job_id bigint, is_new boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- What defer_jobs_v2 does, for objects that may have a "fairness_key" besides, of 1 to 255 characters: within
-- a queue and a priority, the keys take turns, so that the many jobs of one do not keep the few of another
-- waiting; jobs without a key are one key of their own. What throttle_queue sets for each key is for these.
-- Raises what defer_jobs_v2 does, and PJ013 while an index is missing that this needs.
BEGIN
    RETURN QUERY SELECT d.job_id, d.is_new
                   FROM pljobs.defer_jobs_v2(defer_jobs_v3.jobs, defer_jobs_v3.notify) AS d;
END
$$;
COMMENT ON FUNCTION pljobs.defer_jobs_v3(jsonb, boolean)
    IS 'Defers jobs, whose keys may take turns. Driver contract, version 3.';

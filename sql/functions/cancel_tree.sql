-- A tree is a job and all that was deferred inside of it, and inside of those: each job knows its parent.
-- Cancelling a tree closes it: it marks its jobs, and no job starts, ever, whose parent is marked. Deferring
-- takes no lock: so a child may be committed while the tree is being cancelled, or after. It is met where it
-- would start: a fetch locks its parent's key (shared, without waiting) and then looks for the mark;
-- cancelling locks the keys of all it has seen before it looks for children once more.

CREATE OR REPLACE FUNCTION pljobs._tree_key(job_id bigint) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
-- The advisory lock of the children of a job: one of 1,024, so that a tree of any size leaves room in the
-- server's table of locks. Trees that share a key only wait for each other.
BEGIN
    RETURN 7205759010000 + (_tree_key.job_id & 1023);
END
$$;
COMMENT ON FUNCTION pljobs._tree_key(bigint) IS 'The advisory lock key of a job''s children.';

CREATE OR REPLACE FUNCTION pljobs._claim_children(job_ids bigint[]) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- Of candidates that the caller holds locked, returns those that may start, in the order given. Cancels those
-- whose parent's tree was cancelled, but for one that a person has put back since, or of which the request to
-- abort was taken back, and closes them, too; leaves alone those whose tree is being cancelled now. Wakes the
-- lanes of what it cancels: the caller has them.
DECLARE
    v_free bigint[];
    v_closed bigint[];
    v_locks text[];
BEGIN
    WITH child AS MATERIALIZED (
        SELECT j.id, j.parent_id FROM pljobs.job AS j WHERE j.id = ANY (_claim_children.job_ids)
    )
    SELECT array_agg(c.id) INTO v_free
      FROM child AS c
     WHERE c.parent_id IS NULL OR pg_try_advisory_xact_lock_shared(pljobs._tree_key(c.parent_id));
    -- A new statement: its snapshot was taken after the keys were ours.
    SELECT array_agg(j.id), array_agg(j.lock) FILTER (WHERE j.lock IS NOT NULL) INTO v_closed, v_locks
      FROM pljobs.job AS j
     CROSS JOIN LATERAL (
           SELECT t.closed_at FROM pljobs.closed_tree AS t WHERE t.job_id = j.parent_id OFFSET 0) AS c
     WHERE j.id = ANY (v_free)
       AND NOT EXISTS (SELECT FROM pljobs.request AS r
                        WHERE r.job_id = j.id AND r.kind IN ('retry', 'rescind')
                          AND r.requested_at > c.closed_at);
    IF v_closed IS NOT NULL THEN
        PERFORM FROM pljobs._cancel_waiting_jobs(
                v_closed, 'cancelled', 'the tree that it belongs to was cancelled', NULL, 'tree');
        INSERT INTO pljobs.closed_tree AS t (job_id, closed_at)
        SELECT i.id, clock_timestamp() FROM unnest(v_closed) AS i(id)
            ON CONFLICT ON CONSTRAINT closed_tree_pkey DO NOTHING;
        PERFORM pljobs._wake_lanes(v_locks, take_lane => false);
    END IF;
    RETURN ARRAY(SELECT c.id FROM unnest(_claim_children.job_ids) WITH ORDINALITY AS c(id, place)
                 -- Hashed: an array would be searched from end to end for each.
                  WHERE (c.id IN (SELECT f.id FROM unnest(v_free) AS f(id))) IS TRUE
                    AND c.id NOT IN (SELECT d.id FROM unnest(v_closed) AS d(id)) ORDER BY c.place);
END
$$;
COMMENT ON FUNCTION pljobs._claim_children(bigint[])
    IS 'Of locked candidates, returns those that no cancelled tree keeps from starting.';

CREATE OR REPLACE FUNCTION pljobs._tree_of(root bigint) RETURNS bigint[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- Returns the root and all that was deferred inside of it, and inside of those, ascending; the root, and
-- those between, whether or not they are still there.
BEGIN
    RETURN ARRAY(
        WITH RECURSIVE node AS (
            SELECT _tree_of.root AS id
            UNION
            -- OFFSET 0: from parent to child, whatever the statistics say.
            SELECT c.id FROM node CROSS JOIN LATERAL (
                   SELECT j.id FROM pljobs.job AS j WHERE j.parent_id = node.id
                    UNION ALL
                   SELECT d.job_id FROM pljobs.deleted_parent AS d WHERE d.parent_id = node.id
                   OFFSET 0) AS c
        )
        SELECT node.id FROM node ORDER BY 1);
END
$$;
COMMENT ON FUNCTION pljobs._tree_of(bigint) IS 'The ids of a job and of all that it deferred.';

CREATE OR REPLACE FUNCTION pljobs._lock_tree(root bigint) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- Locks the keys of a tree in order, so that no child of it starts, then its jobs by ascending id, waiting
-- for each. Then takes in, without waiting, what has come since: where that fails for one that may have
-- deferred jobs, it lets go of all and begins anew, for waiting there would be out of order. A tree that
-- grows as fast as it is looked at ends this nevertheless: ten times it takes in those that have never run,
-- too; what comes after that, and has never run, is met where it would start. Returns their ids.
DECLARE
    v_ids bigint[];
    v_new bigint[];
    v_got bigint[];
    v_gone bigint[];
    v_round integer;
BEGIN
    <<again>>
    LOOP
        BEGIN
            v_ids := pljobs._tree_of(_lock_tree.root);
            PERFORM pg_advisory_xact_lock(k.key)
               FROM (SELECT DISTINCT pljobs._tree_key(i.id) AS key
                       FROM unnest(v_ids) AS i(id) ORDER BY 1) AS k;
            PERFORM FROM pljobs.job AS j WHERE j.id = ANY (v_ids) ORDER BY j.id FOR UPDATE;
            v_round := 0;
            LOOP
                v_round := v_round + 1;
                v_new := ARRAY(
                    SELECT c.id FROM unnest(v_ids) AS p(id) CROSS JOIN LATERAL (
                           SELECT j.id FROM pljobs.job AS j
                            WHERE j.parent_id = p.id
                              AND (v_round <= 10
                                   OR j.status <> 'todo' OR j.attempts > 0 OR j.last_run_id IS NOT NULL)
                            UNION ALL
                           SELECT d.job_id FROM pljobs.deleted_parent AS d WHERE d.parent_id = p.id
                           OFFSET 0) AS c
                    EXCEPT SELECT i.id FROM unnest(v_ids) AS i(id));
                EXIT again WHEN v_new = '{}';
                v_got := ARRAY(SELECT j.id FROM pljobs.job AS j WHERE j.id = ANY (v_new)
                                ORDER BY j.id FOR UPDATE SKIP LOCKED);
                v_gone := ARRAY(SELECT d.job_id FROM pljobs.deleted_parent AS d WHERE d.job_id = ANY (v_new));
                v_got := ARRAY(SELECT i.id FROM unnest(v_got || v_gone) AS i(id)
                                WHERE pg_try_advisory_xact_lock(pljobs._tree_key(i.id)));
                v_ids := v_ids || v_got;
                IF NOT v_got @> v_gone OR EXISTS (
                    SELECT FROM pljobs.job AS j
                     WHERE j.id = ANY (v_new) AND j.id NOT IN (SELECT g.id FROM unnest(v_got) AS g(id))
                       AND (j.status <> 'todo' OR j.attempts > 0 OR j.last_run_id IS NOT NULL)
                ) THEN
                    RAISE EXCEPTION 'the tree has grown' USING ERRCODE = 'PJ000';
                END IF;
            END LOOP;
        EXCEPTION WHEN SQLSTATE 'PJ000' THEN
            CONTINUE;
        END;
    END LOOP;
    RETURN v_ids;
END
$$;
COMMENT ON FUNCTION pljobs._lock_tree(bigint) IS 'Locks a whole tree.';

CREATE OR REPLACE FUNCTION pljobs.cancel_tree_v1(
    root bigint, abort boolean DEFAULT false, delete_job boolean DEFAULT false, force boolean DEFAULT false,
    reason text DEFAULT NULL, actor text DEFAULT NULL,
    grace interval DEFAULT NULL, term_grace interval DEFAULT NULL, sql boolean DEFAULT false,
    dry_run boolean DEFAULT false
) RETURNS TABLE (
    job_id bigint, parent_id bigint, queue_name text, task_name text, status_before text, outcome text
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- What cancel_job_v1 does, for a job and all that was deferred inside of it, and inside of those. Returns a
-- row for the root and for each that was todo or doing, in no order, with cancel_job's words; nothing for an
-- unknown id without children, and for another's job or one that is gone, if the caller has neither
-- pljobs_canceller nor pljobs_operator; whose the others of the tree are does not matter. The tree is closed:
-- of the jobs in it, none but those left alone ('running': abort is not asked for) can defer another (PJ007),
-- and a child that is being deferred at this moment is cancelled where it would start. A person may put
-- single ones back (retry_job): they run, and may defer; so do those of which the request is rescinded. Those
-- left alone run to their end. Put back (interrupted, to be retried) they are cancelled where they would
-- start, but for the root and for children of what was running, too, which start again. dry_run: changes and
-- locks nothing, answers as cancel_jobs_v1 does. Raises PJ004 as cancel_job_v1 does, and in a transaction
-- that is not READ COMMITTED: it could not see a child that has come since its snapshot. Locks the tree's
-- keys, in order, then its jobs by ascending id, waiting for each: until the transaction ends, no child of
-- these jobs starts, nor of others that share a key (there are 1,024: a tree of thousands holds all of them);
-- commit soon. Notifies each worker concerned once.
DECLARE
    v_abort boolean := coalesce(cancel_tree_v1.abort, false) OR coalesce(cancel_tree_v1.force, false);
    v_resolution text := CASE WHEN cancel_tree_v1.delete_job THEN 'deleted' ELSE 'cancelled' END;
    v_ladder record := pljobs._ladder(cancel_tree_v1.grace, cancel_tree_v1.term_grace, cancel_tree_v1.sql);
    v_own text[] := pljobs._own_roles('pljobs_canceller', 'pljobs_operator');
    v_ids bigint[];
    v_todo bigint[];
    v_doing bigint[];
    v_locks text[];
    v_job record;
BEGIN
    IF NOT EXISTS (
        SELECT FROM pljobs.job AS j WHERE j.id = cancel_tree_v1.root AND j.deferred_by = ANY (v_own)
    ) AND v_own IS NOT NULL THEN
        RETURN;
    ELSIF cancel_tree_v1.dry_run THEN
        v_ids := pljobs._tree_of(cancel_tree_v1.root);
        RETURN QUERY
        SELECT j.id, j.parent_id, j.queue, j.task, j.status,
               CASE WHEN j.status IN ('succeeded', 'failed') THEN 'already_finished'
                    WHEN j.status IN ('cancelled', 'aborted') AND cancel_tree_v1.delete_job IS NOT TRUE
                         THEN 'already_cancelled'
                    WHEN j.status = 'doing' AND NOT v_abort THEN 'running'
                    WHEN j.status = 'doing' AND cancel_tree_v1.force THEN 'would_force'
                    WHEN j.status = 'doing' THEN 'would_abort'
                    WHEN cancel_tree_v1.delete_job THEN 'would_delete'
                    ELSE 'would_cancel' END
          FROM pljobs.job AS j
         WHERE j.id = ANY (v_ids) AND (j.status IN ('todo', 'doing') OR j.id = cancel_tree_v1.root);
        RETURN;
    END IF;

    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'a tree can only be cancelled in a transaction that is READ COMMITTED'
            USING ERRCODE = 'PJ004', HINT = 'Others can''t see a child that has come since they began. '
                                            'BEGIN ISOLATION LEVEL READ COMMITTED; nothing was changed.';
    END IF;
    v_ids := pljobs._lock_tree(cancel_tree_v1.root);
    SELECT array_agg(j.id) FILTER (WHERE j.status = 'todo' AND j.id <> cancel_tree_v1.root),
           array_agg(j.id) FILTER (WHERE j.status = 'doing' AND j.id <> cancel_tree_v1.root),
           array_agg(DISTINCT j.lock) FILTER (WHERE j.lock IS NOT NULL AND (
               j.status = 'todo' OR j.status = 'doing' AND cancel_tree_v1.force))
      INTO v_todo, v_doing, v_locks
      FROM pljobs.job AS j WHERE j.id = ANY (v_ids);
    INSERT INTO pljobs.closed_tree AS t (job_id, closed_at)
    SELECT i.id, clock_timestamp() FROM unnest(v_ids) AS i(id)
     WHERE (v_abort OR NOT EXISTS (SELECT FROM pljobs.job AS j WHERE j.id = i.id AND j.status = 'doing'))
       -- The root may be gone, but not still to come: a slip must not close what is deferred next week.
       AND i.id BETWEEN 1 AND pg_sequence_last_value(pg_get_serial_sequence('pljobs.job', 'id')::regclass)
        ON CONFLICT ON CONSTRAINT closed_tree_pkey DO UPDATE SET closed_at = EXCLUDED.closed_at;

    RETURN QUERY
    SELECT j.id, j.parent_id, j.queue, j.task, c.status_before, c.outcome
      FROM (SELECT r.id, r.parent_id, r.queue, r.task FROM pljobs.job AS r WHERE r.id = cancel_tree_v1.root
            OFFSET 0) AS j
     CROSS JOIN LATERAL pljobs.cancel_job_v1(
           j.id, v_abort, cancel_tree_v1.delete_job, cancel_tree_v1.force, cancel_tree_v1.reason,
           cancel_tree_v1.actor, cancel_tree_v1.grace, cancel_tree_v1.term_grace, cancel_tree_v1.sql) AS c;
    RETURN QUERY
    SELECT c.job_id, w.parent_id, c.queue, c.task, 'todo', v_resolution
      FROM (SELECT j.id, j.parent_id FROM pljobs.job AS j WHERE j.id = ANY (v_todo) OFFSET 0) AS w
      JOIN pljobs._cancel_waiting_jobs(
           v_todo, v_resolution, cancel_tree_v1.reason, cancel_tree_v1.actor, 'tree') AS c ON c.job_id = w.id;
    FOR v_job IN
        SELECT j.id, j.parent_id, j.queue, j.task
          FROM pljobs.job AS j WHERE j.id = ANY (v_doing) ORDER BY j.id
    LOOP
        job_id := v_job.id;
        parent_id := v_job.parent_id;
        queue_name := v_job.queue;
        task_name := v_job.task;
        status_before := 'doing';
        outcome := 'running';
        IF v_abort THEN
            SELECT s.outcome INTO outcome
              FROM pljobs._stop_run(
                   v_job.id, 'tree', cancel_tree_v1.reason, cancel_tree_v1.actor,
                   coalesce(cancel_tree_v1.delete_job, false), coalesce(cancel_tree_v1.force, false),
                   v_ladder.sql_at, v_ladder.term_at, v_ladder.kill_at, cancel_tree_v1.sql) AS s;
        END IF;
        RETURN NEXT;
    END LOOP;
    PERFORM pljobs._wake_lanes(v_locks, take_lane => false);
END
$$;
COMMENT ON FUNCTION pljobs.cancel_tree_v1(
    bigint, boolean, boolean, boolean, text, text, interval, interval, boolean, boolean
) IS 'Cancels a job and all that was deferred inside of it. Driver contract, version 1.';

CREATE OR REPLACE FUNCTION pljobs.cancel_tree(
    root bigint, abort boolean DEFAULT false, delete_job boolean DEFAULT false, force boolean DEFAULT false,
    reason text DEFAULT NULL, actor text DEFAULT NULL,
    grace interval DEFAULT NULL, term_grace interval DEFAULT NULL, sql boolean DEFAULT false,
    dry_run boolean DEFAULT false
) RETURNS TABLE (
    job_id bigint, parent_id bigint, queue_name text, task_name text, status_before text, outcome text
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- What cancel_tree_v1 does, for people: by ascending id; with a NOTICE where nothing was changed (dry_run),
-- and where running jobs were left alone. Waits for each lock as cancel_job does.
DECLARE
    v_lock_timeout text := pljobs._wait_briefly();
    v_running boolean := false;
BEGIN
    FOR job_id, parent_id, queue_name, task_name, status_before, outcome IN
        SELECT c.job_id, c.parent_id, c.queue_name, c.task_name, c.status_before, c.outcome
          FROM pljobs.cancel_tree_v1(
               cancel_tree.root, cancel_tree.abort, cancel_tree.delete_job, cancel_tree.force,
               cancel_tree.reason, cancel_tree.actor, cancel_tree.grace, cancel_tree.term_grace,
               cancel_tree.sql, cancel_tree.dry_run) AS c
         ORDER BY c.job_id
    LOOP
        v_running := v_running OR outcome = 'running';
        RETURN NEXT;
    END LOOP;
    IF cancel_tree.dry_run THEN
        RAISE NOTICE 'nothing was changed; to do it, leave out dry_run';
    END IF;
    IF v_running THEN
        RAISE NOTICE 'running jobs are left alone, and may defer more; to stop them: '
                     'SELECT cancel_tree(%, abort => true);', cancel_tree.root;
    END IF;
    PERFORM set_config('lock_timeout', v_lock_timeout, true);
EXCEPTION
    WHEN lock_not_available THEN
        PERFORM pljobs._raise_held(NULL);
END
$$;
COMMENT ON FUNCTION pljobs.cancel_tree(
    bigint, boolean, boolean, boolean, text, text, interval, interval, boolean, boolean
) IS 'Cancels a job and all that was deferred inside of it: SELECT * FROM cancel_tree(33, abort => true);';

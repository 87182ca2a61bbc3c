-- The ladder of an abort: 1 its worker is told, and the task asked; 2 its SQL is cancelled, from sql_at on;
-- 3 it is terminated, from term_at on; 4 it is killed, from kill_at on. Without these times it stays at 1.

CREATE OR REPLACE FUNCTION pljobs._ladder(
    grace interval, term_grace interval, sql boolean,
    OUT sql_at timestamptz, OUT term_at timestamptz, OUT kill_at timestamptz
)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- When the levels of an abort asked for now begin. `grace`: until it is terminated (null: never by force;
-- 0: at once); its SQL is cancelled after half of that, with `sql` at once. `term_grace`: from then until it
-- is killed, null: 5 s. Both are cut to ten years. Raises PJ004 for a negative one, and for a term_grace
-- without a grace; for none that defer_jobs_v1 accepts.
DECLARE
    v_now timestamptz := clock_timestamp();
BEGIN
    IF _ladder.grace < interval '0' OR _ladder.term_grace < interval '0'
       OR (_ladder.term_grace IS NOT NULL AND _ladder.grace IS NULL) THEN
        RAISE EXCEPTION 'grace (%) and term_grace (%) must not be negative, and term_grace needs a grace',
            _ladder.grace, _ladder.term_grace USING ERRCODE = 'PJ004',
            HINT = 'For example: cancel_job(33, abort => true, grace => ''10 s'', term_grace => ''5 s''). '
                   'Nothing was changed.';
    END IF;
    term_at := pljobs._later(v_now, _ladder.grace);
    kill_at := pljobs._later(term_at, coalesce(_ladder.term_grace, interval '5 s'));
    sql_at := CASE WHEN _ladder.sql THEN v_now ELSE v_now + (term_at - v_now) / 2 END;
END
$$;
COMMENT ON FUNCTION pljobs._ladder(interval, interval, boolean) IS 'When the levels of an abort begin.';

CREATE OR REPLACE FUNCTION pljobs._ask_to_abort(
    job_id bigint, source text, reason text, actor text, delete_job boolean DEFAULT false,
    force boolean DEFAULT false, sql_at timestamptz DEFAULT NULL, term_at timestamptz DEFAULT NULL,
    kill_at timestamptz DEFAULT NULL, OUT outcome text, OUT request_id bigint
)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- doing -> doing with an open request, its worker notified: 'abort_requested'; where there is one, it is only
-- made stronger: 'abort_already_requested'. Stronger: deletion or force added, a level that begins earlier,
-- and by source user > tree > deadline, with who asked, for whom and why; each that made it stronger leaves a
-- row of its own, 'joined'. The caller holds the job's row locked.
DECLARE
    v_job record;
    v_stronger boolean;
BEGIN
    SELECT j.queue, j.task, j.run_id, j.worker_id, j.request_id INTO v_job
      FROM pljobs.job AS j WHERE j.id = _ask_to_abort.job_id;
    request_id := v_job.request_id;
    IF request_id IS NULL THEN
        outcome := 'abort_requested';
        request_id := pljobs._record_request(
            'abort', _ask_to_abort.job_id, v_job.queue, v_job.task, _ask_to_abort.reason,
            _ask_to_abort.actor, NULL, _ask_to_abort.delete_job, _ask_to_abort.force, v_job.run_id,
            v_job.worker_id, _ask_to_abort.source, _ask_to_abort.sql_at, _ask_to_abort.term_at,
            _ask_to_abort.kill_at);
        UPDATE pljobs.job AS j SET request_id = _ask_to_abort.request_id WHERE j.id = _ask_to_abort.job_id;
    ELSE
        outcome := 'abort_already_requested';
        -- least() leaves nulls out: who has no deadline takes the other's.
        UPDATE pljobs.request AS r
           SET delete_job = r.delete_job OR _ask_to_abort.delete_job, force = r.force OR _ask_to_abort.force,
               sql_at = least(r.sql_at, _ask_to_abort.sql_at),
               term_at = least(r.term_at, _ask_to_abort.term_at),
               kill_at = least(r.kill_at, _ask_to_abort.kill_at)
         WHERE r.id = _ask_to_abort.request_id
           AND (_ask_to_abort.delete_job > r.delete_job OR _ask_to_abort.force > r.force
                OR least(r.sql_at, _ask_to_abort.sql_at) IS DISTINCT FROM r.sql_at
                OR least(r.term_at, _ask_to_abort.term_at) IS DISTINCT FROM r.term_at
                OR least(r.kill_at, _ask_to_abort.kill_at) IS DISTINCT FROM r.kill_at);
        v_stronger := FOUND;
        UPDATE pljobs.request AS r
           SET source = _ask_to_abort.source, requested_by = pljobs._caller(),
               actor = left(_ask_to_abort.actor, 1000), reason = left(_ask_to_abort.reason, 1000)
         WHERE r.id = _ask_to_abort.request_id
           AND array_position('{deadline,tree,user}', _ask_to_abort.source)
               > array_position('{deadline,tree,user}', r.source);
        IF v_stronger OR FOUND THEN
            PERFORM pljobs._record_request(
                'abort', _ask_to_abort.job_id, v_job.queue, v_job.task, _ask_to_abort.reason,
                _ask_to_abort.actor, 'joined', _ask_to_abort.delete_job, _ask_to_abort.force, v_job.run_id,
                v_job.worker_id, _ask_to_abort.source, _ask_to_abort.sql_at, _ask_to_abort.term_at,
                _ask_to_abort.kill_at);
        END IF;
    END IF;
    PERFORM pljobs._notify_worker(v_job.worker_id);
END
$$;
COMMENT ON FUNCTION pljobs._ask_to_abort(
    bigint, text, text, text, boolean, boolean, timestamptz, timestamptz, timestamptz
) IS 'Opens a running job''s request to abort, or makes the open one stronger.';

CREATE OR REPLACE FUNCTION pljobs._ask_late_runs_to_abort(
    worker_id bigint, max_jobs integer
) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- doing for longer than its timeout -> asked to abort, once, with the job's grace (null: 10 s), source
-- 'deadline'.  Of one worker's runs (null: of all); returns the jobs. Skips rows that somebody holds.
DECLARE
    v_now timestamptz := clock_timestamp();
    v_ids bigint[];
    v_job record;
BEGIN
    -- In the order of the index of timeouts, so that no statistics can make this walk all jobs.
    v_ids := ARRAY(SELECT j.id FROM pljobs.job AS j
                    WHERE j.status = 'doing' AND j.timeout_at <= v_now
                      AND (_ask_late_runs_to_abort.worker_id IS NULL
                           OR j.worker_id = _ask_late_runs_to_abort.worker_id)
                    ORDER BY j.timeout_at LIMIT _ask_late_runs_to_abort.max_jobs FOR UPDATE SKIP LOCKED);
    FOR v_job IN
        SELECT j.id, j.timeout, l.sql_at, l.term_at, l.kill_at
          FROM pljobs.job AS j
         CROSS JOIN LATERAL pljobs._ladder(coalesce(j.grace, interval '10 s'), NULL, false) AS l
         WHERE j.id = ANY (v_ids) ORDER BY j.id
    LOOP
        PERFORM pljobs._ask_to_abort(v_job.id, 'deadline', format('ran longer than its timeout of %s',
                                     v_job.timeout), NULL, sql_at => v_job.sql_at,
                                     term_at => v_job.term_at, kill_at => v_job.kill_at);
        UPDATE pljobs.job AS j SET timeout_at = NULL WHERE j.id = v_job.id;
    END LOOP;
    RETURN v_ids;
END
$$;
COMMENT ON FUNCTION pljobs._ask_late_runs_to_abort(bigint, integer)
    IS 'Asks runs that are over their timeout to abort.';

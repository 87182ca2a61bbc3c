-- The contract of docs: every (state, verb, request) and what it answers, run through the public functions. What is not
-- listed as a change is refused: the state stays.
BEGIN;
\ir lib/fixtures.sql
SELECT take_turns() \g /dev/null
SELECT * FROM no_plan();

-- `state`: a status; doing+req is doing with an open request, doing+del one that asks for deletion as well, doing+sql one that has
-- cancelled its statement, doing+kill one at its last level, doing+tree one by its tree, doing+late one by its timeout alone; overtime
-- runs longer than its timeout, and nobody has noticed; overdue did not start in time; stray is the child of a cancelled tree, stray+old
-- one that was cancelled with it; unknown an id that there is not. `after`: the status then, gone if there is no row. `resolution`: what
-- became of the request that was open.
CREATE TABLE transition (state text, verb text, answer text, after text, resolution text);
INSERT INTO transition VALUES
    ('todo',      'fetch',               'started',                 'doing',     NULL),
    ('doing',     'fetch',               'nothing',                 'doing',     NULL),
    ('doing+req', 'fetch',               'nothing',                 'doing',     'open'),
    ('succeeded', 'fetch',               'nothing',                 'succeeded', NULL),
    ('failed',    'fetch',               'nothing',                 'failed',    NULL),
    ('cancelled', 'fetch',               'nothing',                 'cancelled', NULL),
    ('aborted',   'fetch',               'nothing',                 'aborted',   NULL),

    ('todo',      'cancel',              'cancelled',               'cancelled', NULL),
    ('doing',     'cancel',              'running',                 'doing',     NULL),
    ('doing+req', 'cancel',              'running',                 'doing',     'open'),
    ('succeeded', 'cancel',              'already_finished',        'succeeded', NULL),
    ('failed',    'cancel',              'already_finished',        'failed',    NULL),
    ('cancelled', 'cancel',              'already_cancelled',       'cancelled', NULL),
    ('aborted',   'cancel',              'already_cancelled',       'aborted',   NULL),
    ('unknown',   'cancel',              'not_found',               'gone',      NULL),

    ('todo',      'cancel+delete',       'deleted',                 'gone',      NULL),
    ('doing',     'cancel+delete',       'running',                 'doing',     NULL),
    ('doing+req', 'cancel+delete',       'running',                 'doing',     'open'),
    ('succeeded', 'cancel+delete',       'already_finished',        'succeeded', NULL),
    ('failed',    'cancel+delete',       'already_finished',        'failed',    NULL),
    ('cancelled', 'cancel+delete',       'deleted',                 'gone',      NULL),
    ('aborted',   'cancel+delete',       'deleted',                 'gone',      NULL),
    ('unknown',   'cancel+delete',       'not_found',               'gone',      NULL),

    ('todo',      'abort',               'cancelled',               'cancelled', NULL),
    ('doing',     'abort',               'abort_requested',         'doing',     'open'),
    ('doing+req', 'abort',               'abort_already_requested', 'doing',     'open'),
    ('doing+del', 'abort',               'abort_already_requested', 'doing',     'open'),
    ('succeeded', 'abort',               'already_finished',        'succeeded', NULL),
    ('failed',    'abort',               'already_finished',        'failed',    NULL),
    ('cancelled', 'abort',               'already_cancelled',       'cancelled', NULL),
    ('aborted',   'abort',               'already_cancelled',       'aborted',   NULL),
    ('unknown',   'abort',               'not_found',               'gone',      NULL),

    ('todo',      'abort+delete',        'deleted',                 'gone',      NULL),
    ('doing',     'abort+delete',        'abort_requested',         'doing',     'open'),
    ('doing+req', 'abort+delete',        'abort_already_requested', 'doing',     'open'),
    ('succeeded', 'abort+delete',        'already_finished',        'succeeded', NULL),
    ('failed',    'abort+delete',        'already_finished',        'failed',    NULL),
    ('cancelled', 'abort+delete',        'deleted',                 'gone',      NULL),
    ('aborted',   'abort+delete',        'deleted',                 'gone',      NULL),
    ('unknown',   'abort+delete',        'not_found',               'gone',      NULL),

    ('todo',      'force',               'cancelled',               'cancelled', NULL),
    ('doing',     'force',               'aborted',                 'aborted',   'forced'),
    ('doing+req', 'force',               'aborted',                 'aborted',   'forced'),
    ('doing+del', 'force',               'deleted',                 'gone',      'forced'),
    ('succeeded', 'force',               'already_finished',        'succeeded', NULL),
    ('failed',    'force',               'already_finished',        'failed',    NULL),
    ('cancelled', 'force',               'already_cancelled',       'cancelled', NULL),
    ('aborted',   'force',               'already_cancelled',       'aborted',   NULL),
    ('unknown',   'force',               'not_found',               'gone',      NULL),

    ('todo',      'delete',              'todo',                    'todo',      NULL),
    ('doing',     'delete',              'running',                 'doing',     NULL),
    ('doing+req', 'delete',              'running',                 'doing',     'open'),
    ('succeeded', 'delete',              'deleted',                 'gone',      NULL),
    ('failed',    'delete',              'deleted',                 'gone',      NULL),
    ('cancelled', 'delete',              'deleted',                 'gone',      NULL),
    ('aborted',   'delete',              'deleted',                 'gone',      NULL),
    ('unknown',   'delete',              'not_found',               'gone',      NULL),

    ('todo',      'retry',               'todo',                    'todo',      NULL),
    ('doing',     'retry',               'running',                 'doing',     NULL),
    ('doing+req', 'retry',               'running',                 'doing',     'open'),
    ('succeeded', 'retry',               'succeeded',               'succeeded', NULL),
    ('failed',    'retry',               'requeued',                'todo',      NULL),
    ('cancelled', 'retry',               'requeued',                'todo',      NULL),
    ('aborted',   'retry',               'requeued',                'todo',      NULL),
    ('unknown',   'retry',               'not_found',               'gone',      NULL),

    ('doing',     'finish succeeded',    'succeeded',               'succeeded', NULL),
    ('doing+req', 'finish succeeded',    'succeeded',               'succeeded', 'finished_first'),
    ('doing+del', 'finish succeeded',    'succeeded',               'succeeded', 'finished_first'),
    ('doing',     'finish failed',       'failed',                  'failed',    NULL),
    ('doing+req', 'finish failed',       'failed',                  'failed',    'failed_first'),
    ('doing+del', 'finish failed',       'failed',                  'failed',    'failed_first'),
    ('doing',     'finish failed+retry', 'todo',                    'todo',      NULL),
    ('doing+req', 'finish failed+retry', 'failed',                  'failed',    'failed_first'),
    ('doing',     'finish aborted',      'failed',                  'failed',    NULL),
    ('doing',     'finish aborted+retry','todo',                    'todo',      NULL),
    ('doing+req', 'finish aborted',      'aborted',                 'aborted',   'aborted'),
    ('doing+req', 'finish aborted+retry','aborted',                 'aborted',   'aborted'),
    ('doing+del', 'finish aborted',      'deleted',                 'gone',      'aborted'),
    ('doing',     'finish interrupted',  'todo',                    'todo',      NULL),
    ('doing+req', 'finish interrupted',  'aborted',                 'aborted',   'aborted'),
    ('doing+del', 'finish interrupted',  'deleted',                 'gone',      'aborted'),

    ('doing',     'rescue',              'todo',                    'todo',      NULL),
    ('doing',     'rescue at the cap',   'failed',                  'failed',    NULL),
    ('doing+req', 'rescue',              'aborted',                 'aborted',   'worker_lost'),
    ('doing+req', 'rescue at the cap',   'aborted',                 'aborted',   'worker_lost'),
    ('doing+del', 'rescue',              'deleted',                 'gone',      'worker_lost'),
    ('todo',      'rescue',              'nothing',                 'todo',      NULL),
    ('succeeded', 'rescue',              'nothing',                 'succeeded', NULL),
    ('failed',    'rescue',              'nothing',                 'failed',    NULL),
    ('cancelled', 'rescue',              'nothing',                 'cancelled', NULL),
    ('aborted',   'rescue',              'nothing',                 'aborted',   NULL),

    ('doing',     'heartbeat',           'ok',                      'doing',     NULL),
    ('doing+req', 'heartbeat',           'abort',                   'doing',     'open'),
    ('todo',      'heartbeat',           'lost',                    'todo',      NULL),
    ('succeeded', 'heartbeat',           'lost',                    'succeeded', NULL),
    ('unknown',   'heartbeat',           'lost',                    'gone',      NULL),
    ('doing',     'give back',           'nothing',                 'todo',      NULL),
    ('doing+late','give back',           'nothing',                 'todo',      'worker_lost'),
    ('doing+tree','give back',           'nothing',                 'aborted',   'worker_lost'),
    ('overtime',  'give back',           'nothing',                 'todo',      NULL),
    ('doing+req', 'give back',           'nothing',                 'aborted',   'worker_lost'),
    ('doing+del', 'give back',           'nothing',                 'gone',      'worker_lost'),

    ('doing+late','fetch',               'nothing',                 'doing',     'open'),
    ('overdue',   'fetch',               'nothing',                 'cancelled', 'expired'),
    ('stray',     'fetch',               'nothing',                 'cancelled', 'cancelled'),
    ('overtime',  'fetch',               'nothing',                 'doing',     NULL),

    ('doing+late','cancel',              'running',                 'doing',     'open'),
    ('doing+late','cancel+delete',       'running',                 'doing',     'open'),
    ('doing+late','abort',               'abort_already_requested', 'doing',     'open'),
    ('doing+late','abort+delete',        'abort_already_requested', 'doing',     'open'),
    ('doing+late','force',               'aborted',                 'aborted',   'forced'),
    ('doing+late','delete',              'running',                 'doing',     'open'),
    ('doing+late','retry',               'running',                 'doing',     'open'),
    ('doing+tree','cancel',              'running',                 'doing',     'open'),
    ('doing+tree','cancel+delete',       'running',                 'doing',     'open'),
    ('doing+tree','abort',               'abort_already_requested', 'doing',     'open'),
    ('doing+tree','abort+delete',        'abort_already_requested', 'doing',     'open'),
    ('doing+tree','force',               'aborted',                 'aborted',   'forced'),
    ('doing+tree','delete',              'running',                 'doing',     'open'),
    ('doing+tree','retry',               'running',                 'doing',     'open'),
    ('overdue',   'cancel',              'cancelled',               'cancelled', 'cancelled'),
    ('overdue',   'delete',              'todo',                    'todo',      NULL),
    ('stray',     'cancel',              'cancelled',               'cancelled', 'cancelled'),
    ('stray+old', 'cancel',              'already_cancelled',       'cancelled', NULL),
    ('stray+old', 'retry',               'requeued',                'todo',      NULL),
    ('stray+old', 'retry, fetch',        'started',                 'doing',     NULL),

    ('doing',     'finish killed',       'failed',                  'failed',    NULL),
    ('doing',     'finish killed+retry', 'todo',                    'todo',      NULL),
    ('doing',     'finish abandoned',    'failed',                  'failed',    NULL),
    ('doing',     'finish abandoned+retry', 'failed',               'failed',    NULL),
    ('doing',     'finish failed+sql',   'failed',                  'failed',    NULL),
    ('doing+req', 'finish killed',       'aborted',                 'aborted',   'killed'),
    ('doing+req', 'finish killed+retry', 'aborted',                 'aborted',   'killed'),
    ('doing+req', 'finish abandoned',    'aborted',                 'aborted',   'abandoned'),
    ('doing+req', 'finish failed+sql',   'failed',                  'failed',    'failed_first'),
    ('doing+sql', 'finish failed+sql',   'aborted',                 'aborted',   'aborted'),
    ('doing+sql', 'finish failed',       'failed',                  'failed',    'failed_first'),
    ('doing+sql', 'finish succeeded',    'succeeded',               'succeeded', 'finished_first'),
    ('doing+kill','finish killed',       'aborted',                 'aborted',   'killed'),
    ('doing+kill','finish succeeded',    'succeeded',               'succeeded', 'finished_first'),
    ('doing+del', 'finish killed',       'deleted',                 'gone',      'killed'),
    ('doing+del', 'finish abandoned',    'deleted',                 'gone',      'abandoned'),
    ('doing+tree','finish succeeded',    'succeeded',               'succeeded', 'finished_first'),
    ('doing+tree','finish failed+retry', 'failed',                  'failed',    'failed_first'),
    ('doing+tree','finish aborted+retry','aborted',                 'aborted',   'aborted'),
    ('doing+tree','finish killed',       'aborted',                 'aborted',   'killed'),
    ('doing+tree','finish interrupted',  'aborted',                 'aborted',   'aborted'),
    ('doing+late','finish succeeded',    'succeeded',               'succeeded', 'finished_first'),
    ('doing+late','finish failed',       'failed',                  'failed',    'failed_first'),
    ('doing+late','finish failed+retry', 'todo',                    'todo',      'failed_first'),
    ('doing+late','finish aborted',      'failed',                  'failed',    'timeout'),
    ('doing+late','finish aborted+retry','todo',                    'todo',      'timeout'),
    ('doing+late','finish killed',       'failed',                  'failed',    'timeout'),
    ('doing+late','finish killed+retry', 'todo',                    'todo',      'timeout'),
    ('doing+late','finish abandoned',    'failed',                  'failed',    'abandoned'),
    ('doing+late','finish abandoned+retry', 'failed',               'failed',    'abandoned'),
    ('doing+late','finish interrupted',  'todo',                    'todo',      'timeout'),
    ('doing+late','abort, finish aborted+retry', 'aborted',         'aborted',   'aborted'),
    ('doing+late','abort+delete, finish aborted+retry', 'deleted',  'gone',      'aborted'),
    ('doing+late','abort, rescue',       'aborted',                 'aborted',   'worker_lost'),

    ('doing+late','rescue',              'todo',                    'todo',      'worker_lost'),
    ('doing+late','rescue at the cap',   'failed',                  'failed',    'worker_lost'),
    ('doing+tree','rescue',              'aborted',                 'aborted',   'worker_lost'),
    ('doing+kill','rescue',              'aborted',                 'aborted',   'worker_lost'),
    ('overtime',  'rescue',              'todo',                    'todo',      NULL),

    ('doing+late','heartbeat',           'abort',                   'doing',     'open'),
    ('doing+tree','heartbeat',           'abort',                   'doing',     'open'),
    ('doing+kill','heartbeat',           'kill',                    'doing',     'open'),
    ('overtime',  'heartbeat',           'abort',                   'doing',     'open'),

    ('overdue',   'enforce',             'expired',                 'cancelled', 'expired'),
    ('overtime',  'enforce',             'abort_requested',         'doing',     'open'),
    ('overtime',  'enforce, heartbeat',  'abort',                   'doing',     'open'),
    ('overtime',  'enforce, enforce',    'nothing',                 'doing',     'open'),
    ('overtime',  'finish succeeded',    'succeeded',               'succeeded', NULL),
    ('overtime',  'abort, heartbeat',    'abort',                   'doing',     'open'),
    ('overtime',  'abort, enforce, finish aborted+retry', 'aborted', 'aborted',  'aborted'),
    ('todo',      'enforce',             'nothing',                 'todo',      NULL),
    ('doing',     'enforce',             'nothing',                 'doing',     NULL),
    ('doing+req', 'enforce',             'nothing',                 'doing',     'open'),
    ('doing+late','enforce',             'nothing',                 'doing',     'open'),
    ('succeeded', 'enforce',             'nothing',                 'succeeded', NULL),
    ('failed',    'enforce',             'nothing',                 'failed',    NULL),
    ('cancelled', 'enforce',             'nothing',                 'cancelled', NULL),
    ('aborted',   'enforce',             'nothing',                 'aborted',   NULL),
    ('stray',     'enforce',             'nothing',                 'todo',      NULL),

    ('doing+req', 'rescind',             'rescinded',               'doing',     'rescinded'),
    ('doing+tree','rescind',             'rescinded',               'doing',     'rescinded'),
    ('doing+late','rescind',             'already_delivered',       'doing',     'open'),
    ('overtime',  'enforce, rescind',    'rescinded',               'doing',     'rescinded'),
    ('overtime',  'enforce, rescind, heartbeat', 'ok',              'doing',     'rescinded'),
    ('overtime',  'enforce, rescind, finish failed+retry', 'todo',  'todo',      'rescinded'),

    -- With the tree of its parent.
    ('todo',      'cancel its tree',     'cancelled',               'cancelled', 'cancelled'),
    ('doing',     'cancel its tree',     'running',                 'doing',     NULL),
    ('doing+req', 'cancel its tree',     'running',                 'doing',     'open'),
    ('doing+late','cancel its tree',     'running',                 'doing',     'open'),
    ('succeeded', 'cancel its tree',     'nothing',                 'succeeded', NULL),
    ('failed',    'cancel its tree',     'nothing',                 'failed',    NULL),
    ('cancelled', 'cancel its tree',     'nothing',                 'cancelled', NULL),
    ('aborted',   'cancel its tree',     'nothing',                 'aborted',   NULL),
    ('doing',     'cancel its tree, finish failed+retry', 'todo',   'todo',      NULL),
    ('doing',     'cancel its tree, finish failed+retry, fetch', 'nothing', 'cancelled', 'cancelled'),
    ('doing',     'cancel its tree, finish interrupted, fetch', 'nothing', 'cancelled', 'cancelled'),
    ('todo',      'abort its tree',      'cancelled',               'cancelled', 'cancelled'),
    ('doing',     'abort its tree',      'abort_requested',         'doing',     'open'),
    ('doing+req', 'abort its tree',      'abort_already_requested', 'doing',     'open'),
    ('doing+late','abort its tree',      'abort_already_requested', 'doing',     'open'),
    ('doing+late','abort its tree, finish aborted+retry', 'aborted', 'aborted',  'aborted'),
    ('succeeded', 'abort its tree',      'nothing',                 'succeeded', NULL),
    ('failed',    'abort its tree',      'nothing',                 'failed',    NULL),
    ('cancelled', 'abort its tree',      'nothing',                 'cancelled', NULL),
    ('aborted',   'abort its tree',      'nothing',                 'aborted',   NULL),
    ('todo',      'force its tree',      'cancelled',               'cancelled', 'cancelled'),
    ('doing',     'force its tree',      'aborted',                 'aborted',   'forced'),
    ('doing+req', 'force its tree',      'aborted',                 'aborted',   'forced'),
    ('doing+del', 'force its tree',      'deleted',                 'gone',      'forced'),
    ('doing+late','force its tree',      'aborted',                 'aborted',   'forced'),
    ('stray',     'cancel its tree',     'cancelled',               'cancelled', 'cancelled'),
    ('stray+old', 'cancel its tree',     'nothing',                 'cancelled', NULL),
    ('todo',      'cancel its tree, retry, fetch', 'started',       'doing',     'cancelled'),
    ('todo',      'cancel its tree, retry, cancel its tree, fetch', 'nothing', 'cancelled', 'cancelled');

-- The end of an old run changes nothing, whatever it says: it is answered what that run itself wrote, else stale. The states
-- below had a run before: one that ended the job (succeeded, failed, aborted), or that was put back (all the others).
INSERT INTO transition
SELECT s.state, 'old run''s ' || o.outcome,
       CASE WHEN s.state IN ('succeeded', 'failed', 'aborted') THEN s.state WHEN s.state = 'unknown' THEN 'not_found' ELSE 'stale' END,
       CASE s.state WHEN 'unknown' THEN 'gone' ELSE split_part(s.state, '+', 1) END, CASE WHEN s.state LIKE 'doing+%' THEN 'open' END
  FROM unnest('{todo,doing,doing+req,doing+late,doing+tree,succeeded,failed,cancelled,aborted,unknown}'::text[]) AS s(state),
       unnest('{succeeded,failed,failed+retry,failed+sql,aborted,killed,abandoned,interrupted}'::text[]) AS o(outcome);

-- As if it had been committed while the tree of its parent was being cancelled.
CREATE FUNCTION adopt(job_id bigint, parent_id bigint) RETURNS void
LANGUAGE sql VOLATILE
AS $$
UPDATE pljobs.job AS j SET parent_id = adopt.parent_id WHERE j.id = adopt.job_id;
$$;
CREATE FUNCTION make_state(state text, OUT job_id bigint, OUT run_id bigint, OUT worker_id bigint, OUT request_id bigint)
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    worker_id := a_worker();
    run_id := -1;
    CASE
        WHEN make_state.state IN ('todo', 'cancelled', 'succeeded', 'failed', 'aborted') THEN
            job_id := CASE make_state.state WHEN 'todo' THEN a_todo_job() ELSE a_finished_job(make_state.state) END;
            run_id := coalesce((SELECT j.last_run_id FROM pljobs.job AS j WHERE j.id = make_state.job_id), -1);
        WHEN make_state.state = 'doing' THEN
            SELECT d.job_id, d.run_id, d.worker_id INTO job_id, run_id, worker_id FROM a_doing_job() AS d;
        WHEN make_state.state = 'doing+late' THEN
            SELECT d.job_id, d.run_id, d.worker_id INTO job_id, run_id, worker_id FROM a_timed_out_job() AS d;
        WHEN make_state.state = 'overtime' THEN
            SELECT d.job_id, d.run_id, d.worker_id INTO job_id, run_id, worker_id FROM a_late_job() AS d;
        WHEN make_state.state = 'doing+tree' THEN
            SELECT d.job_id, d.run_id, d.worker_id INTO job_id, run_id, worker_id FROM a_doing_job() AS d;
            PERFORM adopt(make_state.job_id, a_finished_job('failed'));
            PERFORM pljobs.cancel_tree_v1(j.parent_id, abort => true) FROM pljobs.job AS j WHERE j.id = make_state.job_id;
        WHEN make_state.state LIKE 'doing+%' THEN
            SELECT d.job_id, d.run_id, d.worker_id, d.request_id INTO job_id, run_id, worker_id, request_id
              FROM an_aborting_job(delete_job => make_state.state = 'doing+del') AS d;
            UPDATE pljobs.request AS r SET sql_way = 'server' WHERE r.id = make_state.request_id AND make_state.state = 'doing+sql';
            UPDATE pljobs.request AS r SET term_at = now(), kill_at = now() WHERE r.id = make_state.request_id AND make_state.state = 'doing+kill';
        WHEN make_state.state = 'overdue' THEN
            job_id := a_todo_job();
            UPDATE pljobs.job AS j SET start_by = now() - interval '1 s' WHERE j.id = make_state.job_id;
        WHEN make_state.state = 'stray' THEN
            job_id := a_todo_job();
            PERFORM adopt(make_state.job_id, a_finished_job('failed'));
            INSERT INTO pljobs.closed_tree (job_id, closed_at) SELECT j.parent_id, clock_timestamp() FROM pljobs.job AS j WHERE j.id = make_state.job_id;
        WHEN make_state.state = 'stray+old' THEN
            job_id := a_child_of(a_finished_job('failed'));
            PERFORM pljobs.cancel_tree_v1(j.parent_id) FROM pljobs.job AS j WHERE j.id = make_state.job_id;
        ELSE
            job_id := -1;
    END CASE;
END
$$;

CREATE FUNCTION apply_verb(verb text, job_id bigint, run_id bigint, worker_id bigint) RETURNS text
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_outcome text := replace(replace(split_part(verb, '+', 1), 'finish ', ''), 'old run''s ', '');
    v_more jsonb := CASE WHEN verb LIKE '%+retry' THEN '{"retry_at": "2001-01-01T00:00:00Z"}' WHEN verb LIKE '%+sql' THEN '{"sql_cancelled": true}' ELSE '{}' END;
    v_parent bigint;
BEGIN
    CASE
        WHEN verb = 'fetch' THEN
            RETURN CASE WHEN apply_verb.job_id = ANY (fetch_ids((SELECT j.queue FROM pljobs.job AS j WHERE j.id = apply_verb.job_id)))
                        THEN 'started' ELSE 'nothing' END;
        WHEN verb IN ('cancel', 'cancel+delete', 'abort', 'abort+delete', 'force') THEN
            RETURN pljobs.cancel_job(apply_verb.job_id, abort => verb LIKE 'abort%', delete_job => verb LIKE '%+delete', force => verb = 'force');
        WHEN verb = 'delete' THEN
            RETURN pljobs.delete_job(apply_verb.job_id);
        WHEN verb = 'retry' THEN
            RETURN pljobs.retry_job(apply_verb.job_id);
        WHEN verb LIKE 'finish %' THEN
            RETURN finish_run(apply_verb.job_id, apply_verb.run_id, v_outcome, v_more);
        WHEN verb LIKE 'old run''s %' THEN
            RETURN finish_run(apply_verb.job_id, CASE WHEN status_of(apply_verb.job_id) = 'doing' THEN apply_verb.run_id - 1 ELSE apply_verb.run_id END, v_outcome, v_more);
        WHEN verb LIKE 'rescue%' THEN
            PERFORM lose_worker(apply_verb.worker_id);
            RETURN coalesce((SELECT r.outcome FROM pljobs.rescue_jobs_v1(max_crashes => CASE verb WHEN 'rescue' THEN 3 ELSE 1 END) AS r
                              WHERE r.job_id = apply_verb.job_id), 'nothing');
        WHEN verb = 'heartbeat' THEN
            RETURN (SELECT h.verdict FROM pljobs.heartbeat_v1(apply_verb.worker_id, ARRAY[apply_verb.run_id]) AS h);
        WHEN verb = 'enforce' THEN
            RETURN coalesce((SELECT e.outcome FROM pljobs.enforce_limits_v1() AS e WHERE e.job_id = apply_verb.job_id), 'nothing');
        WHEN verb = 'rescind' THEN
            RETURN pljobs.rescind_request(apply_verb.job_id);
        WHEN verb LIKE '% its tree' THEN
            v_parent := (SELECT j.parent_id FROM pljobs.job AS j WHERE j.id = apply_verb.job_id);
            IF v_parent IS NULL THEN
                v_parent := a_finished_job('failed');
                PERFORM adopt(apply_verb.job_id, v_parent);
            END IF;
            RETURN coalesce((SELECT c.outcome FROM pljobs.cancel_tree_v1(v_parent, abort => verb LIKE 'abort%', force => verb LIKE 'force%') AS c WHERE c.job_id = apply_verb.job_id), 'nothing');
        WHEN verb = 'give back' THEN
            PERFORM age_runs(apply_verb.run_id);
            RETURN coalesce((SELECT h.verdict FROM pljobs.heartbeat_v1(apply_verb.worker_id) AS h), 'nothing');
    END CASE;
END
$$;

CREATE FUNCTION check_transition(t transition) RETURNS SETOF text
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_job record := make_state(t.state);
    v_verb text;
    v_answer text;
    v_request record;
BEGIN
    -- One after the other; the last one's answer counts.
    FOREACH v_verb IN ARRAY string_to_array(t.verb, ', ') LOOP
        v_answer := apply_verb(v_verb, v_job.job_id, v_job.run_id, v_job.worker_id);
    END LOOP;
    SELECT r.resolution INTO v_request FROM pljobs.request AS r WHERE r.job_id = v_job.job_id AND r.kind IN ('abort', 'cancel') AND r.resolution IS DISTINCT FROM 'joined' AND t.resolution IS NOT NULL;
    RETURN NEXT is(format('%s -> %s, request %s', v_answer, status_of(v_job.job_id), CASE WHEN FOUND THEN coalesce(v_request.resolution, 'open') ELSE 'none' END),
                   format('%s -> %s, request %s', t.answer, t.after, coalesce(t.resolution, 'none')),
                   format('%s, %s: %s', t.state, t.verb, t.answer));
END
$$;
SELECT check_transition(t) FROM transition AS t;

-- Nothing was forgotten.
SELECT is_empty($$SELECT s, v FROM unnest('{todo,doing,doing+req,doing+late,succeeded,failed,cancelled,aborted}'::text[]) AS s, unnest('{cancel its tree,abort its tree,enforce}'::text[]) AS v
                  EXCEPT SELECT state, verb FROM transition$$, 'every state is tried with its tree, and with its limits');
SELECT is_empty($$SELECT s, v FROM unnest('{doing,doing+req,doing+late}'::text[]) AS s,
                              unnest('{finish succeeded,finish failed,finish failed+retry,finish aborted,finish aborted+retry,finish killed,finish killed+retry,finish abandoned,finish interrupted,rescue,rescue at the cap,heartbeat,give back}'::text[]) AS v
                  EXCEPT SELECT state, verb FROM transition$$, 'every running state is tried with every end');
SELECT is_empty($$SELECT s, v FROM unnest('{todo,doing,doing+req,doing+late,doing+tree,succeeded,failed,cancelled,aborted,unknown}'::text[]) AS s,
                              unnest('{cancel,cancel+delete,abort,abort+delete,force,delete,retry}'::text[]) AS v
                  EXCEPT SELECT state, verb FROM transition$$, 'every state is tried with every verb of people');

SELECT * FROM finish();
ROLLBACK;

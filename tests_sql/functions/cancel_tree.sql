-- Against others: races/tree.spec, races/tree_tree.spec.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

-- A tree: a root, a branch for each state, and under each of these a leaf that waits.
CREATE TABLE node (what text, id bigint, run_id bigint, worker_id bigint);
CREATE FUNCTION plant(root_state text) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_root bigint;
    v_id bigint;
    v_run bigint;
    v_worker bigint;
    v_what text;
BEGIN
    TRUNCATE node;
    FOREACH v_what IN ARRAY ARRAY['root', 'waiting', 'scheduled', 'running', 'aborting', 'timed out', 'succeeded', 'failed', 'cancelled', 'aborted'] LOOP
        v_run := NULL;
        v_worker := NULL;
        IF v_what IN ('succeeded', 'failed', 'cancelled', 'aborted') OR v_what = 'root' AND root_state IN ('succeeded', 'failed', 'cancelled', 'aborted') THEN
            v_id := a_finished_job(CASE v_what WHEN 'root' THEN root_state ELSE v_what END);
        ELSIF v_what IN ('running', 'aborting') OR v_what = 'root' AND root_state = 'running' THEN
            SELECT d.job_id, d.run_id, d.worker_id INTO v_id, v_run, v_worker FROM a_doing_job() AS d;
            IF v_what = 'aborting' THEN
                PERFORM pljobs.cancel_job(v_id, abort => true, reason => 'before');
            END IF;
        ELSIF v_what = 'timed out' THEN
            SELECT d.job_id, d.run_id, d.worker_id INTO v_id, v_run, v_worker FROM a_timed_out_job() AS d;
        ELSE
            v_id := a_todo_job(scheduled_at => CASE v_what WHEN 'scheduled' THEN now() + interval '1 day' END);
        END IF;
        v_root := coalesce(v_root, v_id);
        UPDATE pljobs.job AS j SET parent_id = v_root WHERE j.id = v_id AND v_id <> v_root;
        INSERT INTO node VALUES (v_what, v_id, v_run, v_worker);
        INSERT INTO node SELECT v_what || '''s leaf', a_child_of(v_id) WHERE v_what <> 'root';
    END LOOP;
    RETURN v_root;
END
$$;
CREATE FUNCTION answers(call text) RETURNS TABLE (what text, status_before text, outcome text)
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    RETURN QUERY EXECUTE 'SELECT n.what, c.status_before, c.outcome FROM ' || call || ' AS c LEFT JOIN node AS n ON n.id = c.job_id';
END
$$;
CREATE VIEW state AS SELECT n.what, coalesce(j.status, 'gone') AS status, r.source, r.resolution FROM node AS n LEFT JOIN pljobs.job AS j ON j.id = n.id LEFT JOIN pljobs.request AS r ON r.id = j.request_id;
CREATE FUNCTION closed() RETURNS text
LANGUAGE sql VOLATILE
RETURN (SELECT string_agg(n.what, ', ' ORDER BY n.what COLLATE "C") FROM node AS n JOIN pljobs.closed_tree AS t ON t.job_id = n.id);

-- Shown only.
SELECT plant('waiting') AS root \gset
CREATE TABLE before_it AS TABLE state;
SELECT bag_eq(format('SELECT * FROM answers($x$pljobs.cancel_tree(%s, dry_run => true%s)$x$)', :root, more),
              format($$VALUES ('root', 'todo', %1$L), ('waiting', 'todo', %1$L), ('scheduled', 'todo', %1$L), ('running', 'doing', %2$L), ('aborting', 'doing', %2$L), ('timed out', 'doing', %2$L),
                              ('waiting''s leaf', 'todo', %1$L), ('scheduled''s leaf', 'todo', %1$L), ('running''s leaf', 'todo', %1$L), ('aborting''s leaf', 'todo', %1$L), ('timed out''s leaf', 'todo', %1$L),
                              ('succeeded''s leaf', 'todo', %1$L), ('failed''s leaf', 'todo', %1$L), ('cancelled''s leaf', 'todo', %1$L), ('aborted''s leaf', 'todo', %1$L)$$, todo, doing), 'shown only' || more)
  FROM (VALUES ('', 'would_cancel', 'running'), (', abort => true', 'would_cancel', 'would_abort'), (', force => true', 'would_cancel', 'would_force'), (', delete_job => true', 'would_delete', 'running'), (', abort => NULL, delete_job => NULL, force => NULL', 'would_cancel', 'running'))
       AS v(more, todo, doing);
SELECT set_eq('TABLE state', 'TABLE before_it', 'what is only shown is not changed');
SELECT is(closed(), NULL, 'nor closed');
SELECT results_eq(format('SELECT outcome FROM pljobs.cancel_tree(%s, dry_run => true)', a_finished_job(s)), format('VALUES (%L)', CASE WHEN s IN ('cancelled', 'aborted') THEN 'already_cancelled' ELSE 'already_finished' END), 'a root that is ' || s)
  FROM unnest('{succeeded,failed,cancelled,aborted}'::text[]) AS s;
SELECT results_eq(format('SELECT outcome FROM pljobs.cancel_tree(%s, delete_job => true, dry_run => true)', a_finished_job(s)), format('VALUES (%L)', CASE WHEN s IN ('cancelled', 'aborted') THEN 'would_delete' ELSE 'already_finished' END), 'to be deleted, a root that is ' || s)
  FROM unnest('{succeeded,failed,cancelled,aborted}'::text[]) AS s;

-- Waiting ones are cancelled; running ones left alone, and may go on deferring.
SELECT bag_eq(format('SELECT * FROM answers(''pljobs.cancel_tree(%s, reason => ''''why'''', actor => ''''whom'''', dry_run => NULL)'')', :root),
              $$VALUES ('root', 'todo', 'cancelled'), ('waiting', 'todo', 'cancelled'), ('scheduled', 'todo', 'cancelled'), ('running', 'doing', 'running'), ('aborting', 'doing', 'running'), ('timed out', 'doing', 'running'),
                       ('waiting''s leaf', 'todo', 'cancelled'), ('scheduled''s leaf', 'todo', 'cancelled'), ('running''s leaf', 'todo', 'cancelled'), ('aborting''s leaf', 'todo', 'cancelled'), ('timed out''s leaf', 'todo', 'cancelled'),
                       ('succeeded''s leaf', 'todo', 'cancelled'), ('failed''s leaf', 'todo', 'cancelled'), ('cancelled''s leaf', 'todo', 'cancelled'), ('aborted''s leaf', 'todo', 'cancelled')$$, 'waiting jobs of a tree are cancelled, running ones left alone');
SELECT set_eq($$SELECT status, count(*) FROM state GROUP BY 1$$, $$VALUES ('doing', 3::bigint), ('cancelled', 13), ('succeeded', 1), ('failed', 1), ('aborted', 1)$$, 'so they are');
SELECT set_eq($$SELECT CASE n.what WHEN 'root' THEN 'root' ELSE 'others' END, r.source, r.resolution, r.reason, r.actor FROM node AS n JOIN pljobs.request AS r ON r.job_id = n.id AND r.kind = 'cancel' AND r.reason IS NOT NULL$$,
              $$VALUES ('root', 'user', 'cancelled', 'why', 'whom'), ('others', 'tree', 'cancelled', 'why', 'whom')$$, 'the root by a person, the others by their tree');
SELECT is(closed(), 'aborted, aborted''s leaf, aborting''s leaf, cancelled, cancelled''s leaf, failed, failed''s leaf, root, running''s leaf, scheduled, scheduled''s leaf, succeeded, succeeded''s leaf, timed out''s leaf, waiting, waiting''s leaf',
          'all of the tree is closed but for what is left alone');
SELECT throws_ok(format('SELECT a_child_of(%s)', n.id), 'PJ007', NULL, n.what || ' can defer no more') FROM node AS n WHERE n.what IN ('root', 'failed', 'waiting', 'running''s leaf');
SELECT throws_ok(format($$SELECT pljobs.defer_jobs_v1('[{"task": "nothing of all this"}, {"task": "t", "parent_id": %s}]')$$, :root), 'PJ007', NULL, 'nor in a bulk');
SELECT is_empty($$SELECT FROM pljobs.job WHERE task = 'nothing of all this'$$, 'all or none');
SELECT isnt(a_child_of(n.id), NULL, 'one that runs on may defer') FROM node AS n WHERE n.what = 'running';
SELECT bag_eq(format('SELECT * FROM answers(''pljobs.cancel_tree_v1(%s)'')', :root), $$VALUES ('root', 'cancelled', 'already_cancelled'), ('running', 'doing', 'running'), ('aborting', 'doing', 'running'), ('timed out', 'doing', 'running'), (NULL, 'todo', 'cancelled')$$, 'again: what has come since');

-- With abort the running ones are asked; a person's request stays the person's, that of a timeout becomes the tree's.
SELECT plant('running') AS root \gset
SELECT bag_eq(format('SELECT * FROM answers(''pljobs.cancel_tree_v1(%s, abort => true, reason => ''''why'''', actor => ''''whom'''', grace => ''''1 h'''')'') WHERE status_before = ''doing''', :root),
              $$VALUES ('root', 'doing', 'abort_requested'), ('running', 'doing', 'abort_requested'), ('aborting', 'doing', 'abort_already_requested'), ('timed out', 'doing', 'abort_already_requested')$$, 'with abort running jobs of a tree are asked to stop');
SELECT set_eq($$SELECT n.what, r.source, r.reason, r.term_at - r.requested_at > interval '59 min' FROM node AS n JOIN pljobs.job AS j ON j.id = n.id JOIN pljobs.request AS r ON r.id = j.request_id$$,
              $$VALUES ('root', 'user', 'why', true), ('running', 'tree', 'why', true), ('aborting', 'user', 'before', true), ('timed out', 'tree', 'why', false)$$, 'the root by a person, the others by their tree; what was asked before is only made stronger');
SELECT is(closed(), (SELECT string_agg(n.what, ', ' ORDER BY n.what COLLATE "C") FROM node AS n), 'then all of the tree is closed');
SELECT is(finish_run(n.id, n.run_id, 'aborted', '{"retry_at": "2001-01-01T00:00:00Z"}'), 'aborted', n.what || ' ends as aborted, never retried') FROM node AS n WHERE n.run_id IS NOT NULL;

-- By force they are ended; with deletion all that was todo or doing is gone.
SELECT plant('running') AS root \gset
SELECT bag_eq(format('SELECT * FROM answers(''pljobs.cancel_tree_v1(%s, force => true, sql => true)'') WHERE status_before = ''doing''', :root),
              $$VALUES ('root', 'doing', 'aborted'), ('running', 'doing', 'aborted'), ('aborting', 'doing', 'aborted'), ('timed out', 'doing', 'aborted')$$, 'by force they are ended');
SELECT is_empty($$SELECT FROM state WHERE status IN ('todo', 'doing')$$, 'nothing of the tree waits or runs');
SELECT plant('failed') AS root \gset
SELECT bag_eq(format('SELECT what, outcome FROM answers(''pljobs.cancel_tree_v1(%s, force => true, delete_job => true)'') WHERE what NOT LIKE ''%%leaf''', :root),
              $$VALUES ('root', 'already_finished'), ('waiting', 'deleted'), ('scheduled', 'deleted'), ('running', 'deleted'), ('aborting', 'deleted'), ('timed out', 'deleted')$$, 'with deletion they are gone');
SELECT set_eq($$SELECT what, status FROM state WHERE status <> 'gone'$$, $$VALUES ('root', 'failed'), ('succeeded', 'succeeded'), ('failed', 'failed'), ('cancelled', 'cancelled'), ('aborted', 'aborted')$$, 'finished jobs stay');

-- A root that is gone: its children are a tree, and stay closed to what comes.
SELECT a_finished_job('succeeded') AS root \gset
SELECT a_child_of(:root) AS child \gset
SELECT pljobs.delete_job(:root) \g /dev/null
SELECT results_eq(format('SELECT job_id, outcome FROM pljobs.cancel_tree(%s)', :root), format($$VALUES (%s::bigint, 'cancelled')$$, :child), 'the root may be gone');
SELECT throws_ok(format('SELECT a_child_of(%s)', :root), 'PJ007', NULL, 'it stays closed to what comes');
-- So may those between: deleted when they succeeded, by a person, or pruned.
SELECT a_todo_job() AS root \gset
SELECT a_child_of(:root) AS one \gset
SELECT start_job(:one) AS run \gset
SELECT a_child_of(:one) AS two \gset
SELECT a_child_of(:two) AS leaf, a_child_of(:root) AS no_parent \gset
SELECT finish_run(:one, :run, 'succeeded', '{"delete_job": true}'), pljobs.cancel_job(:two, delete_job => true), pljobs.cancel_job(:no_parent, delete_job => true) \g /dev/null
SELECT is(ARRAY(SELECT job_id FROM pljobs.deleted_parent WHERE job_id IN (:one, :two, :no_parent) ORDER BY 1), ARRAY[:one, :two]::bigint[], 'what is deleted is remembered if it has both a parent and children');
SELECT is(ARRAY(SELECT job_id FROM pljobs.cancel_tree(:root, dry_run => true)), ARRAY[:root, :leaf]::bigint[], 'shown: those between may be gone');
SELECT is(ARRAY(SELECT job_id FROM pljobs.cancel_tree(:root)), ARRAY[:root, :leaf]::bigint[], 'those between may be gone');
SELECT throws_ok(format('SELECT a_child_of(%s)', :two), 'PJ007', NULL, 'they stay closed to what comes');

-- What there is not, or not yet.
SELECT is_empty(format('SELECT FROM pljobs.cancel_tree_v1(%L, true, true, true)', x), 'no such tree: ' || coalesce(x::text, 'null')) FROM unnest('{-1,0,9223372036854775807,NULL}'::bigint[]) AS x;
SELECT is_empty(format('SELECT FROM pljobs.cancel_tree_v1(%L, dry_run => true)', x), 'nor shown: ' || coalesce(x::text, 'null')) FROM unnest('{-1,0,9223372036854775807,NULL}'::bigint[]) AS x;
SELECT is_empty('SELECT FROM pljobs.closed_tree WHERE job_id IN (-1, 0, 9223372036854775807)', 'what was never deferred is not closed: it may come');
SELECT a_todo_job() AS root \gset
SELECT throws_ok(format('SELECT pljobs.cancel_tree(%s, abort => true, %s)', :root, a), 'PJ004', NULL, 'refused: ' || a) FROM unnest(ARRAY['grace => ''-1 s''', 'term_grace => ''1 s''', 'grace => ''1 s'', term_grace => ''-1 s''', 'grace => ''-1 s'', dry_run => true']) AS a;
SELECT is(ARRAY[status_of(:root), (SELECT count(*)::text FROM pljobs.closed_tree WHERE job_id = :root)], '{todo,0}', 'what is refused changes nothing');
-- Round in circles.
SELECT a_todo_job() AS one, a_todo_job() AS two \gset
UPDATE pljobs.job SET parent_id = CASE id WHEN :one THEN :two ELSE :one END WHERE id IN (:one, :two);
SELECT bag_eq(format('SELECT job_id, parent_id, outcome FROM pljobs.cancel_tree(%s)', :one), format($$VALUES (%1$s::bigint, %2$s::bigint, 'cancelled'), (%2$s, %1$s, 'cancelled')$$, :one, :two), 'a circle is a tree');
SELECT a_todo_job() AS one \gset
UPDATE pljobs.job SET parent_id = id WHERE id = :one;
SELECT results_eq(format('SELECT outcome FROM pljobs.cancel_tree(%s)', :one), $$VALUES ('cancelled')$$, 'its own parent');
-- Deep and wide.
SELECT a_todo_job() AS root \gset
CREATE FUNCTION grow(root bigint, deep integer) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    FOR i IN 1..deep LOOP
        root := (pljobs.defer_jobs_v1(jsonb_build_array(jsonb_build_object('task', 't', 'parent_id', root), jsonb_build_object('task', 't', 'parent_id', root))))[1];
    END LOOP;
END
$$;
SELECT grow(:root, 200) \g /dev/null
SELECT is(count(*), 401::bigint, 'of any depth') FROM pljobs.cancel_tree(:root) AS c WHERE c.outcome = 'cancelled';
-- Lanes.
SELECT a_name('lane') AS l, a_name('queue') AS q \gset
SELECT a_todo_job() AS root \gset
SELECT a_child_of(:root, :'l', :'q') AS one, a_todo_job(:'l', queue => :'q') AS two \gset
SELECT start_job(:one) AS run_one, fetch_ids(:'q') \gset
SELECT is(wait_of(:two), 'lock', 'a lane waits');
SELECT count(*) FROM pljobs.cancel_tree(:root, abort => true) \g /dev/null
SELECT is(wait_of(:two), 'lock', 'behind a job that is asked to stop it waits on');
SELECT count(*) FROM pljobs.cancel_tree(:root, force => true) \g /dev/null
SELECT is(wait_of(:two), 'ready', 'when the job before it is cancelled with its tree, the next of a lane is woken');

-- A child that is met where it would start. It was committed at the same time: here, as if.
CREATE FUNCTION a_stray(parent_id bigint, lock text DEFAULT NULL, queue text DEFAULT a_name('queue'), on_cancelled text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_id bigint := a_child_of(NULL, a_stray.lock, a_stray.queue, a_stray.on_cancelled);
BEGIN
    UPDATE pljobs.job AS j SET parent_id = a_stray.parent_id WHERE j.id = v_id;
    RETURN v_id;
END
$$;
SELECT a_todo_job() AS root, a_todo_job() AS open_root, a_name('queue') AS q \gset
SELECT count(*) FROM pljobs.cancel_tree(:root) \g /dev/null
SELECT a_stray(:root, queue => :'q', on_cancelled => 'tidy up') AS stray, a_stray(:open_root, queue => :'q') AS child, a_todo_job(queue => :'q') AS other \gset
SELECT is(fetch_ids(:'q', 10), ARRAY[:child, :other]::bigint[], 'a child of a cancelled tree does not start; others do');
SELECT results_eq(format('SELECT j.status, j.message, r.kind, r.source, r.resolution FROM pljobs.job AS j JOIN pljobs.request AS r ON r.job_id = j.id WHERE j.id = %s', :stray), $$VALUES ('cancelled', 'the tree that it belongs to was cancelled', 'cancel', 'tree', 'cancelled')$$, 'it is cancelled');
SELECT isnt(fetch_ids(:'q', 10), '{}', 'its follow-up runs');
SELECT throws_ok(format('SELECT a_child_of(%s)', :stray), 'PJ007', NULL, 'and closed itself');
SELECT a_stray(:stray, queue => :'q') AS stray_of_stray \gset
SELECT is(fetch_ids(:'q'), '{}', 'so are those below it');
SELECT is(status_of(:stray_of_stray), 'cancelled', 'to any depth');
-- Among many, a fetch still finds what may run.
SELECT a_name('queue') AS q \gset
SELECT count(a_stray(:root, queue => :'q')) FROM generate_series(1, 30) \g /dev/null
SELECT a_todo_job(queue => :'q') AS other \gset
SELECT is(fetch_ids(:'q'), ARRAY[:other]::bigint[], 'a fetch looks further than what it cancels');
SELECT is(count(*), 0::bigint, 'all of these are cancelled') FROM pljobs.job AS j WHERE j.queue = :'q' AND j.status = 'todo';
-- In a lane.
SELECT a_name('lane') AS l, a_name('queue') AS q \gset
SELECT a_stray(:root, :'l', :'q') AS stray, a_todo_job(:'l', queue => :'q') AS next_one \gset
SELECT is(fetch_ids(:'q', 5), ARRAY[:next_one]::bigint[], 'the next of its lane takes its place');
-- Put back by a person: it runs, and may defer.
SELECT is(pljobs.retry_job(:stray), 'requeued', 'a person puts it back');
SELECT isnt(a_child_of(:stray), NULL, 'it may defer');
SELECT finish_run(:next_one, (SELECT run_id FROM pljobs.job WHERE id = :next_one), 'succeeded') \g /dev/null
SELECT is(fetch_ids(:'q', 5), ARRAY[:stray]::bigint[], 'then it runs');
SELECT is(finish_run(:stray, (SELECT run_id FROM pljobs.job WHERE id = :stray), 'failed', '{"retry_at": "2001-01-01T00:00:00Z"}'), 'todo', 'and may be retried');
SELECT is(fetch_ids(:'q', 5), ARRAY[:stray]::bigint[], 'then it runs again');
SELECT is(finish_run(:stray, (SELECT run_id FROM pljobs.job WHERE id = :stray), 'failed', '{"retry_at": "2001-01-01T00:00:00Z"}'), 'todo', 'and again');
SELECT count(*) FROM pljobs.cancel_tree(:root) \g /dev/null
SELECT is(status_of(:stray), 'cancelled', 'until its tree is cancelled anew');
SELECT a_stray(:root, queue => :'q') AS stray \gset
SELECT pljobs.cancel_job(:stray), pljobs.retry_job(:stray) \g /dev/null
SELECT count(*) FROM pljobs.cancel_tree(:root) \g /dev/null
UPDATE pljobs.job SET status = 'todo', finished_at = NULL WHERE id = :stray;
SELECT is(fetch_ids(:'q', 5), '{}', 'what a person put back before counts no longer');
-- One that was left alone and comes back to the queue does not start again.
SELECT a_finished_job('succeeded') AS root \gset
SELECT a_child_of(:root) AS child \gset
SELECT start_job(:child) AS run_id \gset
SELECT results_eq(format('SELECT outcome FROM pljobs.cancel_tree(%s) WHERE job_id = %s', :root, :child), $$VALUES ('running')$$, 'one that runs is left alone');
SELECT is(finish_run(:child, :run_id, 'failed', '{"retry_at": "2001-01-01T00:00:00Z"}'), 'todo', 'it may fail and be retried');
SELECT is(fetch_ids((SELECT queue FROM pljobs.job WHERE id = :child)), '{}', 'but does not start again');
SELECT is(status_of(:child), 'cancelled', 'it is cancelled');

-- Keys.
SELECT is(pljobs._tree_key(NULL), NULL, 'no job, no key');
SELECT ok(pljobs._tree_key(x) BETWEEN 7205759010000 AND 7205759011023, 'a key of 1,024: ' || x) FROM unnest('{-1,0,1,9223372036854775807,-9223372036854775808}'::bigint[]) AS x;
SELECT is(pljobs._claim_children(x), x, 'no parent: ' || coalesce(x::text, 'null')) FROM (VALUES ('{}'::bigint[])) AS v(x);
SELECT is(pljobs._claim_children(NULL), '{}', 'nothing to claim');

-- Whose tree it is.
SELECT a_login('pljobs_producer') AS ann, a_login('pljobs_producer') AS bob, a_login('pljobs_canceller') AS guard, a_login('pljobs_operator') AS ops \gset
CREATE FUNCTION job_of(login text, more text DEFAULT '') RETURNS bigint LANGUAGE sql VOLATILE RETURN as_login(login, format('SELECT pljobs.defer_job(''t'', queue => %L%s)', a_name('queue'), more))::bigint;
SELECT job_of(:'ann') AS root \gset
SELECT job_of(:'bob', format(', parent_id => %s', :root)) AS child \gset
CREATE FUNCTION tree(login text, root bigint, more text DEFAULT '') RETURNS text LANGUAGE sql VOLATILE
RETURN as_login(login, format('SELECT string_agg(format(''%%s %%s'', c.job_id, c.outcome), '', '' ORDER BY c.job_id) FROM pljobs.cancel_tree_v1(%s%s) AS c', root, more));
SELECT is(tree(:'bob', :root, ', force => true'), NULL, 'the tree of another''s job is as if it were not there');
SELECT is(tree(:'bob', :root, ', dry_run => true'), NULL, 'not to be looked at either');
SELECT is(tree(:'bob', 1000000), NULL, 'as an unknown id is');
SELECT results_eq(format('SELECT j.status, EXISTS (SELECT FROM pljobs.closed_tree AS t WHERE t.job_id = j.id) FROM pljobs.job AS j WHERE j.id = %s', :root), $$VALUES ('todo', false)$$, 'it is not closed');
SELECT is(tree(who, :root, ', dry_run => true'), format('%s would_cancel, %s would_cancel', :root, :child), what || ' sees all of it') FROM (VALUES (:'guard', 'a canceller'), (:'ops', 'an operator')) AS w(who, what);
SELECT is(tree(:'bob', :child), format('%s cancelled', :child), 'who has deferred a part of it cancels that');
SELECT job_of(:'bob', format(', parent_id => %s', :root)) AS child \gset
SELECT is(tree(:'ann', :root), format('%s cancelled, %s cancelled', :root, :child), 'who has deferred the root cancels all that came of it, whoever deferred that');
SELECT job_of(:'ann') AS gone \gset
SELECT pljobs.cancel_job(:gone, delete_job => true) \g /dev/null
SELECT is(tree(:'ann', :gone), NULL, 'of a root that is gone nobody knows whose it was');
SELECT is(EXISTS (SELECT FROM pljobs.closed_tree AS t WHERE t.job_id = :gone), false, 'and it is not closed');

-- One of which the request is taken back goes on, through its retries.
CREATE FUNCTION fetched(job_id bigint, OUT run_id bigint) LANGUAGE plpgsql VOLATILE AS $$
BEGIN SELECT f.run_id INTO run_id FROM pljobs.job AS j, LATERAL pljobs.fetch_jobs_v1(a_worker(), queues => ARRAY[j.queue]) AS f WHERE j.id = fetched.job_id AND f.job_id = j.id; END $$;
SELECT job_id AS root FROM a_doing_job() \gset
SELECT a_child_of(:root) AS child \gset
SELECT fetched(:child) AS child_run \gset
SELECT count(*) FROM pljobs.cancel_tree(:root, abort => true) \g /dev/null
SELECT is(pljobs.rescind_request(:child), 'rescinded', 'the request is taken back');
SELECT is(finish_run(:child, :child_run, 'failed', '{"retry_in": "0 s"}'), 'todo', 'it fails, and is retried');
SELECT fetched(:child) \g /dev/null
SELECT is(status_of(:child), 'doing', 'it starts again');
SELECT lives_ok(format('SELECT a_child_of(%s)', :child), 'and may defer');

-- Left alone: the root, and who ran below one that ran, start again; another does not.
SELECT job_id AS root, run_id AS root_run FROM a_doing_job() \gset
SELECT a_child_of(:root) AS child \gset
SELECT fetched(:child) AS child_run \gset
SELECT count(*) FROM pljobs.cancel_tree(:root) \g /dev/null
SELECT finish_run(:root, :root_run, 'interrupted'), finish_run(:child, :child_run, 'interrupted'), fetched(:root), fetched(:child) \g /dev/null
SELECT is(status_of(:root) || ' ' || status_of(:child), 'doing doing', 'what was left alone with its parent starts again');

SELECT * FROM finish();
ROLLBACK;

BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

-- How long a hint lasts.
SELECT ok(pljobs._hint_until(10) BETWEEN extract(epoch FROM now()) + 1 AND extract(epoch FROM clock_timestamp()) + 1, 'a hint is followed 100 times as long as its walk took');
SELECT ok(pljobs._hint_until(60000) BETWEEN extract(epoch FROM now()) + 5 AND extract(epoch FROM clock_timestamp()) + 5, 'and 5 s at most');

-- What a walk leaves.
CREATE FUNCTION noted(name text) RETURNS text[]
LANGUAGE sql STABLE
RETURN string_to_array(current_setting('pljobs.' || noted.name || '_hint', true), '|');
SELECT is(noted('a'), NULL, 'at first there is none');
SELECT is(pljobs._hint_from('a'), '-infinity', 'and a walk starts where all starts');
SELECT pljobs._note_walk('a', clock_timestamp() + interval '1 min', '-infinity', '2020-02-02 02:02:02.020202+00') \g /dev/null
SELECT is(noted('a'), NULL, 'a fast walk leaves none');
SELECT pljobs._note_walk('a', clock_timestamp() - interval '40 ms', '-infinity', '2020-02-02 02:02:02.020202+00') \g /dev/null
SELECT is(noted('a'), '{}', 'nor does the first that is slow');
SELECT pljobs._note_walk('a', clock_timestamp() - interval '40 ms', '-infinity', '2020-02-02 02:02:02.020202+00') \g /dev/null
SELECT ok((noted('a'))[2]::numeric BETWEEN extract(epoch FROM now()) + 4 AND extract(epoch FROM clock_timestamp()) + 5, 'the next leaves one that lasts');
SELECT is(pljobs._hint_from('a'), '2020-02-02 02:02:02.020202+00', 'the next starts where it found something, to the microsecond');
SELECT is(pljobs._hint_from('b'), '-infinity', 'but no other walk');
SELECT (noted('a'))[2] AS until \gset
SELECT pljobs._note_walk('a', clock_timestamp() - interval '1 s', '2020-02-02 02:02:02.020202+00', '2021-02-02 02:02:02.020202+00') \g /dev/null
SELECT is(noted('a'), ARRAY[extract(epoch FROM '2021-02-02 02:02:02.020202+00'::timestamptz)::text, :'until'], 'one that started there and was slow moves it, and does not make it last');

-- When one is not followed.
SELECT set_config('pljobs.fetch_hint', '', true) \g /dev/null
SELECT is(pljobs._hint_from('a'), '-infinity', 'who asks to look at all there is, is shown it');
SELECT set_config('pljobs.fetch_hint', 'of a walk', true) \g /dev/null
SELECT set_config('pljobs.a_hint', concat_ws('|', 0, extract(epoch FROM clock_timestamp()) - 0.001), true) \g /dev/null
SELECT is(pljobs._hint_from('a'), '-infinity', 'one whose time is over is not followed');
SELECT set_config('pljobs.a_hint', concat_ws('|', 0, extract(epoch FROM clock_timestamp()) + 61), true) \g /dev/null
SELECT is(pljobs._hint_from('a'), '-infinity', 'nor one that would last for a minute, for the clock was set back');
SELECT set_config('pljobs.a_hint', '', true) \g /dev/null
SELECT is(pljobs._hint_from('a'), '-infinity', 'nor an empty one');

-- The walks that follow one. In fetches, of what is due and of what is too late to start.
CREATE FUNCTION hint(name text, since timestamptz, seconds double precision) RETURNS text
LANGUAGE sql VOLATILE
RETURN set_config('pljobs.' || hint.name || '_hint', concat_ws('|', extract(epoch FROM hint.since), extract(epoch FROM clock_timestamp()) + hint.seconds), true);
SELECT take_turns() \g /dev/null
SELECT a_name('queue') AS q, a_worker() AS w \gset
SELECT a_scheduled_job(queue => :'q') AS before, a_scheduled_job(queue => :'q') AS after \gset
UPDATE pljobs.job SET scheduled_at = now() - interval '2 h' WHERE id = :before;
UPDATE pljobs.job SET scheduled_at = now() - interval '1 h' WHERE id = :after;
SELECT hint('due', now() - interval '1 h', 60) \g /dev/null
SELECT ok(pljobs.next_fetch_v1(:w, ARRAY[:'q']) BETWEEN interval '-61 min' AND interval '-59 min', 'what is due next is looked for from the hint on');
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 10, ARRAY[:'q'])), ARRAY[:after]::bigint[], 'and made ready from there on');
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 10, ARRAY[:'q'])), '{}', 'what comes before waits');
SELECT look_at_all(), set_config('pljobs.fetch_hint', 'of no walk', true), hint('due', now() - interval '1 h', 30) \g /dev/null
SELECT ok(pljobs.next_fetch_v1(:w, ARRAY[:'q']) BETWEEN interval '0' AND interval '30 s', 'who asks what comes next is told when it will be looked at');
SELECT look_at_all(), set_config('pljobs.fetch_hint', concat_ws('|', 1, 2, 3, extract(epoch FROM clock_timestamp()) + 20), true) \g /dev/null
SELECT ok(pljobs.next_fetch_v1(:w, ARRAY[:'q']) < interval '0', 'but not later than what is known');
SELECT ok(pljobs.next_fetch_v1(:w, '{another}') BETWEEN interval '0' AND interval '20 s', 'nor what a fetch passes over that is ready');
SELECT hint('due', now() - interval '1 h', -1) \g /dev/null
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 10, ARRAY[:'q'])), ARRAY[:before]::bigint[], 'until the time of the hint is over');

SELECT a_scheduled_job(queue => :'q') AS before, a_scheduled_job(queue => :'q') AS after \gset
UPDATE pljobs.job SET start_by = now() - interval '2 h' WHERE id = :before;
UPDATE pljobs.job SET start_by = now() - interval '1 h' WHERE id = :after;
SELECT hint('late', now() - interval '1 h', 60) \g /dev/null
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 10, ARRAY[:'q'])), '{}', 'nothing to start');
SELECT results_eq(format('SELECT status_of(%s), status_of(%s)', :before, :after), $$VALUES ('todo', 'cancelled')$$, 'what is too late to start is cancelled from the hint on');
SELECT hint('late', now() - interval '1 h', -1) \g /dev/null
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 10, ARRAY[:'q'])), '{}', 'nothing to start either');
SELECT is(status_of(:before), 'cancelled', 'what comes before, when its time is over');

-- Slow for sure: thousands that were due, and are ready in this transaction; their index entries are there.
SELECT hint('due', now(), -1) \g /dev/null
SELECT pljobs.defer_jobs_v1((SELECT jsonb_agg(jsonb_build_object('task', 'another task', 'queue', :'q'::text, 'scheduled_at', '9999-01-01T00:00:00Z')) FROM generate_series(1, 20000))) \g /dev/null
UPDATE pljobs.job SET scheduled_at = now() - interval '1 h' WHERE queue = :'q' AND waiting_for = 'schedule';
UPDATE pljobs.job SET waiting_for = NULL WHERE queue = :'q' AND waiting_for = 'schedule';
SELECT a_scheduled_job(queue => :'q') AS one \gset
UPDATE pljobs.job SET scheduled_at = now() - interval '1 min' WHERE id = :one;
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 1, ARRAY[:'q'], '{a task}')), ARRAY[:one]::bigint[], 'a long walk finds what is due');
SELECT is((noted('due'))[1]::numeric, extract(epoch FROM now() - interval '1 min'), 'and leaves a hint: where it found it');


-- Which queues have jobs to start, where one is paused. Slow for sure: behind thousands of entries.
SELECT a_todo_job(queue => :'q') \g /dev/null
UPDATE pljobs.job SET waiting_for = 'schedule', scheduled_at = now() + interval '1 h' WHERE queue = :'q' AND task = 'another task';
SELECT a_name('queue') AS other, pljobs.pause_queue(a_name('queue')), set_config('pljobs.fetch_hint', 'of no walk', true) \gset
SELECT ok(:'q' = ANY (pljobs._may_fetch_from(NULL, '{paused}')), 'the first walk of a session may be slow');
SELECT set_config('pljobs.queues_hint', '', true) \g /dev/null
SELECT ok(NOT '{paused}' && pljobs._may_fetch_from(NULL, '{paused}'), 'the next was it');
SELECT ok(pljobs._hint_left(split_part(current_setting('pljobs.queues_hint'), '|', 1)) < interval '5 s', 'which is remembered');
SELECT a_todo_job(queue => :'other') AS job_id \gset
SELECT ok(:'q' = ANY (f.queues) AND NOT :'other' = ANY (f.queues), 'for a while it answers what it found') FROM pljobs._may_fetch_from(NULL, '{paused}') AS f(queues);
SELECT is(pljobs._may_fetch_from(ARRAY[:'q', :'other'], ARRAY[:'q']), ARRAY[:'other'], 'not to who names queues');
SELECT is(pljobs._may_fetch_from(NULL, ARRAY[:'q']) && ARRAY[:'q'], false, 'what is paused now is left out');
SELECT ok(pljobs.next_fetch_v1(:w) < interval '5 s', 'who asks what comes next is told when it will look');
SELECT look_at_all(), set_config('pljobs.fetch_hint', 'of no walk', true) \g /dev/null
SELECT ok(:'other' = ANY (pljobs._may_fetch_from(NULL, '{paused}')), 'without a hint it walks');

SELECT * FROM finish();
ROLLBACK;

BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

-- How long a hint lasts.
SELECT ok(pljobs._hint_until(10) BETWEEN extract(epoch FROM now()) + 1 AND extract(epoch FROM clock_timestamp()) + 1, 'a hint is followed 100 times as long as its walk took');
SELECT ok(pljobs._hint_until(10, false) BETWEEN extract(epoch FROM now()) + 0.1 AND extract(epoch FROM clock_timestamp()) + 0.1, 'where there was something before it, 10 times');
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
SELECT is((noted('a'))[2], '0', 'the first that is slow leaves one that is over at once');
SELECT pljobs._note_walk('a', clock_timestamp() - interval '40 ms', '-infinity', '2020-02-02 02:02:02.020202+00') \g /dev/null
SELECT ok((noted('a'))[2]::numeric BETWEEN extract(epoch FROM now()) + 4 AND extract(epoch FROM clock_timestamp()) + 5, 'the next leaves one that lasts');
SELECT is(pljobs._hint_from('a'), '2020-02-02 02:02:02.020202+00', 'the next starts where it found something, to the microsecond');
SELECT is(pljobs._hint_from('b'), '-infinity', 'but no other walk');
SELECT (noted('a'))[2] AS until \gset
SELECT pljobs._note_walk('a', clock_timestamp() - interval '1 s', '2020-02-02 02:02:02.020202+00', '2021-02-02 02:02:02.020202+00') \g /dev/null
SELECT is(noted('a'), ARRAY[extract(epoch FROM '2021-02-02 02:02:02.020202+00'::timestamptz)::text, :'until'], 'one that started there and was slow moves it, and does not make it last');

SELECT pljobs._note_walk('a', clock_timestamp() + interval '1 min', '2020-02-02 02:02:02.020202+00', '2022-02-02 02:02:02.020202+00') \g /dev/null
SELECT is((noted('a'))[2], :'until', 'one that started there and was fast does nothing to it');
SELECT pljobs._note_walk('a', clock_timestamp() - interval '40 ms', '-infinity', '2020-02-02 02:02:02.020202+00') \g /dev/null
SELECT isnt((noted('a'))[2], '0', 'the next whole one that is slow leaves one at once');
SELECT pljobs._note_walk('a', clock_timestamp() + interval '1 min', '-infinity', '2020-02-02 02:02:02.020202+00') \g /dev/null
SELECT is(noted('a'), '{}', 'one that is fast takes it away');

-- When one is not followed.
SELECT set_config('pljobs.fetch_hint', '', true) \g /dev/null
SELECT is(pljobs._hint_from('a'), '-infinity', 'who asks to look at all there is, is shown it');
SELECT set_config('pljobs.fetch_hint', 'of a walk', true) \g /dev/null
SELECT set_config('pljobs.a_hint', concat_ws('|', 0, extract(epoch FROM clock_timestamp()) - 0.001), true) \g /dev/null
SELECT is(pljobs._hint_from('a'), '-infinity', 'one whose time is over is not followed');
SELECT set_config('pljobs.a_hint', concat_ws('|', 0, extract(epoch FROM clock_timestamp()) + 61), true) \g /dev/null
SELECT is(pljobs._hint_from('a'), '-infinity', 'nor one that would last for a minute, for the clock was set back');
SELECT set_config('pljobs.a_hint', concat_ws('|', extract(epoch FROM clock_timestamp()) + 3600, extract(epoch FROM clock_timestamp()) + 30), true) \g /dev/null
SELECT is(pljobs._hint_from('a'), '-infinity', 'nor one from a time to come');
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
SELECT hint('due', now() - interval '1 h', -1) \g /dev/null
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 10, ARRAY[:'q'])), ARRAY[:before]::bigint[], 'until the time of the hint is over');

SELECT a_scheduled_job(queue => :'q') AS before, a_scheduled_job(queue => :'q') AS after \gset
UPDATE pljobs.job SET start_by = now() - interval '2 h' WHERE id = :before;
SELECT hint('late', now() - interval '1 h', 60) \g /dev/null
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 10, ARRAY[:'q'])), '{}', 'nothing to start');
SELECT is(status_of(:before), 'todo', 'what is too late to start is looked for from the hint on');
UPDATE pljobs.job SET start_by = now() - interval '1 h' WHERE id = :after;
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 10, ARRAY[:'q'])), '{}', 'nothing to start either');
SELECT results_eq(format('SELECT status_of(%s), status_of(%s)', :before, :after), $$VALUES ('cancelled', 'cancelled')$$, 'where there is some all is cancelled');

-- Slow for sure: thousands that were due, and are ready in this transaction; their index entries are there.
SELECT hint('due', now(), -1) \g /dev/null
SELECT pljobs.defer_jobs_v1((SELECT jsonb_agg(jsonb_build_object('task', 'another task', 'queue', :'q'::text, 'scheduled_at', '9999-01-01T00:00:00Z')) FROM generate_series(1, 20000))) \g /dev/null
UPDATE pljobs.job SET scheduled_at = now() - interval '1 h' WHERE queue = :'q' AND waiting_for = 'schedule';
UPDATE pljobs.job SET waiting_for = NULL WHERE queue = :'q' AND waiting_for = 'schedule';
SELECT a_scheduled_job(queue => :'q') AS one \gset
UPDATE pljobs.job SET scheduled_at = now() - interval '1 min' WHERE id = :one;
SELECT is(ARRAY(SELECT job_id FROM pljobs.fetch_jobs_v1(:w, 1, ARRAY[:'q'], '{a task}')), ARRAY[:one]::bigint[], 'a long walk finds what is due');
SELECT is((noted('due'))[1]::numeric, extract(epoch FROM now() - interval '1 min'), 'and leaves a hint: where it found it');


SELECT * FROM finish();
ROLLBACK;

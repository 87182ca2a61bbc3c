-- At once from several sessions: races/periodic.spec.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT a_name('periodic task') AS t, a_name('q') AS ql \gset
SELECT * FROM pljobs.defer_periodic_job_v1(:'t', 'p', '2024-01-01 00:00+00', '{"a": 1}', 'a queue', 3, 'a lock', NULL) \gset
SELECT is(:'outcome', 'deferred'::text, 'a tick defers a job');
SELECT results_eq(format('SELECT task, args, queue, priority, lock, status FROM pljobs.job WHERE id = %s', :job_id),
                  format($$VALUES (%L, '{"a": 1}'::jsonb, 'a queue', 3, 'a lock', 'todo')$$, :'t'), 'the job is as given');
SELECT results_eq(format('SELECT last_tick, job_id FROM pljobs.periodic WHERE task = %L', :'t'), format($$VALUES ('2024-01-01 00:00+00'::timestamptz, %s::bigint)$$, :job_id),
                  'the last tick and its job are kept');
SELECT results_eq(format('SELECT outcome, job_id FROM pljobs.defer_periodic_job_v1(%L, ''p'', %L)', :'t', s), $$VALUES ('already_deferred', NULL::bigint)$$, s || ' is not deferred again')
  FROM unnest('{2024-01-01 00:00+00,2024-01-01 01:00+01,2023-12-31 23:59+00}'::text[]) AS s;
SELECT is(outcome, 'deferred', 'the next tick defers the next job') FROM pljobs.defer_periodic_job_v1(:'t', 'p', '2024-01-01 00:01+00', queueing_lock => :'ql');
SELECT is(outcome, 'deferred', 'another periodic_id has ticks of its own') FROM pljobs.defer_periodic_job_v1(:'t', 'another', '2024-01-01 00:00+00');
SELECT is(outcome, 'deferred', 'another task has ticks of its own') FROM pljobs.defer_periodic_job_v1(:'t' || '!', 'p', '2024-01-01 00:00+00');
SELECT results_eq(format('SELECT outcome, job_id FROM pljobs.defer_periodic_job_v1(%L, ''p'', ''2024-01-01 00:02+00'', queueing_lock => %L)', :'t', :'ql'),
                  $$VALUES ('already_enqueued', NULL::bigint)$$, 'a tick whose queueing lock is held by a waiting job defers nothing');
SELECT results_eq(format('SELECT last_tick, job_id FROM pljobs.periodic WHERE task = %L AND periodic_id = ''p''', :'t'),
                  $$VALUES ('2024-01-01 00:02+00'::timestamptz, NULL::bigint)$$, 'that tick counts as done');
SELECT is(outcome, 'already_deferred', 'that tick is not tried again') FROM pljobs.defer_periodic_job_v1(:'t', 'p', '2024-01-01 00:02+00');

SELECT throws_ok(format($$SELECT pljobs.defer_periodic_job_v1(%s)$$, a), 'PJ002', NULL, 'refused: ' || a)
  FROM unnest(ARRAY[$$NULL, 'p', now()$$, $$'t', NULL, now()$$, $$'t', 'p', NULL$$, $$'', 'p', now()$$, $$'t', 'p', now(), '[]'$$,
                    $$'t', 'p', now(), queue => ''$$, $$'t', repeat('p', 256), now()$$, $$'t', 'p', 'infinity'$$, $$'t', 'p', '-infinity'$$]) AS a;
SELECT is_empty($$SELECT FROM pljobs.periodic WHERE task = 't'$$, 'a refused tick is not done');
SELECT is(outcome, 'deferred', 'an empty periodic_id is one') FROM pljobs.defer_periodic_job_v1(:'t', '', '2024-01-01 00:00+00');

SELECT * FROM finish();
ROLLBACK;

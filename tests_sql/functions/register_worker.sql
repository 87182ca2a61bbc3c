BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT pljobs.register_worker_v1('w', 'h', 42, '{a,b}', 5, '10 s') AS w \gset
SELECT results_eq(format('SELECT name, host, pid, queues, concurrency, lease, expires_at - heartbeat_at, started_at = heartbeat_at, stopped_at FROM pljobs.worker WHERE id = %s', :w),
                  $$VALUES ('w', 'h', 42, '{a,b}'::text[], 5, interval '10 s', interval '10 s', true, NULL::timestamptz)$$, 'a worker is registered with a lease');
SELECT ok(pljobs.register_worker_v1('w', 'h', 42) > :w, 'every registration has an id of its own');
SELECT results_eq(format('SELECT queues, concurrency, lease FROM pljobs.worker WHERE id = %s', pljobs.register_worker_v1('w', 'h', 42, NULL, NULL)),
                  $$VALUES (NULL::text[], 1, interval '30 s')$$, 'the default is all queues, one job at a time, a lease of 30 s');

SELECT a_todo_job() AS job_id \gset
SELECT start_job(:job_id, :w) AS run_id \gset
SELECT lose_worker(:w), pljobs.unregister_worker_v1(:w) \g /dev/null
SELECT is(pljobs.register_worker_v1('w', 'h', 42, '{a,b}', 5, '20 s', :w), :w::bigint, 'a worker registers again under its id');
SELECT results_eq(format('SELECT stopped_at, lease, expires_at > clock_timestamp() FROM pljobs.worker WHERE id = %s', :w), $$VALUES (NULL::timestamptz, interval '20 s', true)$$,
                  'then its lease begins anew');
SELECT is(h.verdict, 'ok', 'jobs that it still holds stay its own') FROM pljobs.heartbeat_v1(:w, ARRAY[:run_id]::bigint[]) AS h;
DELETE FROM pljobs.worker WHERE id = :w;
SELECT is(pljobs.register_worker_v1('w', 'h', 42, worker_id => :w), :w::bigint, 'a worker whose row was pruned registers again under its id');

-- A standby that was promoted may have lost the last steps of the sequence.
SELECT pljobs.register_worker_v1('w', 'h', 42, worker_id => :w + 10) AS w2 \gset
SELECT ok(bool_and(pljobs.register_worker_v1('another', 'h', 42) <> :w2), 'a new worker never gets the id of another') FROM generate_series(1, 20);
SELECT is(w.name, 'w', 'a new worker never takes the row of another') FROM pljobs.worker AS w WHERE w.id = :w2;

SELECT throws_ok(format('SELECT pljobs.register_worker_v1(%s)', a), 'PJ004', NULL, 'refused: ' || a)
  FROM unnest(ARRAY[$$NULL, 'h', 1$$, $$'w', NULL, 1$$, $$'w', 'h', NULL$$, $$'w', 'h', 1, lease => '0.999 s'$$, $$'w', 'h', 1, lease => '-1 h'$$,
                    $$'w', 'h', 1, lease => NULL$$]) AS a;
SELECT isnt(pljobs.register_worker_v1('w', 'h', 1, lease => '1 s'), NULL, 'a lease of one second is accepted');
SELECT results_eq(format('SELECT char_length(name), char_length(host) FROM pljobs.worker WHERE id = %s', pljobs.register_worker_v1(repeat(chr(128512), 256), repeat('h', 256), 1)),
                  'VALUES (255, 255)', 'a long name is cut: nothing keeps a worker from working');
SELECT lives_ok($$SELECT pljobs.register_worker_v1('x''; DROP TABLE pljobs.job; -- %', chr(8238), -1, ARRAY['', NULL, ';'])$$, 'names are only text');

SELECT throws_ok(format('SELECT pljobs.register_worker_v1(''w'', ''h'', 1, lease => %L)', i), 'PJ004', NULL, 'a lease of ' || i || ' is refused')
  FROM unnest('{0 s,999 ms,-1 day,25 h,10000 years}'::text[]) AS i;
SELECT isnt(a_worker('1 day'), NULL, 'a lease may last a day');

-- A worker that gave up a job whose code may still run.
SELECT * FROM a_doing_job() \gset
SELECT finish_run(:job_id, :run_id, 'abandoned') \g /dev/null
SELECT tainted_at FROM pljobs.worker WHERE id = :worker_id \gset
SELECT pljobs.register_worker_v1('w', 'h', 42, worker_id => :worker_id) \g /dev/null
SELECT is(w.tainted_at, :'tainted_at'::timestamptz, 'stays tainted when it registers again') FROM pljobs.worker AS w WHERE w.id = :worker_id;

SELECT * FROM finish();
ROLLBACK;

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

-- Contract 2.
SELECT pljobs.register_worker_v2('w', 'h', 42, 2, 'pljobs 0.2.0', '{a,b}', 5, '10 s') AS w \gset
SELECT results_eq(format('SELECT name, host, pid, contract, driver, registered_by = session_user, queues, concurrency, lease FROM pljobs.worker WHERE id = %s', :w),
                  $$VALUES ('w', 'h', 42, 2, 'pljobs 0.2.0', true, '{a,b}'::text[], 5, interval '10 s')$$, 'a worker says which contract it speaks, and what it is; who it is, the database says');
SELECT results_eq(format('SELECT contract, driver, registered_by = session_user FROM pljobs.worker WHERE id = %s', pljobs.register_worker_v1('w', 'h', 42)), $$VALUES (1, NULL::text, true)$$, 'register_worker_v1 is for workers of contract 1');
SELECT results_eq(format('SELECT contract, driver, queues, concurrency, lease FROM pljobs.worker WHERE id = %s', pljobs.register_worker_v2('w', 'h', 42, 1, concurrency => NULL)),
                  $$VALUES (1, NULL::text, NULL::text[], 1, interval '30 s')$$, 'the defaults are those of register_worker_v1');
SELECT throws_ok(format('SELECT pljobs.register_worker_v2(''w'', ''h'', 1, %s)', c), 'PJ008', NULL, 'contract ' || c || ' is refused') FROM unnest('{0,4,-1}'::integer[]) AS c;
SELECT throws_like('SELECT pljobs.register_worker_v2(''w'', ''h'', 1, 4, ''node 9'')', '%node 9%contract 4%0.3.7%', 'naming who asked, and what is served');
SELECT throws_ok(format('SELECT pljobs.register_worker_v2(%s)', a), 'PJ004', NULL, 'refused: ' || a)
  FROM unnest(ARRAY[$$'w', 'h', 1, NULL$$, $$NULL, 'h', 1, 2$$, $$'w', NULL, 1, 2$$, $$'w', 'h', NULL, 2$$, $$'w', 'h', 1, 2, lease => NULL$$, $$'w', 'h', 1, 2, lease => '0.9 s'$$]) AS a;
SELECT pljobs.register_worker_v2('w', 'h', 1, 2, repeat('d', 300)) AS talker \gset
SELECT is((SELECT char_length(w.driver) FROM pljobs.worker AS w WHERE w.id = :talker), 255, 'a long driver is cut');
SELECT pljobs.register_worker_v2('w', 'h', 42, 1, 'older', worker_id => :w) \g /dev/null
SELECT results_eq(format('SELECT contract, driver, queues FROM pljobs.worker WHERE id = %s', :w), $$VALUES (1, 'older', '{a,b}'::text[])$$, 'who registers again says what it speaks now');

-- Limited to queues.
SELECT a_login('pljobs_worker') AS limited, a_login('pljobs_worker') AS other \gset
SELECT as_login(:'other', 'SELECT pljobs.register_worker_v1(''w'', ''h'', 1)') AS others \gset
SELECT is(w.registered_by, :'other', 'the worker is its login''s') FROM pljobs.worker AS w WHERE w.id = :others;
SELECT pljobs.limit_queues(:'limited', 'fetch', '{mail,news}') \g /dev/null
CREATE FUNCTION registered(more text) RETURNS text LANGUAGE sql VOLATILE RETURN as_login(current_setting('tests.limited'), format('SELECT pljobs.register_worker_v2(''w'', ''h'', 1, 2%s)', more));
SELECT set_config('tests.limited', :'limited', true) \g /dev/null
SELECT registered('') AS own \gset
SELECT is(w.queues, '{mail,news}', 'a role that is limited to queues works for these') FROM pljobs.worker AS w WHERE w.id = :own;
SELECT matches(registered(', queues => ''{mail}'''), '^\d+$', 'or for some of them');
SELECT is(registered(', queues => ''{mail,money}'''), 'PJ010', 'not for others');
SELECT is(registered(format(', worker_id => %s', :own)), :'own', 'it registers again under its id');
SELECT is(registered(format(', worker_id => %s', :others)), 'PJ003', 'not under another role''s');
SELECT matches(registered(', worker_id => 1000000'), '^1000000$', 'under one that nobody has it may: its own row may have been pruned');
SELECT a_todo_job() AS job_id \gset
SELECT start_job(:job_id, :others) AS run_id \gset
DELETE FROM pljobs.worker WHERE id = :others;
SELECT is(registered(format(', worker_id => %s', :others)), 'PJ003', 'but not where runs are left of somebody who was pruned');
SELECT is(as_login(:'other', format('SELECT pljobs.register_worker_v2(''w'', ''h'', 1, 2, worker_id => %s)', :others)), :'others', 'who is not limited may');
UPDATE pljobs.worker SET registered_by = NULL WHERE id = :others;
SELECT is(registered(format(', worker_id => %s', :others)), 'PJ003', 'a worker from before there were roles is not a limited role''s');
SELECT as_login(:'other', format('SELECT pljobs.register_worker_v2(''w'', ''h'', 1, 2, worker_id => %s)', :others)) \g /dev/null
SELECT is(w.registered_by, :'other', 'it becomes that of who registers it again') FROM pljobs.worker AS w WHERE w.id = :others;

SELECT * FROM finish();
ROLLBACK;

BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

-- What is stored.
SELECT a_name('queue') AS q \gset
SELECT pljobs.defer_jobs_v1(format('[{"task": "t", "queue": %s}]', to_json(:'q'::text))::jsonb) AS ids \gset
SELECT results_eq(
    format('SELECT status, waiting_for, queue, task, args, priority, lock, queueing_lock, scheduled_at, attempts, crashes, deferred_by = session_user FROM pljobs.job WHERE id = ANY (%L)', :'ids'),
    format($$VALUES ('todo', NULL::text, %L, 't', '{}'::jsonb, 0, NULL::text, NULL::text, NULL::timestamptz, 0, 0, true)$$, :'q'),
    'only the task is required: queue and priority and arguments have defaults');
SELECT ok(j.created_at BETWEEN now() AND clock_timestamp(), 'created_at is when the job was deferred') FROM pljobs.job AS j WHERE j.id = ANY (:'ids'::bigint[]);
SELECT pljobs.defer_jobs_v1(jsonb_build_array(jsonb_build_object(
    'task', 't', 'args', '{"b": [1, null]}'::jsonb, 'queue', :'q'::text, 'priority', -3, 'lock', 'l', 'queueing_lock', :'q'::text, 'scheduled_at', '2001-02-03T04:05:06+00'))) AS ids \gset
SELECT results_eq(format('SELECT args, queue, priority, lock, queueing_lock, scheduled_at, waiting_for FROM pljobs.job WHERE id = ANY (%L)', :'ids'),
                  format($$VALUES ('{"b": [1, null]}'::jsonb, %L, -3, 'l', %L, '2001-02-03 04:05:06+00'::timestamptz, NULL::text)$$, :'q', :'q'),
                  'every attribute is stored as given; a time that has passed means at once');
SELECT pljobs.defer_jobs_v1('[{"task": "t", "args": null, "queue": null, "priority": null, "lock": null, "queueing_lock": null, "scheduled_at": null, "unknown": 1}]') AS ids \gset
SELECT results_eq(format('SELECT args, queue, priority, lock FROM pljobs.job WHERE id = ANY (%L)', :'ids'),
                  $$VALUES ('{}'::jsonb, 'default', 0, NULL::text)$$, 'null means the default');
SELECT pljobs.defer_jobs_v1('[{"task": "t", "scheduled_at": "9999-01-01T00:00:00Z"}]') AS ids \gset
SELECT is(wait_of((:'ids'::bigint[])[1]), 'schedule', 'a job for later waits for its schedule');
SELECT pljobs.defer_jobs_v1('[{"task": "t", "scheduled_at": "9999-12-30T00:00:00Z"}, {"task": "t", "scheduled_at": "0001-01-02T00:00:00Z"}]') AS ids \gset
SELECT ok(cardinality(:'ids'::bigint[]) = 2, 'the first and the last time that Python can hold are accepted');

-- The ids.
SELECT pljobs.defer_jobs_v1((SELECT jsonb_agg(jsonb_build_object('task', 'task ' || n, 'priority', n % 7, 'lock', 'l' || n % 5)) FROM generate_series(1, 500) AS n)) AS ids \gset
SELECT results_eq(format('SELECT j.task FROM unnest(%L::bigint[]) WITH ORDINALITY AS i(id, place) JOIN pljobs.job AS j ON j.id = i.id ORDER BY i.place', :'ids'),
                  $$SELECT 'task ' || n FROM generate_series(1, 500) AS n$$, 'the ids are returned in the order of the jobs given');
SELECT ok(:'ids'::bigint[] = ARRAY(SELECT i FROM unnest(:'ids'::bigint[]) AS i ORDER BY i), 'jobs of one call get ascending ids in the order given');
SELECT is(pljobs.defer_jobs_v1('[]'), '{}', 'no jobs, no ids');
SELECT is(cardinality(pljobs.defer_jobs_v1('[{"task": "t"}, {"task": "t"}]', notify => false)), 2, 'jobs may be deferred without a notification');
SELECT is(cardinality(pljobs.defer_jobs_v1('[{"task": "t"}]', notify => NULL)), 1, 'notify null is the default');

-- A lane deferred at once.
SELECT a_name('lane') AS lock \gset
SELECT pljobs.defer_jobs_v1(jsonb_build_array(
    jsonb_build_object('task', 'a', 'lock', :'lock'::text), jsonb_build_object('task', 'b', 'lock', :'lock'::text, 'priority', 1),
    jsonb_build_object('task', 'c', 'lock', :'lock'::text, 'priority', 1), jsonb_build_object('task', 'd'))) AS ids \gset
SELECT results_eq(format('SELECT wait_of(i) FROM unnest(%L::bigint[]) AS i', :'ids'), $$VALUES ('lock'), ('ready'), ('lock'), ('ready')$$,
                  'of the jobs of one lane in one call all but the first to run are parked');

-- Queueing locks.
SELECT a_name('queueing lock') AS ql \gset
SELECT a_todo_job(NULL, :'ql') AS holder \gset
SELECT throws_ok(format('SELECT pljobs.defer_jobs_v1(%L)', jsonb_build_array('{"task": "first of many"}'::jsonb, jsonb_build_object('task', 't', 'queueing_lock', :'ql'::text))),
                 'PJ001', format('queueing lock ''%s'' is held by waiting job %s', :'ql', :holder), 'a queueing lock admits one waiting job');
SELECT is_empty($$SELECT FROM pljobs.job WHERE task = 'first of many'$$, 'all jobs of a call are deferred, or none');
SELECT throws_ok($$SELECT pljobs.defer_jobs_v1('[{"task": "t", "queueing_lock": "tests, twice"}, {"task": "t", "queueing_lock": "tests, twice"}]')$$,
                 'PJ001', 'queueing lock ''tests, twice'' is asked for by two jobs of this call', 'two jobs of a call can''t have one queueing lock');
SELECT start_job(:holder) \g /dev/null
SELECT isnt(a_todo_job(NULL, :'ql'), NULL, 'a queueing lock is free again once its job runs');

-- What can't be deferred. %s stands for the object of the second job of a call.
CREATE FUNCTION refused(job jsonb, why text) RETURNS SETOF text
LANGUAGE sql VOLATILE
AS $$
SELECT throws_ok(format('SELECT pljobs.defer_jobs_v1(%L)', jsonb_build_array('{"task": "good"}'::jsonb, refused.job)), 'PJ002', NULL, refused.why);
$$;
SELECT refused('{}', 'a job without a task is refused');
SELECT refused('{"task": null}', 'a null task is refused');
SELECT refused('7', 'what is not an object is refused');
SELECT refused('null', 'null is no job');
SELECT refused('[]', 'an array is no job');
SELECT refused(jsonb_build_object('task', 't', k, ''), format('an empty %s is refused', k)) FROM unnest('{task,queue,lock,queueing_lock}'::text[]) AS k;
SELECT refused(jsonb_build_object('task', 't', k, repeat(chr(128512), 256)), format('a %s of 256 characters is refused', k)) FROM unnest('{task,queue,lock,queueing_lock}'::text[]) AS k;
SELECT isnt(pljobs.defer_jobs_v1(jsonb_build_array(jsonb_build_object('task', 't', k, repeat(chr(128512), 255)))), NULL, format('a %s of 255 characters is accepted', k))
  FROM unnest('{task,queue,lock}'::text[]) AS k;
SELECT isnt(pljobs.defer_jobs_v1(jsonb_build_array(jsonb_build_object('task', 't', 'queueing_lock', rpad(a_name('q'), 255, chr(128512))))), NULL, 'a queueing_lock of 255 characters is accepted');
SELECT refused(jsonb_build_object('task', 't', 'args', a), 'arguments must be an object, not ' || a::text) FROM unnest('{1,"\"s\"","[]","true"}'::jsonb[]) AS a;
SELECT refused(jsonb_build_object('task', 't', 'args', jsonb_build_object('a', repeat('x', 1048576 - 8))), 'arguments of 1 MiB and one byte are refused');
SELECT isnt(pljobs.defer_jobs_v1(jsonb_build_array(jsonb_build_object('task', 't', 'args', jsonb_build_object('a', repeat('x', 1048576 - 9))))), NULL, 'arguments of exactly 1 MiB are accepted');
SELECT refused(jsonb_build_object('task', 't', 'args', jsonb_build_object('a', repeat(chr(252), 524288))), 'bytes are counted, not characters');
SELECT refused(jsonb_build_object('task', 't', 'args', jsonb_build_object('a', (SELECT jsonb_agg(1e131000::numeric) FROM generate_series(1, 9)))),
               'arguments are measured as they are sent to a worker: a number of few bytes may be a long text');
SELECT refused(jsonb_build_object('task', 't', 'scheduled_at', s), 'not scheduled at ' || s)
  FROM unnest('{infinity,-infinity,10000-01-01T00:00:00Z,0001-01-01T00:00:00Z BC,0001-01-01T00:00:00Z,sometime}'::text[]) AS s;
SELECT refused(jsonb_build_object('task', 't', 'priority', p), 'not with priority ' || p::text) FROM unnest('{2147483648,-2147483649,"\"high\"",-2147483648}'::jsonb[]) AS p;
SELECT isnt(pljobs.defer_jobs_v1('[{"task": "t", "priority": 2147483647}, {"task": "t", "priority": -2147483647}]'), NULL, 'the highest and lowest priority are accepted');
SELECT is_empty($$SELECT FROM pljobs.job WHERE task = 'good'$$, 'a call with one bad job defers none');
SELECT throws_ok(format('SELECT pljobs.defer_jobs_v1(%s)', j), 'PJ002', NULL, 'jobs must be an array, not ' || j)
  FROM unnest(ARRAY['NULL', '''{}''', '''7''', '''null''', '''"a task"''']) AS j;
SELECT throws_like($$SELECT pljobs.defer_jobs_v1('[{"task": "good"}, {"task": "bad", "queue": ""}]')$$, 'job 2 of the call (task ''bad'') can''t be deferred: queue%',
                   'the message names the place, the task and what is wrong');

-- Names are only text.
SELECT a_name(E'x''; DROP TABLE pljobs.job; -- % \\ " \U0000202E') || chr(8238) || chr(128512) AS evil \gset
SELECT pljobs.defer_jobs_v1(jsonb_build_array(jsonb_build_object('task', :'evil'::text, 'queue', :'evil'::text, 'lock', :'evil'::text, 'queueing_lock', :'evil'::text))) AS ids \gset
SELECT results_eq(format('SELECT task, queue, lock, queueing_lock FROM pljobs.job WHERE id = ANY (%L)', :'ids'), format('VALUES (%L, %L, %L, %L)', :'evil', :'evil', :'evil', :'evil'),
                  'quotes, semicolons, per cent signs, U+202E and emoji are stored as they are');
SELECT throws_ok(format('SELECT pljobs.defer_jobs_v1(%L)', jsonb_build_array(jsonb_build_object('task', :'evil'::text, 'queueing_lock', :'evil'::text))), 'PJ001', NULL, 'and held as they are');

-- Relative times, by the database's clock.
SELECT pljobs.defer_jobs_v1('[{"task": "t", "scheduled_in": "1 hour"}]') AS ids \gset
SELECT ok(j.waiting_for = 'schedule' AND j.scheduled_at BETWEEN clock_timestamp() + interval '59 min' AND clock_timestamp() + interval '61 min',
          'a job may be scheduled after an interval from now') FROM pljobs.job AS j WHERE j.id = ANY (:'ids');
SELECT pljobs.defer_jobs_v1('[{"task": "t", "scheduled_in": "0"}]') AS ids \gset
SELECT is(wait_of((:'ids'::bigint[])[1]), 'ready', 'after no time at all means at once');
SELECT refused(jsonb_build_object('task', 't', 'scheduled_in', i), 'not scheduled in ' || i)
  FROM unnest('{-1 hour,-0.000001 s,9000 years,-9000 years,200000000 years,-infinity,soon}'::text[]) AS i;
SELECT refused('{"task": "t", "scheduled_in": "1 h", "scheduled_at": "2030-01-01T00:00:00Z"}', 'not scheduled both at a time and after an interval');

SELECT pljobs.defer_jobs_v1('[{"task": "a", "queueing_lock": "order z"}, {"task": "b"}, {"task": "c", "queueing_lock": "order a"}]') AS ids \gset
SELECT results_eq(format($$SELECT j.task FROM unnest(%L::bigint[]) WITH ORDINALITY AS i(id, place) JOIN pljobs.job AS j ON j.id = i.id ORDER BY i.place$$, :'ids'),
                  $$VALUES ('a'), ('b'), ('c')$$, 'ids come in the order given, whatever the queueing locks');
SELECT results_eq($$SELECT task FROM pljobs.job WHERE queueing_lock LIKE 'order %' ORDER BY id$$, $$VALUES ('a'), ('c')$$, 'and ascend in that order');

-- Limits.
SELECT pljobs.defer_jobs_v1('[{"task": "t", "start_within": "1 h", "timeout": "1 ms", "grace": "0", "on_cancelled": "u", "parent_id": 9223372036854775807}]') AS ids \gset
SELECT results_eq(format('SELECT start_by - created_at, timeout, grace, on_cancelled, parent_id FROM pljobs.job WHERE id = ANY (%L)', :'ids'), $$VALUES (interval '1 h', interval '1 ms', interval '0', 'u', 9223372036854775807)$$, 'a time to start, to run, and to stop; what follows; a parent, whether or not there is one');
SELECT pljobs.defer_jobs_v1('[{"task": "t", "scheduled_in": "2 h", "start_within": "1 h"}]') AS ids \gset
SELECT is(j.start_by - j.scheduled_at, interval '1 h', 'the time to start counts from when it is due') FROM pljobs.job AS j WHERE j.id = ANY (:'ids'::bigint[]);
SELECT pljobs.defer_jobs_v1('[{"task": "t", "scheduled_at": "2001-01-01T00:00:00Z", "start_within": "1 h"}]') AS ids \gset
SELECT is(j.start_by - j.created_at, interval '1 h', 'but not from before now') FROM pljobs.job AS j WHERE j.id = ANY (:'ids'::bigint[]);
SELECT pljobs.defer_jobs_v1('[{"task": "t", "scheduled_at": "9999-12-29T00:00:00Z", "start_within": "7000 years"}]') AS ids \gset
SELECT is(j.start_by, '9999-12-30 00:00+00', 'nor to after what every client can read') FROM pljobs.job AS j WHERE j.id = ANY (:'ids'::bigint[]);
SELECT pljobs.defer_jobs_v1('[{"task": "t", "start_by": "2001-01-01T00:00:00Z"}]') AS ids \gset
SELECT is(status_of((:'ids'::bigint[])[1]), 'todo', 'a time to start that has passed is accepted: the job will be found expired');
SELECT isnt(pljobs.defer_jobs_v1(jsonb_build_array(jsonb_build_object('task', 't', 'timeout', i, 'grace', i))), NULL, 'limits of ' || i) FROM unnest('{10 years,1 ms,1 month -29 days -23:59,3600 days}'::text[]) AS i;
SELECT isnt(pljobs.defer_jobs_v1('[{"task": "t", "start_by": null, "start_within": null, "timeout": null, "grace": null, "on_cancelled": null, "parent_id": null}]'), NULL, 'null means none');
SELECT refused(jsonb_build_object('task', 't', 'start_by', s), 'not to start by ' || s) FROM unnest('{infinity,-infinity,10000-01-01T00:00:00Z,0001-01-01T00:00:00Z BC,sometime}'::text[]) AS s;
SELECT refused(jsonb_build_object('task', 't', 'start_within', i), 'not to start within ' || i) FROM unnest('{-1 hour,9000 years,-9000 years,200000000 years,soon}'::text[]) AS i;
SELECT refused('{"task": "t", "start_within": "1 h", "start_by": "2030-01-01T00:00:00Z"}', 'not to start both by a time and within an interval');
SELECT refused('{"task": "t", "scheduled_at": "2030-01-01T00:00:00Z", "start_by": "2030-01-01T00:00:00Z"}', 'not to start by the time when it is due');
SELECT refused('{"task": "t", "scheduled_in": "2 h", "start_within": "1 h", "start_by": null, "grace": "-1 s"}', 'one that is wrong is enough');
SELECT refused(jsonb_build_object('task', 't', 'timeout', i), 'not with a timeout of ' || i) FROM unnest('{0,-1 s,0.0009 s,11 years,300000 years,200000000 years,1 month -31 days,290000 years -105000000 days,soon}'::text[]) AS i;
SELECT refused(jsonb_build_object('task', 't', 'grace', i), 'not with a grace of ' || i) FROM unnest('{-1 s,11 years,300000 years,200000000 years,1 month -31 days,290000 years -104399000 days,soon}'::text[]) AS i;
SELECT refused(jsonb_build_object('task', 't', 'on_cancelled', x), 'not followed by ' || left(x, 20)) FROM unnest(ARRAY['', repeat('x', 256)]) AS x;
SELECT refused(jsonb_build_object('task', 't', 'parent_id', x), 'no parent: ' || x::text) FROM unnest('{"\"abc\"",9223372036854775808,1.5,[]}'::jsonb[]) AS x;

-- A child of a cancelled tree: none of the call is deferred.
SELECT a_todo_job() AS root \gset
SELECT count(*) FROM pljobs.cancel_tree(:root) \g /dev/null
SELECT throws_ok(format('SELECT pljobs.defer_jobs_v1(%L)', format('[{"task": "good"}, {"task": "good", "parent_id": %s}]', :root)), 'PJ007', NULL, 'the child of a cancelled tree is refused');
SELECT is_empty($$SELECT FROM pljobs.job WHERE task = 'good'$$, 'and with it all of the call');

-- Limited to queues.
SELECT a_login('pljobs_producer') AS ann \gset
SELECT pljobs.limit_queues(:'ann', 'defer', '{mail,default}') \g /dev/null
CREATE FUNCTION deferred(login text, jobs text, role text DEFAULT 'none') RETURNS text LANGUAGE sql VOLATILE RETURN as_login(login, format('SELECT cardinality(pljobs.defer_jobs_v1(%L))', jobs), role);
SELECT is(deferred(:'ann', '[{"task": "t", "queue": "mail"}, {"task": "t"}]'), '2', 'a role defers to the queues that it is limited to');
SELECT is(deferred(:'ann', '[{"task": "t", "queue": "mail"}, {"task": "t", "queue": "money"}]'), 'PJ010', 'one job for another refuses all');
SELECT is(deferred(:'ann', '[{"task": "t", "queue": "Mail"}]'), 'PJ010', 'case matters');
SELECT is(deferred(:'ann', '[{"task": "t", "queue": "money"}]', 'pljobs_producer'), 'PJ010', 'SET ROLE to the group does not help');
SELECT is(as_login(:'ann', 'SELECT pljobs.defer_job(''t'', queue => ''money'')'), 'PJ010', 'defer_job is the same');
SELECT pljobs.limit_queues(:'ann', 'defer', '{mail}') \g /dev/null
SELECT is(deferred(:'ann', '[{"task": "t"}]'), 'PJ010', 'without a queue it is ''default''');
SELECT is(deferred(a_login('pljobs_producer'), '[{"task": "t", "queue": "money"}]'), '1', 'others are not limited');
SELECT is(count(*), 0::bigint, 'nothing else was deferred') FROM pljobs.job AS j WHERE j.deferred_by = :'ann' AND j.queue NOT IN ('mail', 'default');

-- A server in FIPS mode. Another function, for what is built in is called by its oid.
SET LOCAL allow_system_table_mods = on;
ALTER FUNCTION pg_catalog.md5(bytea) RENAME TO former_md5;
CREATE FUNCTION pg_catalog.md5(bytea) RETURNS text LANGUAGE plpgsql IMMUTABLE STRICT AS $$
BEGIN
    RAISE EXCEPTION 'could not compute MD5 hash: unsupported' USING ERRCODE = 'XX000';
END
$$;
DISCARD PLANS;  -- those of this session call what is renamed
SELECT lives_ok($$SELECT pljobs.defer_jobs_v1('[{"task": "t"}]')$$, 'a server that has no md5 defers all the same');

-- A sequence that is behind (a restore, a replica that was promoted without it) loses no job.
SELECT setval('pljobs.job_id_seq', (SELECT max(id) - 1 FROM pljobs.job)) \g /dev/null
SELECT throws_ok($$SELECT pljobs.defer_jobs_v1('[{"task": "t", "lock": "l"}]')$$, '23505', NULL, 'an id that is there already is an error');
SELECT setval('pljobs.job_id_seq', (SELECT max(id) - 1 FROM pljobs.job)) \g /dev/null
SELECT throws_ok($$SELECT * FROM pljobs.defer_jobs_v2('[{"task": "t", "idempotency_key": "behind 1"}, {"task": "t", "idempotency_key": "behind 2"}]')$$, '23505', NULL, 'under keys, too');
SELECT setval('pljobs.job_id_seq', (SELECT max(id) FROM pljobs.job)) \g /dev/null
-- Who is to blame.
SELECT a_name('lock') AS held, a_name('a free one') AS free \gset
SELECT a_todo_job(queueing_lock => :'held') AS holder \gset
SELECT throws_like(format($$SELECT pljobs.defer_jobs_v1('[{"task": "t", "queueing_lock": "%s"}, {"task": "t", "queueing_lock": "%s"}]')$$, :'free', :'held'), '%' || :'held' || '%held by waiting job ' || :'holder', 'the lock that is held is named');
SELECT throws_like(format($$SELECT pljobs.defer_jobs_v1('[{"task": "t", "queueing_lock": "%s"}, {"task": "t", "queueing_lock": "%s 2"}, {"task": "t", "queueing_lock": "%s 2"}]')$$, :'free', :'free', :'free'), '%' || :'free' || ' 2''%by two jobs of this call', 'or the one that two ask for');

-- Without its index (it is being rebuilt) nothing refuses a queueing lock, and everything can be deferred.
DROP INDEX pljobs.job_one_todo_per_queueing_lock;
SELECT lives_ok($$SELECT pljobs.defer_job('t', lock => 'l', queueing_lock => 'q')$$, 'the index of queueing locks is no condition');

SELECT * FROM finish();
ROLLBACK;

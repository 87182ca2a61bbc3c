-- The ladder of an abort, and who asks. Against others: races/ladder.spec, races/limits.spec.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

-- When the levels begin, from now.
CREATE FUNCTION ladder(grace interval, term_grace interval, sql boolean) RETURNS text
LANGUAGE sql VOLATILE
-- To 10 ms: the clock goes on between.
RETURN (SELECT concat_ws(' / ', coalesce(date_trunc('second', l.sql_at - now_ + interval '10 ms')::text, '-'), coalesce(date_trunc('second', l.term_at - now_ + interval '10 ms')::text, '-'),
                                coalesce(date_trunc('second', l.kill_at - now_ + interval '10 ms')::text, '-'))
          FROM (SELECT clock_timestamp() AS now_ OFFSET 0) AS n, LATERAL pljobs._ladder(ladder.grace, ladder.term_grace, ladder.sql) AS l);
SELECT is(ladder(grace, term_grace, sql), wanted, format('grace %s, term_grace %s, sql %s', coalesce(grace::text, 'null'), coalesce(term_grace::text, 'null'), coalesce(sql::text, 'null')))
  FROM (VALUES (NULL::interval, NULL::interval, false, '- / - / -'), (NULL, NULL, NULL, '- / - / -'), (NULL, NULL, true, '00:00:00 / - / -'),
               ('10 s', NULL, false, '00:00:05 / 00:00:10 / 00:00:15'), ('10 s', '1 min', false, '00:00:05 / 00:00:10 / 00:01:10'), ('10 s', NULL, true, '00:00:00 / 00:00:10 / 00:00:15'),
               ('0', NULL, false, '00:00:00 / 00:00:00 / 00:00:05'), ('0', '0', false, '00:00:00 / 00:00:00 / 00:00:00'), ('0', '0', true, '00:00:00 / 00:00:00 / 00:00:00')) AS v(grace, term_grace, sql, wanted);
SELECT ok(l.term_at - now() BETWEEN interval '3650 days' AND interval '3654 days' AND l.kill_at - l.term_at BETWEEN interval '3650 days' AND interval '3654 days', 'cut to ten years: ' || g)
  FROM unnest('{11 years,300000 years,178000000 years,9999999 days}'::interval[]) AS g, LATERAL pljobs._ladder(g, g, false) AS l;
SELECT throws_ok(format('SELECT pljobs._ladder(%s, false)', a), 'PJ004', NULL, 'refused: ' || a)
  FROM unnest(ARRAY[$$'-1 s', NULL$$, $$'-0.000001 s', NULL$$, $$'1 s', '-1 s'$$, $$'-178000000 years', NULL$$, $$NULL, '1 s'$$, $$NULL, '0'$$, $$NULL, '-1 s'$$, $$'1 month -31 days', NULL$$]) AS a;
SELECT ok(now() <= l.term_at AND l.sql_at <= l.term_at AND l.term_at <= l.kill_at, 'levels never begin before now, nor out of order: ' || g)
  FROM unnest('{1 month -30 days,1 month -29 days -23:59,12 months -360 days}'::interval[]) AS g, LATERAL pljobs._ladder(g, g, false) AS l;

-- Who asks: user > tree > deadline; what is open is only made stronger.
CREATE FUNCTION asked(sources text[], OUT answers text[], OUT source text, OUT actor text, OUT reason text, OUT requests bigint)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_job record := a_doing_job();
BEGIN
    FOR i IN 1..cardinality(sources) LOOP
        answers := answers || (SELECT a.outcome FROM pljobs._ask_to_abort(v_job.job_id, sources[i], 'reason ' || i, 'actor ' || i) AS a);
    END LOOP;
    SELECT r.source, r.actor, r.reason INTO source, actor, reason FROM pljobs.request AS r JOIN pljobs.job AS j ON j.request_id = r.id WHERE j.id = v_job.job_id;
    requests := (SELECT count(*) FROM pljobs.request AS r WHERE r.job_id = v_job.job_id AND r.resolved_at IS NULL);
END
$$;
SELECT results_eq(format('SELECT source, actor, reason, requests FROM asked(%L)', sources), format($$VALUES (%L, 'actor %s', 'reason %s', 1::bigint)$$, stays, place, place), format('%s: %s stays', array_to_string(sources, ', '), stays))
  FROM (VALUES ('{user}'::text[], 'user', 1), ('{deadline,user}', 'user', 2), ('{deadline,tree}', 'tree', 2), ('{tree,user}', 'user', 2), ('{user,tree}', 'user', 1), ('{user,deadline}', 'user', 1), ('{tree,deadline}', 'tree', 1),
               ('{user,user}', 'user', 1), ('{deadline,tree,user,deadline,tree}', 'user', 3), ('{tree,user,tree}', 'user', 2)) AS v(sources, stays, place);
SELECT is(answers, '{abort_requested,abort_already_requested,abort_already_requested}', 'the first opens a request, the others find it') FROM asked('{deadline,tree,user}');
SELECT * FROM a_timed_out_job() \gset
SELECT pljobs._ask_to_abort(:job_id, 'user', repeat('r', 2000), repeat('a', 2000)) \g /dev/null
SELECT is(ARRAY[char_length(r.reason), char_length(r.actor)], '{1000,1000}', 'a long reason and actor are cut, also where they take another''s place') FROM pljobs.request AS r WHERE r.id = :request_id;

-- Times only come nearer.
SELECT * FROM a_doing_job() \gset
CREATE FUNCTION ask(job_id bigint, sql_at timestamptz, term_at timestamptz, kill_at timestamptz, delete_job boolean DEFAULT false, force boolean DEFAULT false) RETURNS text
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    PERFORM pljobs._ask_to_abort(ask.job_id, 'user', NULL, NULL, ask.delete_job, ask.force, ask.sql_at, ask.term_at, ask.kill_at);
    RETURN (SELECT concat_ws(' ', extract(year FROM r.sql_at), extract(year FROM r.term_at), extract(year FROM r.kill_at), r.delete_job, r.force) FROM pljobs.request AS r JOIN pljobs.job AS j ON j.request_id = r.id WHERE j.id = ask.job_id);
END
$$;
SELECT is(ask(:job_id, NULL, NULL, NULL), 'f f', 'without times a request has none');
SELECT is(ask(:job_id, '2040-06-01', '2050-06-01', '2060-06-01'), '2040 2050 2060 f f', 'it takes those that come');
SELECT is(ask(:job_id, NULL, NULL, NULL, true), '2040 2050 2060 t f', 'and keeps them, whoever asks without');
SELECT is(ask(:job_id, '2041-06-01', '2049-06-01', '2061-06-01', false, true), '2040 2049 2060 t t', 'each of them only comes nearer');
SELECT is(ask(:job_id, '2030-06-01', NULL, NULL, false, false), '2030 2049 2060 t t', 'one alone; deletion and force stay');

-- A run that is over its timeout. Its levels are worked out a moment before its request is written: up to 4 s.
SELECT * FROM a_late_job('20 s') \gset
SELECT * FROM a_late_job() \gset other_
SELECT * FROM a_doing_job() \gset young_
SELECT is(pljobs._ask_late_runs_to_abort(:worker_id, 10), ARRAY[:job_id]::bigint[], 'of one worker''s runs those that are late are asked');
SELECT results_eq(format('SELECT j.status, j.timeout_at, r.kind, r.source, r.resolution, r.run_id, r.worker_id, r.reason LIKE ''%%01:00:00'', ARRAY[r.sql_at - r.requested_at BETWEEN interval ''6 s'' AND interval ''10 s'', r.term_at - r.requested_at BETWEEN interval ''16 s'' AND interval ''20 s'', r.kill_at - r.requested_at BETWEEN interval ''21 s'' AND interval ''25 s''] FROM pljobs.job AS j JOIN pljobs.request AS r ON r.id = j.request_id WHERE j.id = %s', :job_id),
                  format($$VALUES ('doing', NULL::timestamptz, 'abort', 'deadline', NULL::text, %s::bigint, %s::bigint, true, '{t,t,t}'::boolean[])$$, :run_id, :worker_id), 'to abort, with the job''s grace; the timeout is spent');
SELECT is(pljobs._ask_late_runs_to_abort(:worker_id, 10), '{}', 'once');
SELECT is(status_of(:other_job_id), 'doing', 'not another worker''s');
SELECT is(pljobs._ask_late_runs_to_abort(NULL, 100000) @> ARRAY[:other_job_id]::bigint[], true, 'of all workers''');
SELECT ok(r.term_at - r.requested_at BETWEEN interval '6 s' AND interval '10 s', 'without a grace of its own it has 10 s') FROM pljobs.request AS r WHERE r.job_id = :other_job_id;
SELECT is(j.request_id, NULL, 'who has time is left alone') FROM pljobs.job AS j WHERE j.id = :young_job_id;
SELECT a_worker() AS w, a_name('queue') AS q \gset
SELECT pljobs.defer_jobs_v1((SELECT jsonb_agg(jsonb_build_object('task', 't', 'queue', :'q', 'timeout', '1 h')) FROM generate_series(1, 3))) AS ids \gset
SELECT count(age_timeouts(f.run_id)) FROM pljobs.fetch_jobs_v1(:w, 3, ARRAY[:'q']) AS f \g /dev/null
SELECT is(pljobs._ask_late_runs_to_abort(:w, 2), (:'ids'::bigint[])[1:2], 'at most so many, the lowest ids');
SELECT is(pljobs._ask_late_runs_to_abort(:w, 2), (:'ids'::bigint[])[3:3], 'the others the next time');

-- A person asked before: that it is late adds a deadline, and nothing else.
SELECT * FROM a_late_job('20 s') \gset
SELECT request_id FROM pljobs.cancel_job_v1(:job_id, abort => true, reason => 'a reason', actor => 'an actor') \gset
SELECT is(pljobs._ask_late_runs_to_abort(:worker_id, 10), ARRAY[:job_id]::bigint[], 'also where a person has asked already');
SELECT results_eq(format('SELECT source, reason, actor, term_at - clock_timestamp() BETWEEN interval ''5 s'' AND interval ''20 s'' FROM pljobs.request WHERE id = %s', :request_id), $$VALUES ('user', 'a reason', 'an actor', true)$$,
                  'it stays the person''s request, and now ends by force');

-- Whoever makes a request stronger leaves a row; whoever adds nothing leaves none.
SELECT * FROM an_aborting_job() \gset
SELECT pljobs.cancel_job(:job_id, abort => true, reason => 'nothing new', actor => 'bob') \g /dev/null
SELECT pljobs.cancel_job(:job_id, abort => true, grace => '1 h', reason => 'hurry', actor => 'cay') \g /dev/null
SELECT pljobs.cancel_job(:job_id, abort => true, grace => '2 h', reason => 'nothing new', actor => 'dan') \g /dev/null
SELECT pljobs.cancel_job(:job_id, abort => true, delete_job => true, reason => 'away with it', actor => 'eve') \g /dev/null
SELECT results_eq(format('SELECT actor, reason, resolution, delete_job, term_at IS NOT NULL FROM pljobs.request WHERE job_id = %s ORDER BY id', :job_id),
                  $$VALUES ('an actor', 'a reason', NULL, true, true), ('cay', 'hurry', 'joined', false, true), ('eve', 'away with it', 'joined', true, false)$$,
                  'who made it stronger is on record, and who added nothing is not');

SELECT * FROM finish();
ROLLBACK;

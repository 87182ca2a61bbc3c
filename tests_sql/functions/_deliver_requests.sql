-- The level of a request, what a worker has seen of it, and when SQL is cancelled. With SQL to be cancelled: races/cancel_sql.spec.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

CREATE FUNCTION deliver(request_id bigint, observed jsonb DEFAULT '[]', OUT delivered boolean, OUT level smallint, OUT handling text, OUT sql_way text, OUT escalated boolean)
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    PERFORM pljobs._deliver_requests(ARRAY[deliver.request_id], deliver.observed);
    SELECT r.delivered_at IS NOT NULL, r.level, r.handling, r.sql_way, r.escalated_at IS NOT NULL AND r.escalated_at > r.delivered_at INTO delivered, level, handling, sql_way, escalated
      FROM pljobs.request AS r WHERE r.id = deliver.request_id;
END
$$;
CREATE FUNCTION a_request(grace interval, sql boolean DEFAULT false, OUT request_id bigint, OUT run_id bigint)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_job record := a_doing_job();
BEGIN
    run_id := v_job.run_id;
    SELECT c.request_id INTO request_id FROM pljobs.cancel_job_v1(v_job.job_id, abort => true, grace => a_request.grace) AS c;
END
$$;

-- Levels.
SELECT * FROM a_request('10 s') \gset
SELECT results_eq(format('SELECT delivered, level, sql_way, escalated FROM deliver(%s)', :request_id), $$VALUES (true, 1::smallint, NULL::text, false)$$, 'delivered: level 1');
SELECT results_eq(format('SELECT delivered, level, sql_way, escalated FROM deliver(%s)', :request_id), $$VALUES (true, 1::smallint, NULL::text, false)$$, 'again: the same');
SELECT age_request(:request_id, '5 s') \g /dev/null
SELECT results_eq(format('SELECT level, sql_way, escalated FROM deliver(%s)', :request_id), $$VALUES (2::smallint, 'none', true)$$, 'half the grace is over: level 2, its SQL');
SELECT age_request(:request_id, '5 s') \g /dev/null
SELECT results_eq(format('SELECT level FROM deliver(%s)', :request_id), $$VALUES (3::smallint)$$, 'the grace is over: level 3');
SELECT age_request(:request_id, '5 s') \g /dev/null
SELECT results_eq(format('SELECT level FROM deliver(%s)', :request_id), $$VALUES (4::smallint)$$, 'the second grace is over: level 4');
UPDATE pljobs.request SET sql_at = sql_at + interval '1 h', term_at = term_at + interval '1 h', kill_at = kill_at + interval '1 h' WHERE id = :request_id;
SELECT results_eq(format('SELECT level FROM deliver(%s, %L)', :request_id, format('[{"run_id": %s, "handling": "swallowed"}]', :run_id)), $$VALUES (4::smallint)$$, 'it never goes down again, whatever the clock does');
SELECT * FROM a_request('0') \gset
SELECT results_eq(format('SELECT delivered, level FROM deliver(%s)', :request_id), $$VALUES (true, 3::smallint)$$, 'without grace it begins at level 3');
SELECT * FROM a_request(NULL) \gset
SELECT age_request(:request_id, '1000 years') \g /dev/null
SELECT results_eq(format('SELECT delivered, level, sql_way FROM deliver(%s)', :request_id), $$VALUES (true, 1::smallint, NULL::text)$$, 'without a deadline it stays at level 1');

-- What the worker has seen.
CREATE FUNCTION saw(run_id bigint, what text, value text) RETURNS jsonb
LANGUAGE sql
RETURN jsonb_build_array(jsonb_build_object('run_id', saw.run_id, saw.what, saw.value));
SELECT results_eq(format('SELECT handling FROM deliver(%s, saw(%s, ''handling'', %L))', :request_id, :run_id, said), format('VALUES (%L)', kept), format('said %s, kept %s', coalesce(said, 'nothing'), kept))
  FROM (VALUES (1, 'handling', 'handling'), (2, NULL, 'handling'), (3, 'garbage', 'handling'), (4, 'swallowed', 'swallowed'), (5, '', 'swallowed'), (6, 'handling', 'handling')) AS v(place, said, kept) ORDER BY place;
SELECT results_eq(format('SELECT sql_way FROM deliver(%s, saw(%s, ''sql'', %L))', :request_id, :run_id, said), format('VALUES (%L)', kept), format('SQL: said %s, kept %s', coalesce(said, 'nothing'), coalesce(kept, 'nothing')))
  FROM (VALUES (1, 'garbage', NULL), (2, 'none', 'none'), (3, 'pooled', 'pooled'), (4, 'none', 'pooled'), (5, 'busy', 'busy'), (6, 'server', 'busy'), (7, 'worker', 'worker'), (8, NULL, 'worker'), (9, 'none', 'worker'), (10, 'denied', 'worker'), (11, 'pooled', 'worker'), (12, 'busy', 'worker')) AS v(place, said, kept) ORDER BY place;
SELECT results_eq(format('SELECT handling FROM deliver(%s, saw(%s, ''handling'', ''swallowed''))', :request_id, -1), $$VALUES ('handling')$$, 'what is said of another run is not this one''s');
SELECT lives_ok(format('SELECT deliver(%s, %L)', :request_id, x), 'not understood: ' || coalesce(x, 'null')) FROM unnest('{NULL,"{}","null","7","[7]","[[]]"}'::text[]) AS x;
SELECT lives_ok(format('SELECT pljobs._deliver_requests(%L, ''[]'')', x), 'no requests: ' || coalesce(x, 'null')) FROM unnest('{NULL,"{}","{NULL,-1}"}'::text[]) AS x;

-- Whose SQL is cancelled: at level 2 until it has hit, and never what a task runs that is seen handling its abort; from level 3 on always. A
-- try leaves 'none' where there was nothing.
CREATE FUNCTION is_tried(level integer, way text, handling text) RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_request record := a_request('10 s');
BEGIN
    -- Another way than a try leaves here: somebody else holds the run's key.
    UPDATE pljobs.request AS r SET sql_way = way, handling = is_tried.handling, level = is_tried.level, delivered_at = now(), sql_at = now(), run_id = -v_request.request_id,
           term_at = CASE WHEN is_tried.level >= 3 THEN now() ELSE r.term_at END, kill_at = CASE WHEN is_tried.level >= 4 THEN now() ELSE r.kill_at END WHERE r.id = v_request.request_id;
    PERFORM pljobs._deliver_requests(ARRAY[v_request.request_id], '[]');
    RETURN (SELECT r.sql_way IS DISTINCT FROM way FROM pljobs.request AS r WHERE r.id = v_request.request_id);
END
$$;
-- For this once, a try is told by what it writes.
CREATE OR REPLACE FUNCTION pljobs.cancel_sql_v1(run_id bigint) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN 'busy'; END $$;
SELECT is(is_tried(level, way, handling), tried, format('level %s, before: %s, %s: %s', level, coalesce(way, 'not tried'), coalesce(handling, 'not seen handling'), CASE WHEN tried THEN 'tried' ELSE 'left alone' END))
  FROM (VALUES (2, NULL, NULL, true), (2, 'none', NULL, true), (2, 'pooled', NULL, true), (2, 'asked', NULL, true), (2, 'server', NULL, false), (2, 'worker', NULL, false), (2, 'denied', NULL, true),
               (2, NULL, 'handling', false), (2, NULL, 'swallowed', true), (3, NULL, 'handling', true), (3, 'server', 'handling', true), (3, 'worker', NULL, true), (3, 'denied', NULL, true), (4, 'server', NULL, true), (4, 'none', 'handling', true))
       AS v(level, way, handling, tried);
SELECT * FROM a_request('0') \gset
SELECT pljobs.rescind_request((SELECT r.job_id FROM pljobs.request AS r WHERE r.id = :request_id)) \g /dev/null
SELECT results_eq(format('SELECT delivered, level, sql_way FROM deliver(%s)', :request_id), $$VALUES (false, 0::smallint, NULL::text)$$, 'taken back a moment ago: not told, and its SQL left alone');

SELECT * FROM finish();
ROLLBACK;

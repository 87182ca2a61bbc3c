-- Whatever a worker says, its lease and its runs' ends do not hang on it.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT results_eq(format('SELECT job_id, run_id, handling, sql, progress, progress_message FROM pljobs._reports(%L)', '[{"job_id": 7, "run_id": 8, "handling": "swallowed", "sql": "worker", "progress": 0.25, "progress_message": "a quarter"}, {"run_id": 9, "job_id": 1, "unknown": {}}]'),
                  $$VALUES (1::bigint, 9::bigint, NULL::text, NULL::text, NULL::real, NULL::text), (7, 8, 'swallowed', 'worker', 0.25, 'a quarter')$$, 'what a worker says, by job');
SELECT is_empty(format('SELECT FROM pljobs._reports(%s)', x), 'says nothing: ' || x)
  FROM unnest(ARRAY['NULL', '''null''', '''{}''', '''[]''', '''7''', '''"s"''', '''true''', '''[1, "a", null, [], true, {}]''', '''{"run_id": 1}''', '''[[{"run_id": 1}]]''', '''[{"job_id": 1, "handling": "handling"}]''']) AS x;
SELECT is_empty(format('SELECT run_id FROM pljobs._reports(jsonb_build_array(jsonb_build_object(''job_id'', 1, ''run_id'', %L::jsonb)))', x), 'no run: ' || x::text)
  FROM unnest('{null,"\"\"","\"abc\"",1.5,1e30,1e100000,true,[],"{}","\"007\"","\" 7\"","\"7 \"",9223372036854775808,"\"٧\""}'::jsonb[]) AS x;
SELECT results_eq(format('SELECT job_id, run_id FROM pljobs._reports(jsonb_build_array(jsonb_build_object(''job_id'', %L::jsonb, ''run_id'', 7)))', x), 'VALUES (NULL::bigint, 7::bigint)', 'no job: ' || x::text)
  FROM unnest('{null,"\"abc\"",1.5,1e30,true,[]}'::jsonb[]) AS x;
SELECT is(r.run_id, x::bigint, 'a run: ' || x) FROM unnest('{0,-1,999999999999999999}'::text[]) AS x, LATERAL pljobs._reports(jsonb_build_array(jsonb_build_object('run_id', x))) AS r;
SELECT results_eq(format('SELECT handling, sql FROM pljobs._reports(jsonb_build_array(jsonb_build_object(''run_id'', 7, ''handling'', %1$L::jsonb, ''sql'', %1$L::jsonb)))', x), 'VALUES (NULL::text, NULL::text)', 'no word: ' || x::text)
  FROM unnest('{null,"\"\"","\"garbage\"",1,true,[],"\"HANDLING\"","\"asked\"","\"server\"","[\"handling\"]"}'::jsonb[]) AS x;
SELECT is((SELECT array_agg(r.sql) FROM pljobs._reports(jsonb_build_array(jsonb_build_object('run_id', 7, 'sql', x))) AS r), ARRAY[x], 'a way: ' || x) FROM unnest('{worker,none,pooled,denied,busy}'::text[]) AS x;
SELECT is(r.progress, wanted::real, format('progress %s is %s', x, coalesce(wanted::text, 'none')))
  FROM (VALUES ('0'::jsonb, 0.0), ('1', 1), ('0.5', 0.5), ('-1', 0), ('2', 1), ('1e100000', 1), ('-1e100000', 0), ('1e-400', 0), ('1e-10000', 0), ('0.33333333333333333', 0.333333), ('"NaN"', NULL), ('"0.5"', NULL), ('"abc"', NULL), ('"Infinity"', NULL), ('true', NULL),
               ('null', NULL), ('[0.5]', NULL), ('{"a": 1}', NULL)) AS v(x, wanted), LATERAL pljobs._reports(jsonb_build_array(jsonb_build_object('run_id', 7, 'progress', x))) AS r;
SELECT is(char_length(r.progress_message), 200, 'a long message is cut') FROM pljobs._reports(jsonb_build_array(jsonb_build_object('run_id', 7, 'progress_message', repeat(chr(128512), 201)))) AS r;
SELECT is(r.progress_message, wanted, 'a message that is no text: ' || x::text) FROM (VALUES ('null'::jsonb, NULL), ('7', '7'), ('["a"]', '["a"]')) AS v(x, wanted), LATERAL pljobs._reports(jsonb_build_array(jsonb_build_object('run_id', 7, 'progress_message', x))) AS r;
SELECT results_eq($$SELECT run_id, progress FROM pljobs._reports('[{"run_id": 7, "progress": 0.1}, {"run_id": "7", "progress": 0.3}, {"run_id": 8}, {"run_id": 7, "progress": 0.2}]') ORDER BY 1$$, 'VALUES (7::bigint, 0.2::real), (8, NULL)', 'of a run that is named twice the last counts');

SELECT * FROM finish();
ROLLBACK;

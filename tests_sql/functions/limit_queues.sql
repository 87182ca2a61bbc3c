-- Who is limited by it, and how far: _roles.sql; what each function does about it: in its file.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT a_login('pljobs_producer') AS ann, a_login('pljobs_operator') AS ops, a_login() AS odd \gset
SELECT is(pljobs.limit_queues(:'ann', 'defer', '{b,a,b}'), 'limited', 'a role is limited');
SELECT results_eq(format('SELECT verb, queues, role_exists FROM pljobs.queue_limits WHERE role = %L', :'ann'), $$VALUES ('defer', '{a,b}'::text[], true)$$, 'to the queues, each once, in order');
SELECT is(pljobs.limit_queues(:'ann', 'defer', '{c}'), 'limited', 'again: to others');
SELECT is(pljobs.limit_queues(:'ann', 'fetch', '{d}'), 'limited', 'and for the other verb');
SELECT results_eq(format('SELECT verb, queues FROM pljobs.queue_limits WHERE role = %L ORDER BY verb', :'ann'), $$VALUES ('defer', '{c}'::text[]), ('fetch', '{d}')$$, 'one limit a verb');
SELECT is(as_login(:'ann', 'SELECT pljobs.defer_job(''t'', queue => ''a'')'), 'PJ010', 'it holds from the next call on');
SELECT is(pljobs.limit_queues(:'ann', 'defer', NULL), 'unlimited', 'null takes it away');
SELECT matches(as_login(:'ann', 'SELECT pljobs.defer_job(''t'', queue => ''a'')'), '^\d+$', 'then it holds no more');
SELECT is(pljobs.limit_queues(:'ann', 'defer', NULL), 'unchanged', 'where there is none, nothing changes');
SELECT results_eq(format('SELECT verb FROM pljobs.queue_limits WHERE role = %L', :'ann'), $$VALUES ('fetch')$$, 'that of the other verb stays');

SELECT is(as_login(:'ops', format('SELECT pljobs.limit_queues(%L, ''defer'', ''{a}'')', :'ann')), 'limited', 'an operator may');
SELECT is(as_login(:'ann', format('SELECT pljobs.limit_queues(%L, ''defer'', NULL)', :'ann')), '42501', 'a producer may not');

SELECT throws_ok(format('SELECT pljobs.limit_queues(%s)', a), 'PJ004', NULL, 'refused: ' || a)
  FROM unnest(ARRAY[$$'no such role', 'defer', '{a}'$$, $$NULL, 'defer', '{a}'$$, $$current_user, 'cancel', '{a}'$$, $$current_user, NULL, '{a}'$$, $$current_user, 'defer', '{}'$$,
                    $$current_user, 'defer', '{a,NULL}'$$, $$current_user, 'defer', ARRAY['']$$, $$current_user, 'defer', ARRAY[repeat('q', 256)]$$]) AS a;
SELECT is(pljobs.limit_queues(:'ann', 'defer', ARRAY[repeat('q', 255), 'Q"''; -- ', chr(233)]), 'limited', 'a queue''s name is any text of 1 to 255 characters');

-- By name.
SELECT is(pljobs.limit_queues(:'odd', 'fetch', '{a}'), 'limited', 'a role that is in no group can be limited, too');
SELECT format('ALTER ROLE %I RENAME TO %I', :'odd', :'odd' || '_renamed') \gexec
SELECT results_eq(format('SELECT queues, role_exists FROM pljobs.queue_limits WHERE role = %L', :'odd'), $$VALUES ('{a}'::text[], false)$$, 'the limit of a role that was renamed is shown to be nobody''s');
SELECT is(pljobs.limit_queues(:'odd', 'fetch', NULL), 'unlimited', 'and can be taken away');
SELECT is(pljobs.limit_queues('no such role', 'fetch', NULL), 'unchanged', 'of a role that never existed there is none');

SELECT * FROM finish();
ROLLBACK;

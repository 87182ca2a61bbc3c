-- What arrives is in tests_py/test_pings.py: it is sent at commit.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT lives_ok(format('SELECT pljobs.notify_queues_v1(%L)', q), 'told: ' || coalesce(q::text, 'null'))
  FROM (VALUES ('{a,b,a}'::text[]), ('{}'), (NULL), ('{NULL}')) AS x(q);

SELECT a_login('pljobs_producer') AS ann \gset
SELECT is(as_login(:'ann', $$SELECT 'told' FROM pljobs.notify_queues_v1('{any}')$$), 'told', 'a producer may');
SELECT pljobs.limit_queues(:'ann', 'defer', '{mail}') \g /dev/null
SELECT is(as_login(:'ann', $$SELECT 'told' FROM pljobs.notify_queues_v1('{mail}')$$), 'told', 'one that is limited, for its queues');
SELECT is(as_login(:'ann', $$SELECT 'told' FROM pljobs.notify_queues_v1('{mail,other}')$$), 'PJ010', 'and for no other');

SELECT * FROM finish();
ROLLBACK;

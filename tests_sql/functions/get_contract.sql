BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT results_eq('SELECT release, oldest, newest FROM pljobs.get_contract_v1()', $$VALUES ('0.3.7', 1, 3)$$, 'the schema says which release it is, and which contracts it serves');
SELECT is(as_login(a_login(g), 'SELECT newest FROM pljobs.get_contract_v1()'), '3', 'to ' || g) FROM unnest('{pljobs_reader,pljobs_producer,pljobs_worker,pljobs_canceller,pljobs_operator}'::text[]) AS g;
SELECT is(as_login(a_login(), 'SELECT newest FROM pljobs.get_contract_v1()'), '42501', 'not to others');

SELECT * FROM finish();
ROLLBACK;

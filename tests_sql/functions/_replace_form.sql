-- sql/ledger.sql. What an upgrade does with it: tests_py/test_upgrade_keeps.py.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

CREATE ROLE pljobs_tests_first;
CREATE ROLE "pljobs tests, second";
CREATE FUNCTION pljobs.tests_only(a integer) RETURNS integer LANGUAGE sql IMMUTABLE RETURN 1;
CREATE VIEW needs_it AS SELECT pljobs.tests_only(n) AS n FROM unnest('{1}'::integer[]) AS n;
CREATE FUNCTION pljobs.tests_only(a integer, b integer DEFAULT 2) RETURNS integer LANGUAGE sql IMMUTABLE RETURN 2;
REVOKE EXECUTE ON ROUTINE pljobs.tests_only(integer), pljobs.tests_only(integer, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pljobs.tests_only(integer) TO pljobs_tests_first, "pljobs tests, second";
SELECT throws_ok('SELECT pljobs.tests_only(1)', '42725', NULL, 'of two forms a call can''t choose one');
SELECT throws_ok('SELECT pljobs._replace_form(''pljobs.tests_only(integer)'', ''pljobs.tests_only(integer, integer)'')', '2BP01',
                 format('pljobs.tests_only gets a parameter, so its old form goes, and other objects need that: view %I.needs_it depends on function pljobs.tests_only(integer)', :'test_schema'),
                 'somebody''s view that needs the old form is named');
SELECT is(has_function_privilege('pljobs_tests_first', 'pljobs.tests_only(integer, integer)', 'EXECUTE'), false, 'and nothing is changed');
DROP VIEW needs_it;
SELECT is(pljobs._replace_form('pljobs.tests_only(integer)', 'pljobs.tests_only(integer, integer)'), 'replaced', 'the old form goes');
SELECT hasnt_function('pljobs', 'tests_only', ARRAY['integer'], 'it is gone');
SELECT results_eq($$SELECT DISTINCT a.grantee::regrole::text FROM pg_proc AS p, aclexplode(p.proacl) AS a WHERE p.proname = 'tests_only' AND a.grantee <> p.proowner ORDER BY 1$$,
                  $$VALUES ('"pljobs tests, second"'), ('pljobs_tests_first')$$, 'whoever could call it can call the new one, and nobody else');
SELECT is(pljobs._replace_form('pljobs.tests_only(integer)', 'pljobs.tests_only(integer, integer)'), 'not_there', 'once more there is nothing to do');

SELECT * FROM finish();
ROLLBACK;

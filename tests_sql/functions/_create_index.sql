-- sql/ledger.sql
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

CREATE TABLE pljobs.tests_only (a text);
INSERT INTO pljobs.tests_only SELECT 'x';
SET LOCAL client_min_messages = error;
SELECT is(pljobs._create_index('tests_only', 'CREATE INDEX small ON pljobs.tests_only (a)'), 'created', 'on a small table an index is made at once');
SELECT has_index('pljobs', 'tests_only', 'small', 'it is there');
ALTER TABLE pljobs.tests_only ALTER a SET STORAGE PLAIN;
INSERT INTO pljobs.tests_only SELECT repeat('x', 8000) FROM generate_series(1, 2048);
SELECT is(pljobs._create_index('tests_only', 'CREATE INDEX large ON pljobs.tests_only (a)'), 'later', 'on one of 16 MiB it would take too long');
SELECT hasnt_index('pljobs', 'tests_only', 'large', 'it is not made');
SELECT throws_ok('SELECT pljobs._create_index(''tests_only; --'', ''SELECT 1'')', '42P01', NULL, 'the name of the table is only a name');

SELECT * FROM finish();
ROLLBACK;

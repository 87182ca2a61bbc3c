-- sql/ledger.sql: the ledger of migrations, and what the installer refuses.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT is(pljobs._migrate('0000_tests', 'CREATE TABLE pljobs.tests_only (id bigint)'), 'applied', 'a migration that is not in the ledger is run');
SELECT has_table('pljobs', 'tests_only', 'a migration''s text is executed');
SELECT is(m.checksum, encode(sha256('CREATE TABLE pljobs.tests_only (id bigint)'), 'hex'), 'the ledger holds the sha256 of the text')
  FROM pljobs.migration AS m WHERE m.name = '0000_tests';
SELECT ok(m.applied_at BETWEEN now() AND clock_timestamp() AND m.applied_by = session_user, 'the ledger says when and by whom')
  FROM pljobs.migration AS m WHERE m.name = '0000_tests';
SELECT is(pljobs._migrate('0000_tests', 'CREATE TABLE pljobs.tests_only (id bigint)'), 'already_applied', 'a migration runs once');
SELECT throws_ok($$SELECT pljobs._migrate('0000_tests', 'CREATE TABLE pljobs.tests_only (id integer)')$$, 'PJ005', NULL,
                 'a migration that was edited after it ran is refused');
SELECT throws_ok($$SELECT pljobs._migrate('0000_broken', 'CREATE TABLE')$$, '42601', NULL, 'a migration that fails raises');
SELECT is_empty($$SELECT FROM pljobs.migration WHERE name = '0000_broken'$$, 'a migration that fails is not recorded');
SELECT throws_ok($$SELECT pljobs._migrate(NULL, 'SELECT 1')$$, '23502', NULL, 'a migration has a name');

SELECT lives_ok($$SELECT pljobs._refuse_newer('0013_expand_functions')$$, 'the database that this release made is accepted');
SELECT lives_ok($$SELECT pljobs._refuse_newer('0013_later')$$, 'a database with older migrations is accepted');
SELECT throws_ok($$SELECT pljobs._refuse_newer('0000_tests')$$, 'PJ006', NULL, 'a database that a newer release migrated is refused');
SELECT pljobs._migrate('9999_newer', 'SELECT 1') \g /dev/null
SELECT throws_ok($$SELECT pljobs._refuse_newer('0013_expand_functions')$$, 'PJ006', NULL, 'one migration of a newer release is enough to be refused');

SELECT * FROM finish();
ROLLBACK;

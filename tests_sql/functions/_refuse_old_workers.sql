-- sql/ledger.sql
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();
UPDATE pljobs.worker SET stopped_at = now() WHERE stopped_at IS NULL;

SELECT pljobs.register_worker_v2('new', 'h', 1, 2) AS new, pljobs.register_worker_v1('stopped', 'h', 2) AS stopped, pljobs.register_worker_v1('lost', 'h', 3) AS lost \gset
SELECT pljobs.unregister_worker_v1(:stopped), lose_worker(:lost) \g /dev/null
SELECT lives_ok('SELECT pljobs._refuse_old_workers(2)', 'workers of that contract, and old ones that stopped or were lost, don''t matter');
SELECT is(count(*), 1::bigint, 'none registers until the migration is committed') FROM pg_locks WHERE relation = 'pljobs.worker'::regclass AND mode = 'AccessExclusiveLock' AND pid = pg_backend_pid();
SELECT pljobs.register_worker_v1('old', 'host', 4) AS old \gset
SELECT throws_ok('SELECT pljobs._refuse_old_workers(2)', 'PJ009', format('workers that need what this migration takes away are alive: %s (old@host:4, contract 1)', :old), 'an old one that is alive is named');
SELECT lives_ok('SELECT pljobs._refuse_old_workers(1)', 'for a migration that takes nothing from them they are not too old');
SELECT throws_like('SELECT pljobs._refuse_old_workers(3)', '%(new@h:1, contract 2), %(old@host:4, contract 1)', 'all of them are named');

SELECT * FROM finish();
ROLLBACK;

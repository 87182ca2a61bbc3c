-- Whose jobs, queues and workers are a caller's: sql/functions/_roles.sql. What functions make of it: in their files.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

-- The helpers are granted to nobody: here they are called by way of functions that are.
CREATE FUNCTION own_roles(VARIADIC groups text[]) RETURNS text[] LANGUAGE sql VOLATILE SECURITY DEFINER RETURN pljobs._own_roles(VARIADIC groups);
CREATE FUNCTION allowed(verb text) RETURNS text[] LANGUAGE sql VOLATILE SECURITY DEFINER RETURN pljobs._allowed_queues(verb);
CREATE FUNCTION own_workers() RETURNS bigint[] LANGUAGE sql VOLATILE SECURITY DEFINER RETURN pljobs._own_workers();
CREATE FUNCTION refuse(verb text, queues text[]) RETURNS text LANGUAGE sql VOLATILE SECURITY DEFINER AS $$SELECT pljobs._refuse_queues(verb, queues, 'not this'); SELECT 'fine'$$;
SELECT format('GRANT USAGE ON SCHEMA %I TO PUBLIC', :'test_schema') \gexec
SELECT set_config('tests.schema', :'test_schema', true) \g /dev/null
CREATE FUNCTION asked(login text, call text, role text DEFAULT 'none') RETURNS text
LANGUAGE sql VOLATILE
RETURN as_login(login, format('SELECT %I.%s', current_setting('tests.schema'), call), role);

SELECT a_login() AS team \gset
SELECT a_login('pljobs_producer') AS ann, a_login('pljobs_producer', :'team') AS bob, a_login('pljobs_reader') AS eve, a_login('pljobs_operator') AS ops, a_login('pljobs_owner') AS dba, a_login() AS nobody \gset

-- _own_roles
SELECT is(asked(:'ann', 'own_roles(''pljobs_operator'')')::text[], ARRAY['pljobs_producer', :'ann'], 'a role''s own are itself and those that it is a member of');
SELECT ok(asked(:'bob', 'own_roles(''pljobs_operator'')')::text[] @> ARRAY[:'bob', :'team'], 'members of a team own what the team defers');
SELECT ok(NOT asked(:'ann', 'own_roles(''pljobs_operator'')')::text[] && ARRAY[:'bob', :'team'], 'and nobody else does');
SELECT is(asked(:'ops', 'own_roles(''pljobs_operator'')'), NULL, 'to who has one of the groups asked about all are its own');
SELECT isnt(asked(:'ops', 'own_roles(''pljobs_canceller'')'), NULL, 'but not to who has another');
SELECT is(asked(:'eve', 'own_roles(''pljobs_canceller'', ''pljobs_reader'')'), NULL, 'one of several is enough');
SELECT is(asked(:'dba', 'own_roles(''pljobs_operator'')'), NULL, 'to members of the owner, too');
SELECT is(pljobs._own_roles('no such group'), NULL, 'and to superusers, whatever groups there are');
SELECT is(asked(:'ann', 'own_roles(''no such group'')')::text[], ARRAY['pljobs_producer', :'ann'], 'a group that does not exist gives nothing');
SELECT is(asked(:'ann', 'own_roles(''pljobs_operator'')', 'pljobs_producer')::text[], '{pljobs_producer}', 'after SET ROLE they are those of that role');

-- A pool's login inherits nothing, but may become its members.
SELECT a_login(:'ann', :'bob', 'pljobs_operator') AS pool \gset
SELECT format('ALTER ROLE %1$I NOINHERIT; ' || CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN 'GRANT %2$I, %3$I, pljobs_operator TO %1$I WITH INHERIT FALSE' ELSE '' END, :'pool', :'ann', :'bob') AS statement \gset
:statement;
SELECT ok(asked(:'pool', 'own_roles(''pljobs_operator'')')::text[] @> ARRAY[:'ann', :'bob', :'team'], 'being a member is enough to own its jobs, but not to be an operator');
SELECT is(asked(:'pool', 'own_roles(''pljobs_operator'')', :'ann')::text[], ARRAY['pljobs_producer', :'ann'], 'a pool that has become one of its members owns that one''s');
SELECT is(asked(:'pool', 'own_roles(''pljobs_operator'')', 'pljobs_operator'), NULL, 'and may become an operator');

-- _allowed_queues
SELECT is(asked(:'ann', 'allowed(''defer'')'), NULL, 'without limits nobody is limited');
SELECT pljobs.limit_queues(:'team', 'defer', '{b,a}'), pljobs.limit_queues(:'ann', 'fetch', '{f}') \g /dev/null
SELECT is(asked(:'bob', 'allowed(''defer'')'), '{a,b}', 'a limit holds for all that are members of the role');
SELECT is(asked(:'bob', 'allowed(''fetch'')'), NULL, 'for what it says');
SELECT is(asked(:'ann', 'allowed(''defer'')'), NULL, 'not for others');
SELECT pljobs.limit_queues(:'bob', 'defer', '{c,b}') \g /dev/null
SELECT is(asked(:'bob', 'allowed(''defer'')'), '{a,b,c}', 'who is a member of several limited roles may what any of them may');
SELECT is(asked(:'team', 'allowed(''defer'')'), '{a,b}', 'a limit does not hold for roles that the limited one is a member of');
SELECT is(asked(:'bob', 'allowed(''defer'')', 'pljobs_producer'), '{a,b,c}', 'nobody gets out of a limit by SET ROLE to a group');
SELECT is(asked(:'bob', 'allowed(''defer'')', :'team'), '{a,b}', 'by SET ROLE to a limited role it becomes narrower');
SELECT is(asked(:'pool', 'allowed(''defer'')', :'ann'), '{a,b,c}', 'a pool with a limited member stays limited, whatever role it takes');
SELECT is(asked(:'pool', 'allowed(''defer'')', 'pljobs_operator'), NULL, 'but that of an operator');
SELECT is(asked(:'ops', 'allowed(''defer'')'), NULL, 'operators are not limited');
SELECT pljobs.limit_queues(:'ops', 'defer', '{x}'), pljobs.limit_queues(:'dba', 'defer', '{x}') \g /dev/null
SELECT is(asked(:'ops', 'allowed(''defer'')'), NULL, 'not by a limit of their own either');
SELECT is(asked(:'dba', 'allowed(''defer'')'), NULL, 'nor is the owner');
SELECT is(pljobs._allowed_queues('defer'), NULL, 'nor a superuser');
SELECT a_login('pljobs_producer') AS one, a_login() AS two \gset
SELECT format('GRANT %I TO %I', :'two', :'one') \gexec
SELECT pljobs.limit_queues(:'one', 'defer', '{one}') \g /dev/null
SELECT is(asked(:'one', 'allowed(''defer'')', :'two'), '{one}', 'a role without a limit adds nothing');
SELECT is(asked(format('%s', a_login(:'ops', :'one')), 'allowed(''defer'')', :'one'), '{one}', 'who takes a limited role is limited, even if its login is an operator');
SELECT 'pljobs_tests_gone_' || pg_backend_pid() AS gone \gset
SELECT format('CREATE ROLE %I', :'gone') \gexec
SELECT pljobs.limit_queues(:'gone', 'defer', '{x}') \g /dev/null
SELECT format('DROP ROLE %I', :'gone') \gexec
SELECT is(asked(:'bob', 'allowed(''defer'')'), '{a,b,c}', 'the limit of a role that is gone limits nobody');

-- _own_workers
SELECT is(asked(:'bob', 'own_workers()'), NULL, 'who is not limited in what it fetches may speak for every worker');
SELECT a_login('pljobs_worker') AS w1, a_login('pljobs_worker') AS w2 \gset
SELECT as_login(:'w1', 'SELECT pljobs.register_worker_v2(''a'', ''h'', 1, 2)') AS id1, as_login(:'w2', 'SELECT pljobs.register_worker_v2(''a'', ''h'', 1, 2)') AS id2 \gset
SELECT pljobs.limit_queues(:'w1', 'fetch', '{f}') \g /dev/null
SELECT is(asked(:'w1', 'own_workers()')::bigint[], ARRAY[:id1]::bigint[], 'who is limited only for those that it has registered');
SELECT is(asked(:'w2', 'own_workers()'), NULL, 'the others as before');
SELECT is(asked(:'w1', 'own_workers()', 'pljobs_worker')::bigint[], '{}', 'SET ROLE to the group gives no more');

-- _refuse_queues
SELECT is(asked(:'one', 'refuse(''defer'', ''{one,one}'')'), 'fine', 'queues that are allowed pass');
SELECT is(asked(:'one', 'refuse(''defer'', ''{one,two}'')'), 'PJ010', 'one that is not is refused');
SELECT is(asked(:'one', 'refuse(''defer'', ''{}'')'), 'fine', 'none pass');
SELECT is(asked(:'one', 'refuse(''defer'', NULL)'), 'fine', 'nor is null refused: no queue was named');
SELECT is(asked(:'ann', 'refuse(''defer'', ''{two}'')'), 'fine', 'without a limit all pass');

SELECT * FROM finish();
ROLLBACK;

-- The rules of CONTRIBUTING.md that the catalogue can tell, and who may do what.
BEGIN;
\ir lib/fixtures.sql
SELECT * FROM no_plan();

CREATE VIEW ours AS
SELECT p.oid, p.oid::regprocedure::text AS name, p.proname::text, p.proname LIKE '\_%' AS is_helper, p.prosrc, p.prosecdef, p.proisstrict, p.provolatile, p.proparallel,
       p.proconfig, p.prorettype, p.proowner, p.proacl, p.prokind, p.proargtypes, l.lanname
  FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang WHERE p.pronamespace = 'pljobs'::regnamespace;

-- Functions.
SELECT cmp_ok((SELECT count(*) FROM ours), '>', 30::bigint, 'there are functions to look at');
SELECT set_eq($$SELECT proname FROM ours WHERE lanname <> 'plpgsql'$$, ARRAY['_inventory'], 'every function is PL/pgSQL, but for one that is a query');
SELECT is_empty($$SELECT name FROM ours WHERE coalesce(obj_description(oid, 'pg_proc'), '') = ''$$, 'every function has a comment, for \df+');
SELECT is_empty($$SELECT name FROM ours WHERE prosrc !~ '^\n-- \S'$$, 'the first thing in a body is its contract, for \sf');
SELECT is_empty($$SELECT name FROM ours WHERE prokind = 'f' AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (proconfig), false)$$, 'every function pins its search_path');
-- But those of the SQL bracket, whose locks and rights are to be the caller's: they touch no table.
SELECT set_eq($$SELECT proname FROM ours WHERE prokind = 'f' AND prosecdef = is_helper$$, ARRAY['enter_sql_v1', 'leave_sql_v1', 'cancel_sql_v1'], 'public functions run with their owner''s rights, helpers do not');
SELECT is_empty($$SELECT name FROM ours WHERE proname ~ '_sql_v1$' AND prosrc ~ 'pljobs\.'$$, 'what runs with the caller''s rights needs none in the schema');
SELECT is_empty($$SELECT name, c FROM ours, unnest(proconfig) AS c WHERE c !~ '^(search_path=pg_catalog, pg_temp|plan_cache_mode=force_(generic|custom)_plan|(enable_(seqscan|sort|bitmapscan)|jit)=off|lock_timeout=(100ms|500ms|1s)|quote_all_identifiers=off|standard_conforming_strings=on|IntervalStyle=postgres|DateStyle=iso|default_tablespace=)$'$$, 'what else functions set is about plans, waiting, and how things are written');
-- What is called for each job, or every few seconds. What these call takes over what they set.
SELECT is_empty($$SELECT h.name FROM unnest('{defer_jobs_v1,defer_jobs_v2,fetch_jobs_v1,finish_jobs_v1,finish_job_v1,heartbeat_v1,cancel_job_v1,rescue_jobs_v1,enforce_limits_v1,wake_lanes_v1,prune_jobs_v2,prune_history_v2,
                   get_job_statuses_v1,get_resolutions_v1,_finish_run,_promote_due_jobs,_notify_of,_expire_jobs,_claim_lanes,_wake_lanes,_claim_children,_cancel_waiting_jobs,_ask_to_abort,_deliver_requests,_store_progress,_release_job,_requeue_job,_end_job,
                   _delete_jobs,_archive_jobs}'::text[]) AS h(name)
                   WHERE NOT EXISTS (SELECT FROM ours AS o WHERE o.proname = h.name AND 'plan_cache_mode=force_generic_plan' = ANY (o.proconfig))$$, 'what is hot plans once a session, and for every value');
SELECT is_empty($$SELECT h.name FROM unnest('{fetch_jobs_v1,finish_jobs_v1,heartbeat_v1,cancel_job_v1,rescue_jobs_v1,enforce_limits_v1,wake_lanes_v1,prune_jobs_v2,prune_history_v2,_finish_run}'::text[]) AS h(name)
                   WHERE NOT EXISTS (SELECT FROM ours AS o WHERE o.proname = h.name AND 'enable_seqscan=off' = ANY (o.proconfig))$$, 'and scans no table, whatever the statistics say');
SELECT is_empty($$SELECT name FROM ours WHERE 'enable_seqscan=off' = ANY (proconfig) AND NOT 'jit=off' = ANY (proconfig)$$, 'where the planner is told what not to do, the price that it puts on it starts no compiler');
SELECT is_empty($$SELECT o.name FROM ours AS o JOIN pg_namespace AS n ON n.nspname = 'pljobs' WHERE o.proowner <> n.nspowner$$, 'every function is the schema''s owner''s');
SELECT is_empty($$SELECT c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = 'pljobs' AND c.relowner <> n.nspowner$$, 'so is every table, view, index and sequence');
SELECT results_eq($$SELECT r.rolname::text COLLATE "default", r.rolsuper, r.rolcanlogin, r.rolcreaterole, r.rolcreatedb, r.rolbypassrls, r.rolreplication FROM pg_namespace AS n JOIN pg_roles AS r ON r.oid = n.nspowner WHERE n.nspname = 'pljobs'$$,
                  $$VALUES ('pljobs_owner', false, false, false, false, false, false)$$, 'who is nobody that can log in, and has no rights but these');
SELECT do_as(a_login('pljobs_owner'), 'SET ROLE pljobs_owner; CREATE FUNCTION pljobs.made_later() RETURNS integer LANGUAGE sql RETURN 1; RESET ROLE') \g /dev/null
SELECT is(has_function_privilege('pljobs_reader', 'pljobs.made_later()', 'EXECUTE'), false, 'what it makes is not everybody''s to call, not for a moment');
DROP FUNCTION pljobs.made_later();
-- What PostgreSQL lets commit: neither SECURITY DEFINER nor settings. So all that a procedure names is qualified, and
-- whatever needs rights is done by the functions that it calls.
SELECT set_eq($$SELECT proname FROM ours WHERE prosrc ~ '\mCOMMIT\M'$$, $$SELECT proname FROM ours WHERE prokind = 'p'$$, 'procedures are there to commit in between, and nothing else does');
SELECT is_empty($$SELECT name FROM ours WHERE prokind = 'p' AND (prosecdef OR proconfig IS NOT NULL OR is_helper)$$, 'procedures run with the caller''s rights, without settings');
SELECT is_empty($$SELECT name, m FROM ours, regexp_matches(regexp_replace(prosrc, '--[^\n]*', '', 'g'), '(?<![.\w])(?!LEAST|GREATEST|ARRAY|FILTER|OPERATOR|ALL|AND)([[:alpha:]_]+)\s*\(', 'g') AS m WHERE prokind = 'p'$$, 'procedures qualify each function that they call');
SELECT is_empty($$SELECT name, m FROM ours, regexp_matches(regexp_replace(prosrc, '--[^\n]*', '', 'g'), '(?:\s|\w)(<>|<=|>=|[-+*/<]|[^:=]=)\s', 'g') AS m WHERE prokind = 'p'$$, 'and each operator');
SELECT is_empty($$SELECT name, m FROM ours, regexp_matches(substring(prosrc FROM '\mDECLARE\M(.*?)\mBEGIN\M'), '\n\s+v_\w+ (?!bigint|integer|numeric|boolean|record|pg_catalog\.)(\w+)', 'g') AS m WHERE prokind = 'p'$$, 'and each type, but for SQL''s own words');
SELECT is_empty($$SELECT name, m FROM ours, regexp_matches(prosrc, '(FROM|JOIN|UPDATE|INTO)\s+pljobs\.(\w+)(?!\w|\()', 'g') AS m WHERE prokind = 'p'$$, 'and touch no table');
SELECT is_empty($$SELECT name FROM ours WHERE NOT is_helper AND provolatile <> CASE WHEN proname ~ '^(get|check)_' THEN 's' ELSE 'v' END$$, 'public functions are VOLATILE, but for those that only get or check');
SELECT set_eq($$SELECT proname FROM ours WHERE proisstrict OR proparallel <> 'u'$$, ARRAY['_lane_key', '_tree_key'], 'only a pure helper is STRICT or PARALLEL SAFE');
SELECT is_empty($$SELECT name FROM ours WHERE proname !~ '^_?[a-z]+(_[a-z]+)*(_v[1-9])?$'$$, 'functions are named verb_noun, with a version for drivers');
SELECT is_empty($$SELECT o.name FROM ours AS o JOIN pg_type AS t ON t.oid = o.prorettype JOIN pg_class AS c ON c.oid = t.typrelid WHERE c.relkind IN ('r', 'p', 'v')$$, 'no function returns a table''s row type');
SELECT is_empty($$SELECT proname FROM ours GROUP BY 1 HAVING count(*) > 1$$, 'no function is overloaded');
SELECT set_eq($$SELECT proname FROM ours WHERE prosrc ~ '\mEXECUTE (format|\w+\.|v_)'$$, ARRAY['_migrate', '_lock_relations', '_create_index', '_replace_form', '_make_archive', 'drop_archive'], 'there is no dynamic SQL but in what only migrations call, and to make and drop partitions');
SELECT is_empty($$SELECT name FROM ours WHERE prosrc ~* '\mSELECT\s+\*' OR prosrc LIKE '%#variable_conflict%'$$, 'there is no SELECT *, no #variable_conflict');
SELECT set_eq($$SELECT proname FROM ours WHERE prosrc LIKE '%pg_notify%'$$, ARRAY['_notify_worker', '_notify_todo'], 'pg_notify is called in two helpers only');
SELECT is_empty($$SELECT name FROM ours WHERE prosrc ~ '\mnow\(\)' OR prosrc ~ 'current_timestamp'$$, 'the clock is clock_timestamp: now() stands still in a long transaction');
SELECT is_empty($$SELECT name, code FROM ours, regexp_matches(prosrc, 'ERRCODE = ''(\w+)''', 'g') AS m(code) WHERE code[1] !~ '^(PJ00[1-9]|PJ01[0-3]|2BP01|55P03|23505|42P07)$' AND (code[1] <> 'PJ000' OR prosrc !~ 'EXCEPTION\s+WHEN SQLSTATE ''PJ000''')$$, 'the errors raised are those that drivers know, or are caught where they are raised');
SELECT is_empty($$SELECT name FROM ours WHERE prosrc ~ 'RAISE EXCEPTION' AND prosrc !~ 'ERRCODE = ''(PJ|2BP01|55P03|42P07)'$$, 'every error raised has a code');
SELECT is_empty($$SELECT o.name, m[1] || m[2] FROM ours AS o, regexp_matches(regexp_replace(o.prosrc, '--[^\n]*', '', 'g'), '\mHINT = [^;]*?\m([a-z_]+_v)(\d)\M', 'g') AS m WHERE EXISTS (SELECT FROM ours AS n WHERE n.proname LIKE m[1] || '_' AND n.proname > m[1] || m[2])$$, 'hints name the newest form of a function');
SELECT is_empty($$SELECT FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid WHERE c.relnamespace = 'pljobs'::regnamespace$$, 'no trigger hides a transition');

SELECT set_eq($$SELECT proname FROM ours WHERE regexp_replace(prosrc, '--[^\n]*', '', 'g') LIKE '%\\%' AND NOT coalesce('standard_conforming_strings=on' = ANY (proconfig), false)$$, ARRAY['_inventory'], 'a backslash means what standard_conforming_strings says: who writes one sets it, or is called by who does');

-- Tables.
SELECT is_empty($$SELECT conname FROM pg_constraint WHERE connamespace = 'pljobs'::regnamespace AND contype <> 'n' AND conname ~ '_(check|key|fkey|excl)\d*$'$$, 'constraints are named by what they say');
SELECT is_empty($$SELECT conname FROM pg_constraint WHERE connamespace = 'pljobs'::regnamespace AND contype = 'f'$$, 'there are no foreign keys: requests outlive jobs');
SELECT is_empty($$SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                   WHERE c.relnamespace = 'pljobs'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND
                         CASE WHEN a.attname ~ '(^|_)at$' OR a.attname IN ('last_tick', 'start_by') THEN a.atttypid <> 'timestamptz'::regtype
                              ELSE a.atttypid IN ('timestamptz'::regtype, 'timestamp'::regtype, 'date'::regtype, 'time'::regtype, 'timetz'::regtype) END$$,
                'times are timestamptz and named so');
SELECT is_empty($$SELECT c.relname, a.attname FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
                   WHERE c.relnamespace = 'pljobs'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND (a.attname = 'id' OR (a.attname LIKE '%\_id' AND a.attname <> 'periodic_id')) AND a.atttypid <> 'bigint'::regtype$$, 'ids are bigint');
SELECT is_empty($$SELECT relname FROM pg_class WHERE relnamespace = 'pljobs'::regnamespace AND relkind = 'v' AND NOT coalesce('security_barrier=true' = ANY (reloptions), false)$$, 'views are security barriers');
SELECT is_empty($$SELECT relname FROM pg_class WHERE relnamespace = 'pljobs'::regnamespace AND relkind = 'v' AND obj_description(oid, 'pg_class') IS NULL$$, 'every view has a comment');
SELECT is_empty($$SELECT typname FROM pg_type AS t WHERE t.typnamespace = 'pljobs'::regnamespace AND t.typtype IN ('e', 'd')$$, 'there are no enums and domains');

-- Who may do what: what is granted is what _privileges() lists, which docs/security.md shows (test_roles.py).
CREATE ROLE pljobs_tests_nobody;
CREATE TABLE may (role text);
INSERT INTO may VALUES ('pljobs_tests_nobody'), ('pljobs_reader'), ('pljobs_producer'), ('pljobs_worker'), ('pljobs_canceller'), ('pljobs_operator');
CREATE VIEW listed AS SELECT p.kind, p.name, g.role FROM pljobs._privileges() AS p, unnest(p.grantees) AS g(role);
SELECT is(ARRAY(SELECT proname FROM ours WHERE has_function_privilege(m.role, oid, 'EXECUTE') ORDER BY proname COLLATE "C"),
          ARRAY(SELECT l.name FROM listed AS l WHERE l.kind = 'function' AND l.role = m.role ORDER BY l.name COLLATE "C"), m.role || ' may call exactly its functions') FROM may AS m;
SELECT set_eq($$SELECT name FROM listed WHERE kind = 'function' AND role = 'pljobs_operator'$$, 'SELECT proname FROM ours WHERE NOT is_helper', 'an operator may call every function but the helpers');
SELECT is(ARRAY(SELECT c.relname::text FROM pg_class AS c WHERE c.relnamespace = 'pljobs'::regnamespace AND c.relkind = 'v' AND has_any_column_privilege(m.role, c.oid, 'SELECT') ORDER BY c.relname COLLATE "C"),
          ARRAY(SELECT l.name FROM listed AS l WHERE l.kind = 'view' AND l.role = m.role ORDER BY l.name COLLATE "C"), m.role || ' may read exactly its views') FROM may AS m;
SELECT is_empty($$SELECT m.role, g.rolname FROM may AS m, pg_roles AS g WHERE g.rolname ~ '^pljobs_' AND g.rolname <> m.role AND pg_has_role(m.role, g.oid, 'MEMBER')$$, 'the groups are siblings: none is a member of another');
SELECT is_empty($$SELECT rolname FROM pg_roles WHERE rolname IN (SELECT role FROM may) AND (rolcanlogin OR rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls OR rolreplication)$$, 'and may nothing else, nor log in');
SELECT is(has_schema_privilege(m.role, 'pljobs', 'USAGE'), m.role <> 'pljobs_tests_nobody', m.role || ': use of the schema') FROM may AS m;
SELECT is(has_schema_privilege(m.role, 'pljobs', 'CREATE'), false, m.role || ' may create nothing in the schema') FROM may AS m;
SELECT is_empty(format($$SELECT c.relname, p FROM pg_class AS c, unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) AS p
                          WHERE c.relnamespace = 'pljobs'::regnamespace AND c.relkind IN ('r', 'p') AND (has_table_privilege(%1$L, c.oid, p) OR p IN ('SELECT', 'INSERT', 'UPDATE') AND has_any_column_privilege(%1$L, c.oid, p))$$, m.role),
                m.role || ' has no privilege on any table') FROM may AS m;
SELECT is_empty(format($$SELECT c.relname, p FROM pg_class AS c, unnest('{INSERT,UPDATE,DELETE,TRUNCATE}'::text[]) AS p
                          WHERE c.relnamespace = 'pljobs'::regnamespace AND c.relkind = 'v' AND has_table_privilege(%L, c.oid, p)$$, m.role), m.role || ' writes through no view') FROM may AS m;
SELECT is_empty(format($$SELECT c.relname FROM pg_class AS c WHERE c.relnamespace = 'pljobs'::regnamespace AND CASE WHEN c.relkind = 'S'
                          THEN has_sequence_privilege(%L, c.oid, 'USAGE, SELECT, UPDATE') END$$, m.role), m.role || ' has no privilege on any sequence') FROM may AS m;

-- PUBLIC, and what CREATE OR REPLACE would have kept.
SELECT is_empty($$SELECT o.name, a.grantee FROM ours AS o, aclexplode(coalesce(o.proacl, acldefault('f', o.proowner))) AS a WHERE a.grantee = 0$$, 'PUBLIC may call nothing');
SELECT is_empty($$SELECT o.name FROM ours AS o, aclexplode(coalesce(o.proacl, acldefault('f', o.proowner))) AS a WHERE o.is_helper AND a.grantee <> o.proowner$$, 'helpers are granted to nobody');
SELECT is_empty($$SELECT c.relname FROM pg_class AS c, aclexplode(c.relacl) AS a WHERE c.relnamespace = 'pljobs'::regnamespace AND a.grantee = 0$$, 'PUBLIC may read nothing');
SELECT is_empty($$SELECT FROM pg_namespace AS n, aclexplode(n.nspacl) AS a WHERE n.nspname = 'pljobs' AND a.grantee = 0$$, 'PUBLIC may not use the schema');
GRANT EXECUTE ON FUNCTION pljobs.rescue_jobs() TO PUBLIC;
\ir ../sql/grants.sql
SELECT is(has_function_privilege('pljobs_tests_nobody', 'pljobs.rescue_jobs()', 'EXECUTE'), false, 'an install takes back what was granted to PUBLIC by hand');

-- For real: as a producer, a worker, a canceller.
SET LOCAL ROLE pljobs_producer;
SELECT pljobs.defer_job('a task', queue => 'policy tests') AS job_id \gset
RESET ROLE;
SET LOCAL ROLE pljobs_worker;
SELECT pljobs.register_worker_v1('w', 'h', 1) AS w \gset
SELECT run_id FROM pljobs.fetch_jobs_v1(:w, 1, '{policy tests}') \gset
RESET ROLE;
SET LOCAL ROLE pljobs_canceller;
SELECT pljobs.cancel_job(:job_id, abort => true) AS outcome \gset
RESET ROLE;
SET LOCAL ROLE pljobs_worker;
SELECT verdict, requested_by FROM pljobs.heartbeat_v1(:w, ARRAY[:run_id]::bigint[]) \gset
SELECT status FROM pljobs.finish_jobs_v1(jsonb_build_array(jsonb_build_object('job_id', :job_id, 'run_id', :run_id, 'outcome', 'aborted'))) \gset
RESET ROLE;
SELECT is(ARRAY[:'outcome', :'verdict', :'requested_by', :'status'], '{abort_requested,abort,pljobs_canceller,aborted}', 'producer, worker and canceller do their parts with nothing but EXECUTE');

-- A role that may call nothing else asks for each job through functions that run with their owner's rights.
SET LOCAL ROLE pljobs_canceller;
SELECT is(count(*), 0::bigint, 'a canceller cancels by filter') FROM pljobs.cancel_jobs(task => 'nothing of this name', dry_run => false);
SELECT is(pljobs.rescind_request(:job_id), 'no_request', 'and takes requests back');
SELECT is(s.status, 'aborted', 'and sees what became of a job') FROM pljobs.get_job_statuses_v1(ARRAY[:job_id]::bigint[]) AS s;
SELECT throws_ok('SELECT pljobs.retry_jobs(task => ''t'')', '42501', NULL, 'but retries none');
RESET ROLE;

-- What somebody puts in the way is not found: temporary tables, functions, operators of the caller.
CREATE TEMP TABLE job (id bigint, status text);
CREATE FUNCTION pg_temp.clock_timestamp() RETURNS timestamptz LANGUAGE sql RETURN '2001-01-01'::timestamptz;
CREATE FUNCTION md5(bytea) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''hijacked''; END';
SET LOCAL search_path = pg_temp, :test_schema, pljobs, pg_catalog, public;
SELECT pljobs.defer_job('a task') AS job_id \gset
SELECT ok((SELECT j.created_at FROM pljobs.job AS j WHERE j.id = :job_id) > '2020-01-01' AND NOT EXISTS (SELECT FROM pg_temp.job), 'a caller''s search_path and temporary objects are not looked at');

SELECT * FROM finish();
ROLLBACK;

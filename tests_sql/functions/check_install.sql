BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT is_empty('SELECT * FROM pljobs.check_install()', 'of what this release installs there is nothing to say');

-- Makes a difference, asks, and undoes it.
CREATE FUNCTION said(difference text) RETURNS TABLE (kind text, name text, problem text, fix text)
LANGUAGE plpgsql
AS $$
DECLARE
    v_answer jsonb;
BEGIN
    BEGIN
        EXECUTE said.difference;
        v_answer := (SELECT coalesce(jsonb_agg(to_jsonb(c)), '[]') FROM pljobs.check_install() AS c);
        RAISE EXCEPTION USING ERRCODE = 'TS000';
    EXCEPTION WHEN SQLSTATE 'TS000' THEN
        NULL;
    END;
    RETURN QUERY SELECT a.kind, a.name, a.problem, a.fix FROM jsonb_to_recordset(v_answer) AS a(kind text, name text, problem text, fix text);
END
$$;
CREATE FUNCTION names(what text, difference text, kind text, name text, problem text, fix text) RETURNS text
LANGUAGE sql VOLATILE
RETURN bag_eq(format('SELECT kind, name, problem, fix FROM said(%L)', difference), format('VALUES (%L, %L, %L, %L)', kind, name, problem, fix), what);

-- Functions.
SELECT names('a function with another body', $$CREATE OR REPLACE FUNCTION pljobs.rescue_jobs() RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'BEGIN RETURN 0; END'$$,
             'function', 'rescue_jobs()', 'differs', 'install again');
SELECT names(what, difference, 'function', 'wake_lanes_v1()', 'differs', 'install again')
  FROM (VALUES ('a function without its owner''s rights', 'ALTER FUNCTION pljobs.wake_lanes_v1() SECURITY INVOKER'), ('one without its search_path', 'ALTER FUNCTION pljobs.wake_lanes_v1() RESET search_path'),
               ('one with another setting', 'ALTER FUNCTION pljobs.wake_lanes_v1() SET jit = on'), ('one of another volatility', 'ALTER FUNCTION pljobs.wake_lanes_v1() STABLE'),
               ('a strict one', 'ALTER FUNCTION pljobs.wake_lanes_v1() STRICT'), ('one that may run in parallel', 'ALTER FUNCTION pljobs.wake_lanes_v1() PARALLEL SAFE'),
               ('one without its comment', 'COMMENT ON FUNCTION pljobs.wake_lanes_v1() IS NULL')) AS d(what, difference);
SELECT names('a function that is missing', 'DROP FUNCTION pljobs._caller()', 'function', '_caller()', 'missing', 'install again');
SELECT names('a procedure that is missing: once, not its grants, too', 'DROP PROCEDURE pljobs.wait_for_job', 'procedure', 'wait_for_job(IN job_id bigint, IN timeout interval, INOUT status text)', 'missing', 'install again');
SELECT names('a function that is not ours', 'CREATE FUNCTION pljobs.mine() RETURNS integer LANGUAGE sql RETURN 1; REVOKE ALL ON FUNCTION pljobs.mine() FROM PUBLIC; ALTER FUNCTION pljobs.mine() OWNER TO pljobs_owner',
             'function', 'mine()', 'unknown', 'not of this release: drop it, if it is not there on purpose');
SELECT bag_eq($t$SELECT kind, name, problem FROM said('ALTER FUNCTION pljobs.defer_job RENAME TO defer_jb')$t$,
              format($$VALUES ('function', %L, 'missing'), ('function', %L, 'unknown'),
                              ('function', 'defer_jb', 'EXECUTE is granted to pljobs_operator'), ('function', 'defer_jb', 'EXECUTE is granted to pljobs_producer')$$,
                     'defer_job(' || pg_get_function_identity_arguments('pljobs.defer_job'::regproc) || ')', 'defer_jb(' || pg_get_function_identity_arguments('pljobs.defer_job'::regproc) || ')'),
              'a function of another name: the one is missing, the other unknown, with its grants');

-- Views, tables, columns, constraints.
SELECT names('a view of another text', 'CREATE OR REPLACE VIEW pljobs.queue_limits WITH (security_barrier) AS SELECT l.role, l.verb, l.queues, true AS role_exists FROM pljobs.queue_limit AS l', 'view', 'queue_limits', 'differs', 'install again');
SELECT names('one that is no barrier', 'ALTER VIEW pljobs.workers RESET (security_barrier)', 'view', 'workers', 'differs', 'install again');
SELECT names('a view that is not ours', 'CREATE VIEW pljobs.mine AS SELECT 1 AS a; ALTER VIEW pljobs.mine OWNER TO pljobs_owner', 'view', 'mine', 'unknown', 'not of this release: drop it, if it is not there on purpose');
SELECT names('a table without its replica identity', 'ALTER TABLE pljobs.job_event REPLICA IDENTITY DEFAULT', 'table', 'job_event', 'differs', 'should be: p f');
SELECT names('one with row security', 'ALTER TABLE pljobs.job ENABLE ROW LEVEL SECURITY', 'table', 'job', 'differs', 'should be: p d');
SELECT names('an unlogged one', 'ALTER TABLE pljobs.progress SET UNLOGGED', 'table', 'progress', 'differs', 'should be: p d');
SELECT names('a sequence that is not ours', 'CREATE SEQUENCE pljobs.mine; ALTER SEQUENCE pljobs.mine OWNER TO pljobs_owner', 'sequence', 'mine', 'unknown', 'not of this release: drop it, if it is not there on purpose');
SELECT names('a column that may be null', 'ALTER TABLE pljobs.job ALTER task DROP NOT NULL', 'column', 'job.task', 'differs', 'should be: text NOT NULL');
SELECT names('one with another default', 'ALTER TABLE pljobs.worker ALTER contract SET DEFAULT 2', 'column', 'worker.contract', 'differs', 'should be: integer NOT NULL DEFAULT 1');
SELECT names('an identity that is gone', 'ALTER TABLE pljobs.request ALTER id SET GENERATED BY DEFAULT', 'column', 'request.id', 'differs', 'should be: bigint NOT NULL identity a');
SELECT names('a column that is not ours', 'ALTER TABLE pljobs.job ADD mine integer', 'column', 'job.mine', 'unknown', 'not of this release: drop it, if it is not there on purpose');
SELECT names('a constraint that is gone', 'ALTER TABLE pljobs.job DROP CONSTRAINT job_is_as_its_status_says', 'constraint', 'job.job_is_as_its_status_says', 'missing',
             (SELECT 'should be: ' || regexp_replace(regexp_replace(pg_get_constraintdef(o.oid), '\s+', ' ', 'g'), ' NOT VALID$', '') FROM pg_constraint AS o WHERE o.conname = 'job_is_as_its_status_says'));
SELECT is_empty($t$SELECT * FROM said('ALTER TABLE pljobs.job VALIDATE CONSTRAINT job_is_as_its_status_says')$t$, 'a constraint may be validated');
SELECT names('a trigger', 'CREATE TRIGGER mine BEFORE UPDATE ON pljobs.job FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()', 'trigger', 'job.mine', 'unknown', 'not of this release: drop it, if it is not there on purpose');
SELECT names('a rule', 'CREATE RULE mine AS ON DELETE TO pljobs.request DO INSTEAD NOTHING', 'rule', 'request.mine', 'unknown', 'not of this release: drop it, if it is not there on purpose');

-- Indexes: with what makes them, without keeping anybody waiting.
SELECT pg_get_indexdef('pljobs.job_finished'::regclass) AS wanted, regexp_replace(pg_get_indexdef('pljobs.job_finished'::regclass), 'INDEX', 'INDEX CONCURRENTLY') || ';' AS makes \gset
SELECT names('an index that is missing', 'DROP INDEX pljobs.job_finished', 'index', 'job_finished', 'missing', :'makes');
SELECT names('one on something else', 'DROP INDEX pljobs.job_finished; CREATE INDEX job_finished ON pljobs.job (finished_at)', 'index', 'job_finished', 'differs', 'DROP INDEX CONCURRENTLY pljobs.job_finished; ' || :'makes');
SELECT names('a unique one', 'DROP INDEX pljobs.job_one_doing_per_lock', 'index', 'job_one_doing_per_lock', 'missing',
             regexp_replace(pg_get_indexdef('pljobs.job_one_doing_per_lock'::regclass), 'INDEX', 'INDEX CONCURRENTLY') || ';');
SELECT names('one that a build has left invalid', 'UPDATE pg_index SET indisvalid = false WHERE indexrelid = ''pljobs.job_finished''::regclass', 'index', 'job_finished', 'invalid', 'REINDEX INDEX CONCURRENTLY pljobs.job_finished;');
SELECT names('or not ready', 'UPDATE pg_index SET indisready = false WHERE indexrelid = ''pljobs.job_finished''::regclass', 'index', 'job_finished', 'invalid', 'REINDEX INDEX CONCURRENTLY pljobs.job_finished;');
SELECT names('what a broken REINDEX CONCURRENTLY has left', 'CREATE INDEX job_finished_ccnew ON pljobs.job (finished_at); UPDATE pg_index SET indisvalid = false WHERE indexrelid = ''pljobs.job_finished_ccnew''::regclass',
             'index', 'job_finished_ccnew', 'invalid', 'DROP INDEX CONCURRENTLY pljobs.job_finished_ccnew;');
SELECT names('an index that is not ours', 'CREATE INDEX mine ON pljobs.job (task)', 'index', 'mine', 'unknown', 'not of this release: drop it, if it is not there on purpose');

-- Migrations.
SELECT names('a migration that has not run', 'DELETE FROM pljobs.migration WHERE name = ''0002_expand_roles''', 'migration', '0002_expand_roles', 'missing', 'install again');
SELECT names('one that ran with another text', 'UPDATE pljobs.migration SET checksum = ''x'' WHERE name = ''0001_expand_core''', 'migration', '0001_expand_core', 'differs', 'the database ran another text of it: find out which, and restore it');
SELECT names('one of a newer release', 'INSERT INTO pljobs.migration (name, checksum) VALUES (''9999_expand_later'', ''x'')', 'migration', '9999_expand_later', 'unknown', 'a newer release was here: install that one');

-- Owners.
CREATE ROLE pljobs_tests_odd;
SELECT names('a function of somebody else''s', 'ALTER FUNCTION pljobs._caller() OWNER TO pljobs_tests_odd', 'function', 'pljobs._caller()', 'belongs to pljobs_tests_odd', 'ALTER ROUTINE pljobs._caller() OWNER TO pljobs_owner;');
SELECT names('a table', 'ALTER TABLE pljobs.periodic OWNER TO pljobs_tests_odd', 'table', 'pljobs.periodic', 'belongs to pljobs_tests_odd', 'ALTER TABLE pljobs.periodic OWNER TO pljobs_owner;');
SELECT names('a view', 'ALTER VIEW pljobs._scope OWNER TO pljobs_tests_odd', 'view', 'pljobs._scope', 'belongs to pljobs_tests_odd', 'ALTER VIEW pljobs._scope OWNER TO pljobs_owner;');
SELECT names('a sequence', 'ALTER SEQUENCE pljobs.run_id OWNER TO pljobs_tests_odd', 'sequence', 'pljobs.run_id', 'belongs to pljobs_tests_odd', 'ALTER SEQUENCE pljobs.run_id OWNER TO pljobs_owner;');

-- Grants.
SELECT names('everybody may call a function', 'GRANT EXECUTE ON FUNCTION pljobs.rescue_jobs() TO PUBLIC', 'function', 'rescue_jobs', 'EXECUTE is granted to PUBLIC', 'REVOKE ALL ON ROUTINE pljobs.rescue_jobs() FROM PUBLIC;');
SELECT names('everybody may use the schema', 'GRANT USAGE ON SCHEMA pljobs TO PUBLIC', 'schema', 'pljobs', 'USAGE is granted to PUBLIC', 'REVOKE ALL ON SCHEMA pljobs FROM PUBLIC;');
SELECT names('everybody may read a view', 'GRANT SELECT ON pljobs.queues TO PUBLIC', 'view', 'queues', 'SELECT is granted to PUBLIC', 'REVOKE ALL ON TABLE pljobs.queues FROM PUBLIC;');
SELECT names('somebody may create in the schema', 'GRANT CREATE ON SCHEMA pljobs TO pljobs_tests_odd', 'schema', 'pljobs', 'CREATE is granted to pljobs_tests_odd', 'REVOKE ALL ON SCHEMA pljobs FROM pljobs_tests_odd;');
SELECT names('somebody may read a table', 'GRANT SELECT ON pljobs.job TO pljobs_tests_odd', 'table', 'job', 'SELECT is granted to pljobs_tests_odd', 'REVOKE ALL ON TABLE pljobs.job FROM pljobs_tests_odd;');
SELECT names('a column of it', 'GRANT SELECT (args) ON pljobs.job TO pljobs_tests_odd', 'table', 'job', 'SELECT (some columns) is granted to pljobs_tests_odd', 'REVOKE ALL ON TABLE pljobs.job FROM pljobs_tests_odd;');
SELECT names('a group may write a table', 'GRANT UPDATE ON pljobs.job TO pljobs_producer', 'table', 'job', 'UPDATE is granted to pljobs_producer', 'REVOKE ALL ON TABLE pljobs.job FROM pljobs_producer;');
SELECT names('somebody may draw ids', 'GRANT USAGE ON SEQUENCE pljobs.run_id TO pljobs_tests_odd', 'sequence', 'run_id', 'USAGE is granted to pljobs_tests_odd', 'REVOKE ALL ON SEQUENCE pljobs.run_id FROM pljobs_tests_odd;');
SELECT names('somebody may write through a view', 'GRANT INSERT ON pljobs.queue_limits TO pljobs_tests_odd', 'view', 'queue_limits', 'INSERT is granted to pljobs_tests_odd', 'REVOKE ALL ON TABLE pljobs.queue_limits FROM pljobs_tests_odd;');
SELECT names('somebody may call a helper', 'GRANT EXECUTE ON FUNCTION pljobs._caller() TO pljobs_tests_odd', 'function', '_caller', 'EXECUTE is granted to pljobs_tests_odd', 'REVOKE ALL ON ROUTINE pljobs._caller() FROM pljobs_tests_odd;');
SELECT names('or read one', 'GRANT SELECT ON pljobs._scope TO pljobs_tests_odd', 'view', '_scope', 'SELECT is granted to pljobs_tests_odd', 'REVOKE ALL ON TABLE pljobs._scope FROM pljobs_tests_odd;');
SELECT names('a group has a function that is another''s', 'GRANT EXECUTE ON FUNCTION pljobs.rescue_jobs() TO pljobs_producer', 'function', 'rescue_jobs', 'EXECUTE is granted to pljobs_producer', 'REVOKE ALL ON ROUTINE pljobs.rescue_jobs() FROM pljobs_producer;');
SELECT names('or has not what is its own', 'REVOKE EXECUTE ON FUNCTION pljobs.rescue_jobs() FROM pljobs_worker', 'function', 'rescue_jobs', 'EXECUTE is not granted to pljobs_worker', 'install again');
SELECT names('not even the schema', 'REVOKE USAGE ON SCHEMA pljobs FROM pljobs_reader', 'schema', 'pljobs', 'USAGE is not granted to pljobs_reader', 'install again');
SELECT bag_eq($t$SELECT problem, fix FROM said('GRANT EXECUTE ON FUNCTION pljobs.rescue_jobs() TO pljobs_worker WITH GRANT OPTION')$t$,
              $$VALUES ('EXECUTE, to pass on, is granted to pljobs_worker', 'REVOKE ALL ON ROUTINE pljobs.rescue_jobs() FROM pljobs_worker;'), ('EXECUTE is not granted to pljobs_worker', 'install again')$$, 'a group may pass on what is its own');
SELECT names('somebody may pass it on', 'GRANT EXECUTE ON FUNCTION pljobs.rescue_jobs() TO pljobs_tests_odd WITH GRANT OPTION', 'function', 'rescue_jobs', 'EXECUTE, to pass on, is granted to pljobs_tests_odd', 'REVOKE ALL ON ROUTINE pljobs.rescue_jobs() FROM pljobs_tests_odd;');
SELECT is_empty($t$SELECT * FROM said('GRANT EXECUTE ON FUNCTION pljobs.rescue_jobs() TO pljobs_tests_odd; GRANT SELECT ON pljobs.jobs TO pljobs_tests_odd; GRANT USAGE ON SCHEMA pljobs TO pljobs_tests_odd')$t$,
                'a DBA may let single roles use single functions and views');
SELECT is_empty($t$SELECT * FROM said('ALTER TABLE pljobs.job SET (fillfactor = 70, autovacuum_vacuum_threshold = 1); ALTER TABLE pljobs.job ALTER args SET STORAGE EXTERNAL; ALTER INDEX pljobs.job_one_todo_per_queueing_lock SET (fillfactor = 70); ALTER INDEX pljobs.job_finished SET (fillfactor = 70)')$t$, 'and set how tables and indexes are stored');

-- Who has no groups.
SELECT is_empty($t$SELECT c.problem FROM said('ALTER ROLE pljobs_reader RENAME TO pljobs_reader_no_more') AS c WHERE c.problem !~ 'is granted to pljobs_reader_no_more'$t$, 'a group that does not exist is not missed');
SELECT is(as_login(a_login(g), 'SELECT count(*) FROM pljobs.check_install()'), '0', g || ' may ask') FROM unnest('{pljobs_reader,pljobs_operator,pljobs_owner}'::text[]) AS g;
SELECT is(as_login(a_login(g), 'SELECT count(*) FROM pljobs.check_install()'), '42501', g || ' may not') FROM unnest('{pljobs_producer,pljobs_worker,pljobs_canceller}'::text[]) AS g;

SELECT * FROM finish();
ROLLBACK;

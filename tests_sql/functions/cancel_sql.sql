-- With a statement to be cancelled, that is, with a second session: races/cancel_sql.spec.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SET LOCAL client_min_messages = error;   -- Leaving what was not entered warns.
-- The keys that this session holds.
CREATE FUNCTION keys_held() RETURNS bigint
LANGUAGE sql VOLATILE
AS $$
SELECT count(*) FROM pg_locks AS l WHERE l.locktype = 'advisory' AND l.pid = pg_backend_pid() AND l.classid::bigint BETWEEN 1073741824 AND 1610612735;
$$;
CREATE FUNCTION a_bracket(run_id bigint) RETURNS text
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_entered text := pljobs.enter_sql_v1(a_bracket.run_id, pg_backend_pid());
    v_held bigint := keys_held();
    v_cancelled text := pljobs.cancel_sql_v1(a_bracket.run_id);
BEGIN
    PERFORM pljobs.leave_sql_v1(a_bracket.run_id);
    RETURN format('%s %s %s %s', v_entered, v_held, v_cancelled, keys_held());
END
$$;
SELECT is(a_bracket(x), 'entered 1 none 0', format('run %s: entered, never cancelled by itself, left', x)) FROM unnest('{1,0,-1,1152921504606846976,9223372036854775807,-9223372036854775808}'::bigint[]) AS x;
SELECT is(pljobs.enter_sql_v1(1, pid), 'pooled', 'not the process that the client knows: ' || coalesce(pid::text, 'null')) FROM (VALUES (NULL::integer), (0), (-1), (pg_backend_pid() + 1)) AS v(pid);
SELECT is(keys_held(), 0::bigint, 'then nothing is entered');
SELECT is(pljobs.enter_sql_v1(NULL, pg_backend_pid()), 'busy', 'no run, nothing entered');
SELECT is(pljobs.cancel_sql_v1(x), 'none', 'nobody is in it: ' || coalesce(x::text, 'null')) FROM unnest('{1,0,-1,9223372036854775807,NULL}'::bigint[]) AS x;
SELECT lives_ok(format('SELECT pljobs.leave_sql_v1(%L)', x), 'left without having entered: ' || coalesce(x::text, 'null')) FROM unnest('{1,NULL}'::bigint[]) AS x;
SELECT is(keys_held(), 0::bigint, 'no key is left');
-- What one run holds is another thing than what its neighbours hold.
SELECT is(pljobs.enter_sql_v1(10, pg_backend_pid()), 'entered', 'one run');
SELECT is(array_agg(DISTINCT l.objid::bigint), '{20}', 'two keys for each run') FROM pg_locks AS l WHERE l.locktype = 'advisory' AND l.pid = pg_backend_pid() AND l.classid::bigint BETWEEN 1073741824 AND 1610612735;
SELECT pljobs.leave_sql_v1(9), pljobs.leave_sql_v1(11) \g /dev/null
SELECT is(keys_held(), 1::bigint, 'another run''s is not left');
SELECT pljobs.leave_sql_v1(10) \g /dev/null

-- What is recorded of it.
SELECT * FROM an_aborting_job() \gset
SELECT is(pljobs._cancel_sql_of_request(:request_id), 'none', 'the run is in no SQL');
SELECT is(r.sql_way, 'none', 'that is recorded') FROM pljobs.request AS r WHERE r.id = :request_id;
-- Nobody's rights reach.
UPDATE pljobs.request SET sql_way = 'denied' WHERE id = :request_id;
SAVEPOINT denied;
CREATE OR REPLACE FUNCTION pljobs.cancel_sql_v1(run_id bigint) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN 'denied'; END $$;
SELECT is(pljobs._cancel_sql_of_request(:request_id), 'denied', 'its worker has tried: it is not asked again');
UPDATE pljobs.request SET level = 3 WHERE id = :request_id;
SELECT is(pljobs._cancel_sql_of_request(:request_id), 'asked', 'but from level 3 on, again and again');
ROLLBACK TO SAVEPOINT denied;
UPDATE pljobs.request SET sql_way = 'server' WHERE id = :request_id;
SELECT is(pljobs._cancel_sql_of_request(:request_id), 'none', 'now it is in none');
SELECT is(r.sql_way, 'server', 'that there was a statement stays recorded') FROM pljobs.request AS r WHERE r.id = :request_id;
SELECT is(pljobs._cancel_sql_of_request(x), NULL, 'no such request: ' || coalesce(x::text, 'null')) FROM unnest('{-1,NULL}'::bigint[]) AS x;

SELECT * FROM finish();
ROLLBACK;

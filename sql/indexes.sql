-- Makes the indexes that are missing or invalid, one after the other, while everybody goes on working. After
-- an install that has left one for later, or when check_install() names one. Can be interrupted, and run
-- again: it goes on where it was.
--
--     psql -v ON_ERROR_STOP=1 -f sql/indexes.sql
--
-- Without -1: an index is made CONCURRENTLY outside of a transaction alone. As the owner of the schema.
SET search_path = pg_catalog, pg_temp;
SET statement_timeout = 0;
-- Of 17 and later.
SELECT CASE WHEN pg_catalog.current_setting('transaction_timeout', true) IS NOT NULL
            THEN pg_catalog.set_config('transaction_timeout', '0', false) END AS timeout \gset
SET default_transaction_read_only = off;
-- Each waits for the transactions that were open when it began; others don't wait for it.
SET lock_timeout = 0;
-- What check_install() says is run: of another role's, not with a superuser's rights (see begin.sql).
SELECT NOT EXISTS (
           SELECT FROM pg_catalog.pg_namespace AS n
             JOIN pg_catalog.pg_roles AS o ON o.oid = n.nspowner
             JOIN pg_catalog.pg_roles AS c ON c.rolname = current_user
            WHERE n.nspname = 'pljobs' AND c.rolsuper AND NOT o.rolsuper AND o.rolname <> 'pljobs_owner'
       ) AS may_go \gset
\if :may_go
\else
DO $$
BEGIN
    RAISE EXCEPTION 'schema pljobs belongs to another role, and this is a superuser'
        USING ERRCODE = '42501', HINT = 'No index was made. Run this as the owner of the schema.';
END
$$;
\quit
\endif
SELECT pg_catalog.set_config('role', pg_catalog.pg_get_userbyid(n.nspowner)::text, false) AS role
  FROM pg_catalog.pg_namespace AS n WHERE n.nspname = 'pljobs' \gset
-- Not by waiting: who waits here would hold a snapshot, which the other's build would wait for.
SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended('pljobs.indexes', 0)) AS alone \gset
\if :alone
SELECT pg_catalog.regexp_split_to_table(c.fix, '(?<=;) ') FROM pljobs.check_install() AS c
 WHERE c.kind = 'index' AND c.problem <> 'unknown' \gexec
\else
DO $$
BEGIN
    RAISE EXCEPTION 'another session is making the indexes of pljobs'
        USING ERRCODE = '55P03', HINT = 'Run this again when it is done, to see that none is missing.';
END
$$;
\quit
\endif

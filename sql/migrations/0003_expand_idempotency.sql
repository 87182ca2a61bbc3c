SELECT pljobs._migrate('0003_expand_idempotency', $migration$

-- What was deferred under a key, so that a defer whose answer was lost can be repeated. A table of its own:
-- keys outlive their jobs, and who uses none pays nothing. A key is its role's: others' are never met.
CREATE TABLE pljobs.idempotency (
    deferred_by text        NOT NULL,
    key         text        NOT NULL,
    job_id      bigint,                                    -- null only inside the transaction that defers it
    task        text        NOT NULL,
    args_hash   bigint      NOT NULL,                      -- the same key for something else is an error
    deferred_at timestamptz NOT NULL,
    CONSTRAINT idempotency_pkey PRIMARY KEY (deferred_by, key)
) WITH (
    -- Each row is updated once, in the transaction that makes it; then only deleted, in bulk, by prune.
    fillfactor = 50, vacuum_truncate = false,
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000
);
CREATE INDEX idempotency_deferred ON pljobs.idempotency (deferred_at);

-- Its new form has the key as its last parameter; two forms would be one too many for a call to choose from.
-- Whom a DBA had granted the old one by hand is granted the new one. Where an object of somebody's depends on
-- it, this stops, names that object, and changes nothing.
DO $$
DECLARE
    c_was CONSTANT regprocedure := to_regprocedure('pljobs.defer_job(text, jsonb, text, integer, text, text, '
        'timestamptz, timestamptz, interval, interval, text, bigint)');
    v_grantee oid;
    v_detail text;
BEGIN
    IF c_was IS NULL THEN
        RETURN;
    END IF;
    FOR v_grantee IN
        SELECT DISTINCT a.grantee FROM pg_proc AS p, aclexplode(p.proacl) AS a
         WHERE p.oid = c_was AND a.grantee NOT IN (0, p.proowner)
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION pljobs.defer_job(text, jsonb, text, integer, text, text, '
            'timestamptz, timestamptz, interval, interval, text, bigint, text) TO %s', v_grantee::regrole);
    END LOOP;
    EXECUTE format('DROP FUNCTION %s', c_was);
EXCEPTION WHEN dependent_objects_still_exist THEN
    GET STACKED DIAGNOSTICS v_detail = PG_EXCEPTION_DETAIL;
    RAISE EXCEPTION 'pljobs.defer_job gets a parameter, so its old form goes, and other objects need that: %',
        v_detail USING ERRCODE = 'dependent_objects_still_exist',
                       HINT = 'Nothing was changed. Drop them, upgrade, and make them anew.';
END
$$;

$migration$);

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
DROP FUNCTION IF EXISTS pljobs.defer_job(
    text, jsonb, text, integer, text, text, timestamptz, timestamptz, interval, interval, text, bigint);

$migration$);

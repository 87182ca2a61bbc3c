SELECT pljobs._migrate('0005_expand_flow', $migration$

-- What limits queues, the keys within them, and tasks, over all workers. Some rows that people change, read
-- by every fetch.
CREATE TABLE pljobs.throttle (
    scope       text        NOT NULL,                      -- 'queue'; 'key': each key of a queue; 'task'
    name        text        NOT NULL,                      -- of the queue, or of the task
    max_running integer,                                   -- how many run at once
    rate        integer,                                   -- how many start per period, after a burst
    period      interval,
    burst       integer,
    set_by      text        NOT NULL,
    set_at      timestamptz NOT NULL,
    CONSTRAINT throttle_pkey PRIMARY KEY (scope, name),
    CONSTRAINT throttle_scope_known CHECK (scope IN ('queue', 'key', 'task')),
    CONSTRAINT throttle_lets_something_start CHECK (max_running > 0 AND rate > 0 AND burst > 0),
    CONSTRAINT throttle_rate_of_a_period CHECK (num_nulls(rate, period, burst) IN (0, 3))
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 100);

-- What has been used of a rate: a token bucket, as the time at which it is full again. One row for a queue or
-- task, and one for each key that has started a job lately; updated by each fetch of such jobs, in place.
-- set_at is the throttle's: another rate begins with full buckets, and nobody waits for a row.
CREATE TABLE pljobs.bucket (
    scope   text        NOT NULL,
    name    text        NOT NULL,
    key     text        NOT NULL,                          -- '' but for the scope 'key'
    set_at  timestamptz NOT NULL,
    full_at timestamptz NOT NULL,
    CONSTRAINT bucket_pkey PRIMARY KEY (scope, name, key, set_at)
) WITH (
    fillfactor = 50, vacuum_truncate = false, autovacuum_vacuum_cost_delay = 0,
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000
);

-- From here on workers wait: nothing that takes long.
SELECT pljobs._lock_relations('{job}');

-- Jobs of one key take turns with those of the others of their queue; throttled: the run counts for a limit.
ALTER TABLE pljobs.job
    ADD COLUMN fairness_key text COLLATE "C",
    ADD COLUMN throttled boolean;

-- NOT VALID: what keeps to the old rule keeps to the new one, and nobody waits for proof.
ALTER TABLE pljobs.job
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT job_waiting_for_known,
    ADD CONSTRAINT job_waiting_for_known
        CHECK (waiting_for IN ('schedule', 'lock', 'turn', 'limit')) NOT VALID,
    ADD CONSTRAINT job_with_a_key_waits_for_its_turn
        CHECK (fairness_key IS NULL OR status <> 'todo' OR waiting_for IS NOT NULL) NOT VALID,
    ADD CONSTRAINT job_turn_is_a_keys
        CHECK (waiting_for <> 'turn' OR fairness_key IS NOT NULL) NOT VALID;

-- Nothing is in them but for who uses keys and limits.
SELECT pljobs._create_index('job', $$
    CREATE INDEX job_turn ON pljobs.job (queue, (-priority), fairness_key, id)
     WHERE status = 'todo' AND waiting_for = 'turn'$$);
SELECT pljobs._create_index('job', $$
    CREATE INDEX job_limit ON pljobs.job (queue, task, (-priority), id)
     WHERE status = 'todo' AND waiting_for = 'limit'$$);
SELECT pljobs._create_index('job', $$
    CREATE INDEX job_running_by_key ON pljobs.job (queue, (coalesce(fairness_key, '')))
     WHERE status = 'doing' AND throttled$$);
SELECT pljobs._create_index('job', $$
    CREATE INDEX job_running_by_task ON pljobs.job (task) WHERE status = 'doing' AND throttled$$);

-- Its new form has fairness_key as its last parameter.
SELECT pljobs._replace_form(
    'pljobs.defer_job(text, jsonb, text, integer, text, text, timestamptz, timestamptz, interval, interval, '
    'text, bigint, text)',
    'pljobs.defer_job(text, jsonb, text, integer, text, text, timestamptz, timestamptz, interval, interval, '
    'text, bigint, text, text)');

$migration$);

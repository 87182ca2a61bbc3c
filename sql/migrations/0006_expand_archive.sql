SELECT pljobs._migrate('0006_expand_archive', $migration$

-- Finished jobs that a prune with `archive` has moved here: what people read of a job, once it has ended. A
-- partition a month (UTC), job_archive_2026_11, made by the prune that needs it, dropped by drop_archive().
CREATE TABLE pljobs.job_archive (
    id               bigint      NOT NULL,
    worker_id        bigint,
    parent_id        bigint,
    created_at       timestamptz NOT NULL,
    scheduled_at     timestamptz,
    start_by         timestamptz,
    started_at       timestamptz,
    finished_at      timestamptz NOT NULL,
    archived_at      timestamptz NOT NULL,
    progress_at      timestamptz,
    timeout          interval,
    grace            interval,
    priority         integer     NOT NULL,
    attempts         integer     NOT NULL,
    crashes          integer     NOT NULL,
    progress         real,
    status           text        NOT NULL,
    queue            text        NOT NULL,
    task             text        NOT NULL,
    lock             text,
    queueing_lock    text,
    on_cancelled     text,
    fairness_key     text COLLATE "C",
    deferred_by      text        NOT NULL,
    message          text,
    progress_message text,
    args             jsonb       NOT NULL,
    result           jsonb,
    error            text,
    CONSTRAINT job_archive_pkey PRIMARY KEY (id, finished_at)
) PARTITION BY RANGE (finished_at);

-- Its new form has `archive` as its last parameter.
SELECT pljobs._replace_form('pljobs.prune_jobs(interval, text[], text, integer)',
                            'pljobs.prune_jobs(interval, text[], text, integer, boolean)');

$migration$);

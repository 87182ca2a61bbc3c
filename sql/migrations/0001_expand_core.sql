SELECT pljobs._migrate('0001_expand_core', $migration$

-- One table for every state. `todo` rows with `waiting_for` empty run next, by priority then id; the others
-- say what they wait for. The CHECKs tie columns to states, so that no function can leave a half-written one.
CREATE TABLE pljobs.job (
    id            bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    run_id        bigint,                                  -- this execution; set exactly while doing
    last_run_id   bigint,                                  -- that ended by finish_jobs: makes a replay safe
    request_id    bigint,                                  -- the open request for this run
    worker_id     bigint,                                  -- who runs it, or ran it last
    parent_id     bigint,                                  -- the job that deferred it; no foreign key
    created_at    timestamptz NOT NULL,
    scheduled_at  timestamptz,
    start_by      timestamptz,                             -- not started by then: cancelled
    started_at    timestamptz,
    timeout_at    timestamptz,                             -- when this run is asked to stop; then null again
    finished_at   timestamptz,
    timeout       interval,                                -- how long a run may take
    grace         interval,                                -- how long it then has to stop; null: 10 s
    priority      integer     NOT NULL,
    attempts      integer     NOT NULL DEFAULT 0,
    crashes       integer     NOT NULL DEFAULT 0,
    status        text        NOT NULL DEFAULT 'todo',
    waiting_for   text,                                    -- null: can run now
    queue         text        NOT NULL,
    task          text        NOT NULL,
    lock          text,
    queueing_lock text,
    on_cancelled  text,                                    -- the task to defer if it is cancelled or aborted
    deferred_by   text        NOT NULL,
    message       text,                                    -- one line on how the last attempt ended
    args          jsonb       NOT NULL,
    result        jsonb,
    error         text,                                    -- the last attempt's traceback
    CONSTRAINT job_pkey PRIMARY KEY (id),
    CONSTRAINT job_status_known CHECK (
        status IN ('todo', 'doing', 'succeeded', 'failed', 'cancelled', 'aborted')
    ),
    CONSTRAINT job_waiting_for_known CHECK (waiting_for IN ('schedule', 'lock')),
    CONSTRAINT job_waits_only_while_todo CHECK (waiting_for IS NULL OR status = 'todo'),
    CONSTRAINT job_run_exactly_while_doing CHECK ((run_id IS NOT NULL) = (status = 'doing')),
    CONSTRAINT job_worker_while_doing CHECK (worker_id IS NOT NULL OR status <> 'doing'),
    CONSTRAINT job_request_only_while_doing CHECK (request_id IS NULL OR status = 'doing'),
    CONSTRAINT job_timeout_only_while_doing CHECK (timeout_at IS NULL OR status = 'doing'),
    CONSTRAINT job_finished_exactly_at_the_end CHECK ((finished_at IS NULL) = (status IN ('todo', 'doing'))),
    CONSTRAINT job_counts_not_negative CHECK (attempts >= 0 AND crashes >= 0)
) WITH (
    fillfactor = 90,
    -- Every job dies at least twice as a row version: vacuum by count of rows, not by share of a large table,
    -- and at once.
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0.02, autovacuum_analyze_threshold = 10000
);

CREATE INDEX job_ready_by_queue ON pljobs.job (queue, (-priority), id)
    WHERE status = 'todo' AND waiting_for IS NULL;
CREATE INDEX job_ready ON pljobs.job ((-priority), id) WHERE status = 'todo' AND waiting_for IS NULL;
CREATE INDEX job_scheduled ON pljobs.job (scheduled_at) WHERE status = 'todo' AND waiting_for = 'schedule';
CREATE INDEX job_lane ON pljobs.job (lock, (-priority), id) WHERE status = 'todo' AND lock IS NOT NULL;
CREATE UNIQUE INDEX job_one_doing_per_lock ON pljobs.job (lock) WHERE status = 'doing' AND lock IS NOT NULL;
CREATE UNIQUE INDEX job_one_todo_per_queueing_lock ON pljobs.job (queueing_lock)
    WHERE status = 'todo' AND queueing_lock IS NOT NULL;
CREATE INDEX job_doing ON pljobs.job (worker_id) WHERE status = 'doing';
CREATE INDEX job_finished ON pljobs.job (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX job_start_by ON pljobs.job (start_by) WHERE status = 'todo' AND start_by IS NOT NULL;
CREATE INDEX job_timeout ON pljobs.job (timeout_at) WHERE status = 'doing' AND timeout_at IS NOT NULL;
CREATE INDEX job_parent ON pljobs.job (parent_id) WHERE parent_id IS NOT NULL;

-- Names one execution of one job. Gaps are harmless.
CREATE SEQUENCE pljobs.run_id;

-- What a job's own row can't tell: how each earlier attempt ended.
CREATE TABLE pljobs.job_event (
    job_id     bigint      NOT NULL,
    run_id     bigint,
    worker_id  bigint,
    at         timestamptz NOT NULL,
    started_at timestamptz,
    attempt    integer     NOT NULL,
    kind       text        NOT NULL,
    message    text,
    error      text,
    CONSTRAINT job_event_kind_known CHECK (
        kind IN ('retried', 'interrupted', 'given_back', 'rescued', 'failed', 'cancelled', 'aborted')
    )
);
CREATE INDEX job_event_job ON pljobs.job_event (job_id);

-- What a task said last of how far it is. Beside the job, so that a heartbeat which stores it waits for no
-- job's row, and adds nothing to the indexes that fetch walks.
CREATE TABLE pljobs.progress (
    job_id   bigint      NOT NULL,
    run_id   bigint      NOT NULL,
    at       timestamptz NOT NULL,
    fraction real,                                         -- 0 to 1
    message  text,
    CONSTRAINT progress_pkey PRIMARY KEY (job_id),
    CONSTRAINT progress_fraction_of_one CHECK (fraction BETWEEN 0 AND 1)
) WITH (fillfactor = 70);

-- Jobs whose tree was cancelled: nothing that has one of them as its parent starts. No foreign key: a child
-- may be committed when its parent is gone.
CREATE TABLE pljobs.closed_tree (
    job_id    bigint      NOT NULL,
    closed_at timestamptz NOT NULL,
    CONSTRAINT closed_tree_pkey PRIMARY KEY (job_id)
);
CREATE INDEX closed_tree_closed ON pljobs.closed_tree (closed_at);

-- Jobs that were deleted and have a parent and children: what ties these to their tree.
CREATE TABLE pljobs.deleted_parent (
    job_id     bigint      NOT NULL,
    parent_id  bigint      NOT NULL,
    deleted_at timestamptz NOT NULL,
    CONSTRAINT deleted_parent_pkey PRIMARY KEY (job_id)
);
CREATE INDEX deleted_parent_parent ON pljobs.deleted_parent (parent_id);
CREATE INDEX deleted_parent_deleted ON pljobs.deleted_parent (deleted_at);

-- Who asked for what, and what became of it: the audit trail. No foreign key: it outlives the job.
CREATE TABLE pljobs.request (
    id           bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    job_id       bigint,                                   -- null: about a queue
    run_id       bigint,                                   -- which execution; null: the job was not running
    worker_id    bigint,
    requested_at timestamptz NOT NULL,
    delivered_at timestamptz,                              -- when the worker first heard of it
    sql_at       timestamptz,                              -- from when on its SQL is cancelled: level 2
    term_at      timestamptz,                              -- from when on it is terminated: level 3
    kill_at      timestamptz,                              -- from when on it is killed: level 4
    escalated_at timestamptz,                              -- when it reached its level
    resolved_at  timestamptz,
    level        smallint    NOT NULL DEFAULT 0,           -- 0: not delivered, 1: delivered
    kind         text        NOT NULL,
    source       text        NOT NULL DEFAULT 'user',
    force        boolean     NOT NULL DEFAULT false,
    delete_job   boolean     NOT NULL DEFAULT false,
    queue        text        NOT NULL,
    task         text,
    requested_by text        NOT NULL,                     -- the role that called
    actor        text,                                     -- whom the caller says it acted for
    reason       text,
    handling     text,                                     -- what the task does with its abort
    sql_way      text,                                     -- how its SQL was cancelled last, or why not
    resolution   text,
    CONSTRAINT request_pkey PRIMARY KEY (id),
    CONSTRAINT request_kind_known CHECK (
        kind IN ('cancel', 'abort', 'rescind', 'delete', 'retry', 'pause', 'resume')
    ),
    CONSTRAINT request_source_known CHECK (source IN ('user', 'tree', 'deadline')),
    CONSTRAINT request_level_known CHECK (level BETWEEN 0 AND 4),
    CONSTRAINT request_killed_after_terminated CHECK (
        term_at <= kill_at AND (term_at IS NULL) = (kill_at IS NULL)
    ),
    CONSTRAINT request_handling_known CHECK (handling IN ('handling', 'swallowed')),
    CONSTRAINT request_sql_way_known CHECK (
        sql_way IN ('server', 'asked', 'worker', 'none', 'pooled', 'denied', 'busy')
    ),
    CONSTRAINT request_resolution_known CHECK (resolution IN (
        'cancelled', 'deleted', 'expired', 'aborted', 'killed', 'abandoned', 'forced', 'timeout', 'joined',
        'finished_first', 'failed_first', 'worker_lost', 'rescinded', 'requeued', 'paused', 'resumed'
    )),
    CONSTRAINT request_resolved_with_resolution CHECK ((resolved_at IS NULL) = (resolution IS NULL)),
    CONSTRAINT request_only_a_run_waits CHECK (resolved_at IS NOT NULL OR run_id IS NOT NULL),
    CONSTRAINT request_of_a_job_or_queue CHECK ((job_id IS NULL) = (kind IN ('pause', 'resume')))
);
CREATE INDEX request_job ON pljobs.request (job_id);
CREATE INDEX request_resolved ON pljobs.request (resolved_at) WHERE resolved_at IS NOT NULL;
CREATE UNIQUE INDEX request_one_open_per_run ON pljobs.request (run_id) WHERE resolved_at IS NULL;

-- One small row a worker. The lease lives here, never on jobs: a heartbeat is one HOT update and waits for no
-- job's row. Nothing that a heartbeat changes is indexed.
CREATE TABLE pljobs.worker (
    id           bigint      NOT NULL GENERATED BY DEFAULT AS IDENTITY,
    started_at   timestamptz NOT NULL,
    heartbeat_at timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    stopped_at   timestamptz,                              -- null: registered
    tainted_at   timestamptz,                              -- it gave up a job whose code may still run
    lease        interval    NOT NULL,
    loop_lag     interval,
    pid          integer     NOT NULL,
    concurrency  integer     NOT NULL,
    name         text        NOT NULL,
    host         text        NOT NULL,
    queues       text[],                                   -- null: all
    CONSTRAINT worker_pkey PRIMARY KEY (id)
) WITH (fillfactor = 50);

-- Only queues with settings: a queue exists by being named.
CREATE TABLE pljobs.queue (
    name         text        NOT NULL,
    paused_at    timestamptz,
    paused_by    text,
    pause_reason text,
    CONSTRAINT queue_pkey PRIMARY KEY (name)
);

-- The last tick of each periodic task that was deferred.
CREATE TABLE pljobs.periodic (
    task        text        NOT NULL,
    periodic_id text        NOT NULL,
    last_tick   timestamptz NOT NULL,
    -- What that tick deferred; null: a job of its queueing lock was waiting.
    job_id      bigint,
    CONSTRAINT periodic_pkey PRIMARY KEY (task, periodic_id)
);

$migration$);

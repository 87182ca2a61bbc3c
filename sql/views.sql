-- What people read. Columns are only ever added at the end.
DO $$
BEGIN
    PERFORM pljobs._lock_relations();
END
$$;

-- Of which jobs the reader of a view sees the rows, and of which all that is in them. In a view current_user
-- is the role that reads.
CREATE OR REPLACE VIEW pljobs._scope WITH (security_barrier) AS
WITH role AS (
    SELECT coalesce(pg_has_role(current_user, n.nspowner, 'MEMBER')
                    OR pg_has_role(current_user, to_regrole('pljobs_operator'), 'USAGE'), false)
           AS is_operator,
           coalesce(pg_has_role(current_user, to_regrole('pljobs_reader'), 'USAGE'), false)
           OR coalesce(pg_has_role(current_user, to_regrole('pljobs_canceller'), 'USAGE'), false) AS is_reader
      FROM pg_namespace AS n WHERE n.nspname = 'pljobs'
)
SELECT (SELECT role.is_operator OR role.is_reader FROM role) AS every_job,
       (SELECT role.is_operator FROM role) AS everything,
       ARRAY(WITH RECURSIVE own AS (
                 SELECT to_regrole(quote_ident(current_user))::oid AS role
                 UNION
                 SELECT m.roleid FROM own JOIN pg_auth_members AS m ON m.member = own.role
             )
             SELECT pg_get_userbyid(own.role)::text FROM own) AS own_roles;
COMMENT ON VIEW pljobs._scope IS
    'What the reader of the other views sees: of every job a row, and everything in it, or of its own.';

CREATE OR REPLACE VIEW pljobs.jobs WITH (security_barrier) AS
SELECT j.id, j.status, j.waiting_for, j.queue, j.task,
       CASE WHEN s.everything OR j.deferred_by = ANY (s.own_roles) THEN j.args END AS args,
       j.priority, j.lock, j.queueing_lock,
       j.attempts, j.crashes, j.created_at, j.scheduled_at, j.started_at, j.finished_at,
       j.worker_id, j.run_id,
       j.request_id IS NOT NULL AS abort_requested, r.requested_at AS abort_requested_at,
       CASE WHEN s.everything OR j.deferred_by = ANY (s.own_roles) THEN j.message END AS message,
       CASE WHEN s.everything OR j.deferred_by = ANY (s.own_roles) THEN j.error END AS error,
       CASE WHEN s.everything OR j.deferred_by = ANY (s.own_roles) THEN j.result END AS result,
       j.deferred_by,
       j.parent_id, j.start_by, j.timeout, j.timeout_at, j.grace, j.on_cancelled,
       p.fraction AS progress,
       CASE WHEN s.everything OR j.deferred_by = ANY (s.own_roles) THEN p.message END AS progress_message,
       p.at AS progress_at,
       j.fairness_key
  FROM pljobs._scope AS s
 CROSS JOIN pljobs.job AS j
  LEFT JOIN pljobs.request AS r ON r.id = j.request_id
  LEFT JOIN pljobs.progress AS p ON p.job_id = j.id
 WHERE s.every_job OR j.deferred_by = ANY (s.own_roles);
COMMENT ON VIEW pljobs.jobs IS
    'Jobs: to readers, cancellers and operators every one, to others those that a role of theirs has '
    'deferred. args, result, error, message and progress_message are null where the job is not the reader''s '
    'own, but for operators. todo with waiting_for empty runs next, by priority (higher first), then id; '
    'else it says what the job waits for: its schedule, its lock, its key''s turn, its task''s limit. '
    'progress: what its last run said of how far it was, from 0 to 1.';

CREATE OR REPLACE VIEW pljobs.archive WITH (security_barrier) AS
SELECT a.id, a.status, a.queue, a.task,
       CASE WHEN s.everything OR a.deferred_by = ANY (s.own_roles) THEN a.args END AS args,
       a.priority, a.lock, a.queueing_lock,
       a.attempts, a.crashes, a.created_at, a.scheduled_at, a.started_at, a.finished_at, a.worker_id,
       CASE WHEN s.everything OR a.deferred_by = ANY (s.own_roles) THEN a.message END AS message,
       CASE WHEN s.everything OR a.deferred_by = ANY (s.own_roles) THEN a.error END AS error,
       CASE WHEN s.everything OR a.deferred_by = ANY (s.own_roles) THEN a.result END AS result,
       a.deferred_by, a.parent_id, a.start_by, a.timeout, a.grace, a.on_cancelled, a.progress,
       CASE WHEN s.everything OR a.deferred_by = ANY (s.own_roles) THEN a.progress_message END
       AS progress_message,
       a.progress_at, a.archived_at, a.fairness_key
  FROM pljobs._scope AS s
 CROSS JOIN pljobs.job_archive AS a
 WHERE s.every_job OR a.deferred_by = ANY (s.own_roles);
COMMENT ON VIEW pljobs.archive IS
    'Finished jobs that a prune with archive => true has moved out of pljobs.jobs: the same columns, but for '
    'those that only unfinished jobs have, and archived_at; who sees what is the same, too. Ask with '
    'finished_at, and it reads those months alone; with an id, for that job.';

CREATE OR REPLACE VIEW pljobs.workers WITH (security_barrier) AS
SELECT w.id, w.name, w.host, w.pid,
       CASE WHEN w.stopped_at IS NOT NULL THEN 'stopped'
            WHEN w.expires_at <= clock_timestamp() THEN 'stalled'
            ELSE 'alive' END AS state,
       (SELECT count(*) FROM pljobs.job AS j WHERE j.worker_id = w.id AND j.status = 'doing') AS running,
       w.queues, w.concurrency, w.started_at, w.heartbeat_at, w.expires_at, w.stopped_at, w.loop_lag,
       w.tainted_at, w.contract, w.driver, w.registered_by
  FROM pljobs.worker AS w;
COMMENT ON VIEW pljobs.workers IS
    'Every worker: alive; stalled (its lease ran out, its jobs are about to be rescued); stopped. '
    'loop_lag: how late its event loop runs. tainted_at: since when it gets no more jobs, for it gave one up '
    'whose code may still run. contract, driver, registered_by: what it speaks, what it is, whose role.';

CREATE OR REPLACE VIEW pljobs.queues WITH (security_barrier) AS
SELECT coalesce(c.queue, q.name) AS queue,
       q.paused_at IS NOT NULL AS paused, q.paused_at, q.paused_by, q.pause_reason,
       coalesce(c.todo, 0) AS todo, coalesce(c.doing, 0) AS doing,
       coalesce(c.succeeded, 0) AS succeeded, coalesce(c.failed, 0) AS failed,
       coalesce(c.cancelled, 0) AS cancelled, coalesce(c.aborted, 0) AS aborted
  FROM (SELECT j.queue,
               count(*) FILTER (WHERE j.status = 'todo') AS todo,
               count(*) FILTER (WHERE j.status = 'doing') AS doing,
               count(*) FILTER (WHERE j.status = 'succeeded') AS succeeded,
               count(*) FILTER (WHERE j.status = 'failed') AS failed,
               count(*) FILTER (WHERE j.status = 'cancelled') AS cancelled,
               count(*) FILTER (WHERE j.status = 'aborted') AS aborted
          FROM pljobs.job AS j GROUP BY j.queue) AS c
  FULL JOIN pljobs.queue AS q ON q.name = c.queue;
COMMENT ON VIEW pljobs.queues
    IS 'Every queue that has jobs or settings, with the number of its jobs in each status.';

CREATE OR REPLACE VIEW pljobs.throttles WITH (security_barrier) AS
SELECT t.scope, t.name, t.max_running,
       CASE t.scope
            WHEN 'queue' THEN (SELECT count(*) FROM pljobs.job AS j
                                WHERE j.status = 'doing' AND j.throttled AND j.queue = t.name)
            WHEN 'task' THEN (SELECT count(*) FROM pljobs.job AS j
                               WHERE j.status = 'doing' AND j.throttled AND j.task = t.name)
       END AS running,
       t.rate, t.period, t.burst, t.set_by, t.set_at
  FROM pljobs.throttle AS t WHERE num_nonnulls(t.max_running, t.rate) > 0;
COMMENT ON VIEW pljobs.throttles IS
    'How many jobs of a queue, of each fairness key of a queue, or of a task may run at once, and start per '
    'period, over all workers; and how many run. throttle_queue() and throttle_task() set them.';

CREATE OR REPLACE VIEW pljobs.requests WITH (security_barrier) AS
SELECT r.id, r.job_id, r.run_id, r.worker_id, r.task, r.queue, r.kind, r.force, r.delete_job,
       r.requested_by, r.actor, r.reason, r.requested_at, r.delivered_at, r.handling,
       r.resolved_at, r.resolution, r.source, r.level, r.escalated_at, r.sql_at, r.term_at, r.kill_at,
       r.sql_way
  FROM pljobs._scope AS s
 CROSS JOIN pljobs.request AS r
 WHERE s.every_job OR r.requested_by = ANY (s.own_roles)
    OR EXISTS (SELECT FROM pljobs.job AS j WHERE j.id = r.job_id AND j.deferred_by = ANY (s.own_roles));
COMMENT ON VIEW pljobs.requests IS
    'Who asked for what, why, when; when the worker heard of it, what the task does with it, how far it was '
    'taken (level 1: told, 2: its SQL cancelled, 3: terminated, 4: killed), and what became of it. Outlives '
    'the job. To who sees not every job: the requests about its own, and those that it made.';

CREATE OR REPLACE VIEW pljobs.stalled_jobs WITH (security_barrier) AS
SELECT j.id, j.status, j.waiting_for, j.queue, j.task, j.args, j.priority, j.lock, j.queueing_lock,
       j.attempts, j.crashes, j.created_at, j.scheduled_at, j.started_at, j.finished_at,
       j.worker_id, j.run_id, j.abort_requested, j.abort_requested_at,
       j.message, j.error, j.result, j.deferred_by, j.parent_id, j.start_by, j.timeout, j.timeout_at, j.grace,
       j.on_cancelled, j.progress, j.progress_message, j.progress_at, j.fairness_key
  FROM pljobs.jobs AS j
 WHERE j.status = 'doing' AND NOT EXISTS (
       SELECT FROM pljobs.worker AS w
        WHERE w.id = j.worker_id AND w.stopped_at IS NULL AND w.expires_at > clock_timestamp());
COMMENT ON VIEW pljobs.stalled_jobs
    IS 'Running jobs whose worker''s lease ran out: rescue_jobs() takes them.';

-- Constants have names in every branch: else 14, and a dump's restored view, show another view than this one.
CREATE OR REPLACE VIEW pljobs.history WITH (security_barrier) AS
WITH entry AS (
    SELECT j.id AS job_id, j.created_at AS at, 0 AS place, 'deferred' AS event, NULL::integer AS attempt,
           NULL::bigint AS worker_id, j.deferred_by AS who, NULL::text AS detail, false AS is_secret
      FROM pljobs.job AS j
    UNION ALL
    SELECT e.job_id, e.started_at, 1, 'started' AS event, e.attempt, e.worker_id, NULL AS who, NULL AS detail,
           false AS is_secret
      FROM pljobs.job_event AS e WHERE e.started_at IS NOT NULL
    UNION ALL
    SELECT e.job_id, e.at, 3, e.kind, e.attempt, e.worker_id, NULL AS who,
           concat_ws(E'\n', e.message, e.error), true AS is_secret
      FROM pljobs.job_event AS e WHERE e.kind <> 'cancelled'
    UNION ALL
    SELECT j.id, j.started_at, 1, 'started' AS event, j.attempts, j.worker_id, NULL AS who, NULL AS detail,
           false AS is_secret
      FROM pljobs.job AS j WHERE j.started_at IS NOT NULL
    UNION ALL
    SELECT j.id, j.finished_at, 3, j.status, j.attempts, j.worker_id, NULL AS who,
           concat_ws(E'\n', j.message, j.error), true AS is_secret
      FROM pljobs.job AS j WHERE num_nonnulls(j.finished_at) = 1 AND j.status <> 'cancelled'
    UNION ALL
    SELECT r.job_id, r.requested_at, 2,
           CASE r.kind WHEN 'abort' THEN 'abort requested' ELSE r.resolution END, NULL AS attempt,
           r.worker_id, concat_ws(' for ', r.requested_by, r.actor), r.reason, false AS is_secret
      FROM pljobs.request AS r WHERE r.job_id IS NOT NULL
    UNION ALL
    SELECT r.job_id, r.delivered_at, 2, 'abort delivered' AS event, NULL AS attempt, r.worker_id, NULL AS who,
           r.handling, false AS is_secret
      FROM pljobs.request AS r WHERE r.delivered_at IS NOT NULL
    UNION ALL
    SELECT r.job_id, r.escalated_at, 2, 'abort escalated' AS event, NULL AS attempt, r.worker_id, NULL AS who,
           concat_ws(', ', CASE r.level WHEN 2 THEN 'its SQL' WHEN 3 THEN 'terminate' ELSE 'kill' END,
                     'SQL: ' || r.sql_way), false AS is_secret
      FROM pljobs.request AS r WHERE r.level >= 2
    UNION ALL
    SELECT r.job_id, r.resolved_at, 2, 'abort resolved' AS event, NULL AS attempt, r.worker_id, NULL AS who,
           r.resolution, false AS is_secret
      FROM pljobs.request AS r
     WHERE r.kind = 'abort' AND r.resolved_at IS NOT NULL AND r.resolution <> 'joined'
)
SELECT e.job_id, e.at, e.event, e.attempt, e.worker_id,
       CASE WHEN w.id IS NOT NULL THEN format('%s@%s:%s', w.name, w.host, w.pid) END AS worker,
       e.who,
       CASE WHEN NOT e.is_secret OR s.everything OR o.is_own THEN nullif(e.detail, '') END AS detail
  FROM pljobs._scope AS s
 CROSS JOIN entry AS e
  LEFT JOIN pljobs.worker AS w ON w.id = e.worker_id
  LEFT JOIN LATERAL (SELECT j.deferred_by = ANY (s.own_roles) AS is_own
                       FROM pljobs.job AS j WHERE j.id = e.job_id) AS o ON true
 WHERE s.every_job OR o.is_own
 ORDER BY e.job_id, e.at, e.place;
COMMENT ON VIEW pljobs.history IS
    'One job''s life, in order: who deferred, cancelled, retried it, when and why; each attempt''s start, '
    'end, worker and error (not of others'' jobs, but for operators). Ask with WHERE job_id = 33.';

CREATE OR REPLACE VIEW pljobs.stuck_aborts WITH (security_barrier) AS
SELECT r.job_id, clock_timestamp() - r.requested_at AS asked_ago, r.task, r.queue, r.requested_by, r.actor,
       r.reason, r.requested_at, r.delivered_at, r.handling, r.run_id, r.worker_id,
       CASE WHEN w.id IS NOT NULL THEN format('%s@%s:%s', w.name, w.host, w.pid) END AS worker,
       CASE WHEN w.id IS NULL OR w.stopped_at IS NOT NULL OR w.expires_at <= clock_timestamp()
                 THEN 'its worker is lost: rescue_jobs() ends the job'
            WHEN r.delivered_at IS NULL AND clock_timestamp() - w.heartbeat_at > 0.4 * w.lease
                 THEN format('its worker was last seen %s ago: it is suspended, frozen (code that never lets '
                             'go of the process) or cut off; its lease ends in %s, then the job is aborted; '
                             'or: kill -9 %s on %s', date_trunc('second', clock_timestamp() - w.heartbeat_at),
                             date_trunc('second', w.expires_at - clock_timestamp()), w.pid, w.host)
            WHEN r.delivered_at IS NULL THEN 'its worker will hear of it within its polling interval'
            WHEN r.level = 4 THEN 'its worker kills it, or gives it up'
            WHEN r.kill_at IS NOT NULL THEN concat_ws('; ',
                 CASE WHEN r.level < 2 THEN format('its SQL is cancelled at %s', r.sql_at) END,
                 CASE WHEN r.level < 3 THEN format('it is terminated at %s', r.term_at) END,
                 format('it is killed at %s', r.kill_at))
            WHEN r.handling = 'swallowed'
                 THEN 'the task ignored it, and nothing more happens by itself; to stop it by force, ask '
                      'again with grace => ''0'''
            ELSE 'the task was told, and may be cleaning up; to give it a deadline, ask again with '
                 'grace => ''10 s'''
       END AS next,
       r.source, r.level, r.escalated_at, r.sql_way
  FROM pljobs._scope AS s
 CROSS JOIN pljobs.request AS r
  LEFT JOIN pljobs.worker AS w ON w.id = r.worker_id
 WHERE r.resolved_at IS NULL
   AND (s.every_job OR r.requested_by = ANY (s.own_roles)
        OR EXISTS (SELECT FROM pljobs.job AS j WHERE j.id = r.job_id AND j.deferred_by = ANY (s.own_roles)));
COMMENT ON VIEW pljobs.stuck_aborts IS
    'Jobs that were asked to abort and still run: since when, where, at which level, what the task does '
    'about it, and what would be next.';

CREATE OR REPLACE VIEW pljobs.queue_limits WITH (security_barrier) AS
SELECT l.role, l.verb, l.queues, to_regrole(quote_ident(l.role)) IS NOT NULL AS role_exists
  FROM pljobs.queue_limit AS l;
COMMENT ON VIEW pljobs.queue_limits
    IS 'Roles that may defer to, or fetch from, some queues only: see limit_queues().';

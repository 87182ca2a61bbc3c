-- What to look at when something is slow, stuck or about to be: the view pljobs.health, a row for each
-- finding, and an 'ok' row for each item without any. Cheap: catalogues, statistics, and walks along partial
-- indexes that read a few rows of each queue; whatever the statistics say, no table of jobs is scanned.
--
-- A view's tables are read with its owner's rights, its functions run with the caller's: who may not see the
-- sessions of others (pg_read_all_stats) is told that these were not looked at. What a session runs is never
-- shown. No function of pljobs is called, so that SELECT on the view and USAGE on the schema are enough.

CREATE OR REPLACE VIEW pljobs._health_now WITH (security_barrier) AS
SELECT -- A standby that lags shows what was so a while ago: leases that ended since have not ended there.
       CASE WHEN NOT pg_is_in_recovery() OR pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()
                 THEN clock_timestamp()
            ELSE coalesce(pg_last_xact_replay_timestamp(), clock_timestamp()) END AS at,
       pg_is_in_recovery() AS is_standby,
       pg_has_role('pg_read_all_stats', 'USAGE') AS sees_sessions,
       least(coalesce(substring(current_setting('pljobs.health_patience', true),
                                '^[0-9]*\.?[0-9]+$')::double precision, 1), 1000) AS patience;
COMMENT ON VIEW pljobs._health_now IS
    'For pljobs.health: what time it is in this database, what the caller sees, and how patient to be.';

CREATE OR REPLACE VIEW pljobs._health_sessions WITH (security_barrier) AS
WITH now AS MATERIALIZED (
    SELECT n.at, n.sees_sessions, n.patience FROM pljobs._health_now AS n
), session AS MATERIALIZED (
    SELECT a.pid, a.datid, a.datname, a.state, a.backend_type, a.wait_event, a.xact_start, a.state_change,
           greatest(age(a.backend_xmin), age(a.backend_xid)) AS xid_age,
           coalesce(a.datname = current_database(), false) AS is_here,
           coalesce(a.query LIKE '%pljobs.heartbeat_v1%', false) AS beats,
           concat_ws(', ', a.usename, nullif(a.application_name, ''),
                     'at ' || coalesce(a.client_hostname, host(a.client_addr)), a.state) AS who
      FROM pg_catalog.pg_stat_activity AS a
     WHERE a.pid <> pg_backend_pid()
), lock AS MATERIALIZED (
    SELECT l.pid, l.granted, l.mode, l.waitstart, l.locktype, c.relname
      FROM pg_catalog.pg_locks AS l
      LEFT JOIN pg_catalog.pg_class AS c
        ON c.oid = l.relation AND c.relnamespace = 'pljobs'::regnamespace AND c.relkind = 'r'
       AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database())
     WHERE l.pid <> pg_backend_pid() AND (c.oid IS NOT NULL OR NOT l.granted)
)
-- Vacuum keeps what the oldest of these may still see, and every fetch walks over it.
SELECT 'held_snapshots' AS item,
       CASE WHEN h.held_for > n.patience * interval '12 h' AND s.xid_age >= 1000000 THEN 'critical'
            WHEN h.held_for > n.patience * interval '1 h' AND s.xid_age >= 10000 THEN 'warning'
            ELSE 'notice' END AS severity,
       'pid ' || s.pid AS subject,
       format('%s: holds a snapshot for %s, %s transactions back', s.who, date_trunc('second', h.held_for),
              s.xid_age) AS detail,
       CASE WHEN s.state = 'active' THEN format('let it end, or: SELECT pg_cancel_backend(%s);', s.pid)
            ELSE format('COMMIT or ROLLBACK there, or: SELECT pg_terminate_backend(%s);', s.pid) END AS action
  FROM now AS n
 CROSS JOIN session AS s
 CROSS JOIN LATERAL (SELECT n.at - s.xact_start AS held_for) AS h
 WHERE s.xid_age IS NOT NULL AND s.is_here AND h.held_for > n.patience * interval '5 min'
   AND s.backend_type NOT IN ('autovacuum worker', 'parallel worker')
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_progress_vacuum AS v WHERE v.pid = s.pid)
UNION ALL
SELECT 'held_snapshots',
       CASE WHEN h.held_for > n.patience * interval '1 h' THEN 'critical' ELSE 'warning' END,
       'prepared transaction ' || quote_literal(p.gid),
       format('of %s: prepared %s ago, %s transactions back; it keeps its locks, too', p.owner,
              date_trunc('second', h.held_for), age(p.transaction)),
       format('ask whose it is; then COMMIT PREPARED %1$s; or ROLLBACK PREPARED %1$s;', quote_literal(p.gid))
  FROM now AS n
 CROSS JOIN pg_catalog.pg_prepared_xacts AS p
 CROSS JOIN LATERAL (SELECT n.at - p.prepared AS held_for) AS h
 WHERE p.database = current_database() AND h.held_for > n.patience * interval '5 min'
UNION ALL
SELECT 'held_snapshots',
       CASE WHEN age(s.xmin) >= n.patience * 100000000 THEN 'critical'
            WHEN age(s.xmin) >= n.patience * CASE WHEN s.active THEN 10000000 ELSE 1000000 END THEN 'warning'
            ELSE 'notice' END,
       'replication slot ' || s.slot_name,
       CASE WHEN s.active
            THEN format('its standby (pid %s) runs a query that needs what was %s transactions ago',
                        s.active_pid, age(s.xmin))
            ELSE format('used by nobody, and keeps what was %s transactions ago', age(s.xmin)) END,
       CASE WHEN s.active THEN 'end the long query on that standby, or set hot_standby_feedback = off there'
            ELSE format('bring its standby back, or: SELECT pg_drop_replication_slot(%L);', s.slot_name) END
  FROM now AS n
 CROSS JOIN pg_catalog.pg_replication_slots AS s
 WHERE age(s.xmin) >= n.patience * CASE WHEN s.active THEN 1000000 ELSE 10000 END
UNION ALL
-- A standby without a slot.
SELECT 'held_snapshots',
       CASE WHEN s.xid_age >= n.patience * 100000000 THEN 'critical'
            WHEN s.xid_age >= n.patience * 10000000 THEN 'warning' ELSE 'notice' END,
       'standby, pid ' || s.pid,
       format('%s: runs a query that needs what was %s transactions ago', s.who, s.xid_age),
       'end the long query on that standby, or set hot_standby_feedback = off there'
  FROM now AS n
 CROSS JOIN session AS s
 WHERE s.datid IS NULL AND s.backend_type = 'walsender' AND s.xid_age >= n.patience * 1000000
UNION ALL
-- The queue is the whole cluster's: whoever listens, in whichever database, and is behind, keeps it.
SELECT 'notification_queue',
       CASE WHEN u.used >= 0.5 THEN 'critical' WHEN u.used >= 0.1 THEN 'warning' ELSE 'notice' END,
       round(100 * u.used) || ' % full',
       'when it is full, nothing that notifies can commit; kept, perhaps, by '
           || coalesce((SELECT string_agg(o.said, '; ')
                          FROM (SELECT format('pid %s (%s)', s.pid, concat_ws(', ', s.datname, s.who)) AS said
                                  FROM session AS s
                                 WHERE s.xact_start < n.at - n.patience * interval '10 s'
                                    OR s.state = 'idle' AND s.wait_event = 'ClientWrite'
                                 ORDER BY s.xact_start NULLS LAST LIMIT 3) AS o),
                       'somebody who can''t be seen'),
       'end the oldest transaction of a session that listens: SELECT pg_terminate_backend(pid);'
  FROM now AS n
 CROSS JOIN (SELECT pg_notification_queue_usage()::numeric AS used) AS u
 WHERE u.used >= 0.01
UNION ALL
-- What an idle session writes to its client can only be notifications; or one that has been answering a
-- heartbeat, which is short, and is not idle before it has written those that have come meanwhile.
SELECT 'listeners',
       CASE WHEN s.xact_start < n.at - n.patience * interval '10 s' OR pg_notification_queue_usage() >= 0.01
            THEN 'warning' ELSE 'notice' END,
       'pid ' || s.pid,
       format('%s: doesn''t read its notifications%s', s.who,
              ', for ' || date_trunc('second', n.at - s.xact_start)),
       format('is that process suspended? Else: SELECT pg_terminate_backend(%s); a worker reconnects', s.pid)
  FROM now AS n
 CROSS JOIN session AS s
 WHERE s.is_here AND (s.state = 'idle' OR s.beats) AND s.wait_event = 'ClientWrite'
   AND coalesce(s.xact_start < n.at - n.patience * interval '1 s', true)
UNION ALL
SELECT 'open_transactions',
       CASE WHEN h.idle_for > n.patience * interval '5 min' THEN 'warning' ELSE 'notice' END,
       'pid ' || s.pid,
       format('%s, for %s: holds rows of %s, whose jobs can''t go on', s.who,
              date_trunc('second', h.idle_for), t.names),
       format('COMMIT or ROLLBACK there, or: SELECT pg_terminate_backend(%s);', s.pid)
  FROM now AS n
 CROSS JOIN session AS s
 CROSS JOIN LATERAL (SELECT n.at - s.state_change AS idle_for) AS h
 CROSS JOIN LATERAL (
       SELECT string_agg(DISTINCT 'pljobs.' || l.relname, ', ') AS names FROM lock AS l
        WHERE l.pid = s.pid AND l.granted AND l.relname IS NOT NULL AND l.mode <> 'AccessShareLock') AS t
 WHERE s.is_here AND s.state IN ('idle in transaction', 'idle in transaction (aborted)')
   AND h.idle_for > n.patience * interval '1 min' AND t.names IS NOT NULL
UNION ALL
-- Calls of workers never wait for long. virtualxid: CREATE INDEX CONCURRENTLY, which keeps nobody waiting.
(SELECT 'blocked_sessions',
        CASE WHEN w.waitstart < n.at - n.patience * interval '2 min' THEN 'critical' ELSE 'warning' END,
        format('pid %s%s', w.pid, ' and ' || nullif(count(*) OVER () - 1, 0) || ' more'),
        format('%s: waits for %s (%s%s) on %s', s.who, date_trunc('second', n.at - w.waitstart), w.mode,
               ' on pljobs.' || w.relname,
               replace('pid ' || array_to_string(b.pids, ', '), 'pid 0', 'a prepared transaction')),
        CASE WHEN b.pids[1] = 0 THEN 'SELECT * FROM pg_prepared_xacts; then COMMIT or ROLLBACK PREPARED'
             ELSE format('let that end (pg_stat_activity says what it is), or: '
                         'SELECT pg_terminate_backend(%s);', b.pids[1]) END
   FROM now AS n
  CROSS JOIN lock AS w
  CROSS JOIN LATERAL (SELECT pg_blocking_pids(w.pid) AS pids OFFSET 0) AS b
   LEFT JOIN session AS s ON s.pid = w.pid
  WHERE NOT w.granted AND w.locktype <> 'virtualxid' AND w.waitstart < n.at - n.patience * interval '10 s'
    AND EXISTS (SELECT FROM lock AS l WHERE l.pid = w.pid AND l.relname IS NOT NULL)
  ORDER BY w.waitstart LIMIT 1)
UNION ALL
SELECT 'connections',
       CASE WHEN c.used >= 0.97 * c.free THEN 'critical' WHEN c.used >= 0.9 * c.free THEN 'warning'
            ELSE 'notice' END,
       format('%s of %s', c.used, c.free),
       'connections are used, but for the reserved ones; without one, workers and applications wait',
       'close what is idle (pg_stat_activity), lower max_size of the pools, or raise max_connections'
  FROM (SELECT current_setting('max_connections')::integer
                   - current_setting('superuser_reserved_connections')::integer
                   - coalesce(current_setting('reserved_connections', true)::integer, 0) AS free,
               (SELECT count(*) FROM session AS s
                 WHERE s.datid IS NOT NULL AND coalesce(s.backend_type = 'client backend', true)) + 1 AS used
       ) AS c
 WHERE c.used >= 0.8 * c.free
UNION ALL
SELECT i.item, 'notice', current_user::text, 'not looked at: others'' sessions are hidden from this role',
       format('GRANT pg_read_all_stats TO %I;', current_user)
  FROM now AS n
 CROSS JOIN unnest('{held_snapshots,listeners,open_transactions}'::text[]) AS i(item)
 WHERE NOT n.sees_sessions;
COMMENT ON VIEW pljobs._health_sessions IS 'For pljobs.health: findings about sessions and what they hold.';

CREATE OR REPLACE VIEW pljobs._health_storage WITH (security_barrier) AS
WITH hot AS MATERIALIZED (
    -- With their TOAST tables, which are vacuumed by themselves.
    SELECT c.oid, m.oid AS main_oid, m.relname, c.relpages::bigint AS pages, c.relfrozenxid, c.relminmxid,
           'pljobs.' || m.relname || CASE WHEN c.oid <> m.oid THEN ' (TOAST)' ELSE '' END AS label,
           greatest(c.reltuples, 0)::bigint AS live_rows, pg_stat_get_dead_tuples(c.oid) AS dead,
           pg_stat_get_last_autovacuum_time(c.oid) AS vacuumed_at, o.is_vacuumed, h.many_dead, h.many_bytes,
           coalesce(o.threshold, current_setting('autovacuum_vacuum_threshold')::double precision)
               + coalesce(o.scale, current_setting('autovacuum_vacuum_scale_factor')::double precision)
               * greatest(c.reltuples, 0) AS due_at_rows
      FROM (VALUES ('job', 1000000, 1073741824), ('request', 1000000, 1073741824),
                   ('job_event', 1000000, 1073741824), ('closed_tree', 1000000, 1073741824),
                   ('deleted_parent', 1000000, 1073741824), ('idempotency', 1000000, 1073741824),
                   ('progress', 100000, 67108864), ('bucket', 100000, 67108864),
                   ('worker', 100000, 67108864), ('queue', 10000, 67108864), ('periodic', 10000, 67108864)
           ) AS h(name, many_dead, many_bytes)
      JOIN pg_catalog.pg_class AS m ON m.relname = h.name AND m.relnamespace = 'pljobs'::regnamespace
      JOIN pg_catalog.pg_class AS c ON c.oid IN (m.oid, m.reltoastrelid)
     CROSS JOIN LATERAL (
           SELECT max(r.option_value::double precision)
                      FILTER (WHERE r.option_name = 'autovacuum_vacuum_threshold') AS threshold,
                  max(r.option_value::double precision)
                      FILTER (WHERE r.option_name = 'autovacuum_vacuum_scale_factor') AS scale,
                  coalesce(bool_and(r.option_value::boolean)
                               FILTER (WHERE r.option_name = 'autovacuum_enabled'), true) AS is_vacuumed
             FROM pg_options_to_table(coalesce(c.reloptions, m.reloptions)) AS r) AS o
), page AS (
    SELECT current_setting('block_size')::bigint AS bytes
)
SELECT 'dead_tuples' AS item,
       CASE WHEN t.dead >= 10 * d.many THEN 'critical' ELSE 'warning' END AS severity,
       t.label AS subject,
       format('%s dead rows beside %s live ones; autovacuum, due from %s on, %s%s', t.dead, t.live_rows,
              round(t.due_at_rows),
              coalesce('was last done ' || date_trunc('second', clock_timestamp() - t.vacuumed_at) || ' ago',
                       'was never done'),
              (SELECT max('; a vacuum is at work') FROM pg_catalog.pg_stat_progress_vacuum AS v
                WHERE v.relid = t.oid)) AS detail,
       format('see held_snapshots first; then VACUUM pljobs.%I; if it comes back: more '
              'autovacuum_max_workers, a shorter autovacuum_naptime', t.relname) AS action
  FROM hot AS t
 CROSS JOIN LATERAL (SELECT greatest(t.many_dead, 10 * t.due_at_rows) AS many) AS d
 WHERE t.dead >= d.many
UNION ALL
-- A row takes a quarter of a page at most: what is larger lies in TOAST. Who may read the table's statistics
-- gets a closer estimate.
SELECT 'bloat', 'notice', t.label,
       format('%s for %s rows, which need %s or so', pg_size_pretty(t.pages * p.bytes), t.live_rows,
              pg_size_pretty(w.needed)),
       format('new rows use that space again; to give it back: VACUUM FULL pljobs.%I; which locks it, or '
              'pg_repack', t.relname)
  FROM hot AS t
 CROSS JOIN page AS p
 CROSS JOIN LATERAL (
       SELECT sum(s.avg_width * (1 - s.null_frac)) AS bytes FROM pg_catalog.pg_stats AS s
        WHERE s.schemaname = 'pljobs' AND s.tablename = t.relname AND NOT s.inherited AND t.oid = t.main_oid
       ) AS r
 CROSS JOIN LATERAL (
       SELECT (1.2 * t.live_rows * (28 + least(p.bytes / 4, coalesce(r.bytes, p.bytes / 4))))::bigint
              AS needed) AS w
 WHERE t.pages * p.bytes - w.needed >= t.many_bytes AND t.pages * p.bytes >= 4 * w.needed
UNION ALL
-- 100 bytes for an entry: names and locks may be longer, and seldom are.
SELECT 'bloat', 'notice', 'pljobs.' || c.relname,
       format('%s for %s entries', pg_size_pretty(c.relpages * p.bytes), greatest(c.reltuples, 0)::bigint),
       format('REINDEX INDEX CONCURRENTLY pljobs.%I;', c.relname)
  FROM hot AS t
 CROSS JOIN page AS p
  JOIN pg_catalog.pg_index AS i ON i.indrelid = t.oid
  JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
 WHERE t.oid = t.main_oid AND c.relpages * p.bytes >= t.many_bytes / 4
   AND c.relpages * p.bytes >= 4 * 100 * greatest(c.reltuples, 0)
UNION ALL
SELECT 'autovacuum', CASE t.relname WHEN 'job' THEN 'critical' ELSE 'warning' END, min(t.label),
       'autovacuum is switched off for this table: fetches get slower and slower',
       format('ALTER TABLE pljobs.%I RESET (autovacuum_enabled, toast.autovacuum_enabled);', t.relname)
  FROM hot AS t WHERE NOT t.is_vacuumed
 GROUP BY t.relname
UNION ALL
SELECT 'autovacuum', 'critical', s.name || ' = off', 'nothing is vacuumed: fetches get slower and slower',
       format('ALTER SYSTEM SET %s = on; SELECT pg_reload_conf();', s.name)
  FROM unnest('{autovacuum,track_counts}'::text[]) AS s(name)
 WHERE NOT current_setting(s.name)::boolean
UNION ALL
(SELECT 'wraparound',
        CASE WHEN greatest(w.xids, w.multixacts) >= 1500000000 THEN 'critical' ELSE 'warning' END, w.name,
        format('its oldest transaction is %s back, its oldest multixact %s; at some 2,000,000,000 the server '
               'takes no more writes', w.xids, w.multixacts),
        'see held_snapshots first; then VACUUM FREEZE in that database; and see why autovacuum does not'
   FROM (SELECT t.label AS name, age(t.relfrozenxid) AS xids, mxid_age(t.relminmxid) AS multixacts
           FROM hot AS t
         UNION ALL
         SELECT 'database ' || d.datname, age(d.datfrozenxid), mxid_age(d.datminmxid)
           FROM pg_catalog.pg_database AS d) AS w
  WHERE w.xids >= least(2 * current_setting('autovacuum_freeze_max_age')::bigint, 1200000000)
     OR w.multixacts >= least(2 * current_setting('autovacuum_multixact_freeze_max_age')::bigint, 1200000000)
  ORDER BY greatest(w.xids, w.multixacts) DESC LIMIT 3)
UNION ALL
-- While an index is made concurrently, somebody holds this lock on its table.
SELECT 'invalid_indexes', 'warning', 'pljobs.' || c.relname,
       'is not valid: it costs, and serves nothing; the making of it broke off',
       format(CASE WHEN c.relname ~ '_cc(new|old)[0-9]*$' THEN 'DROP INDEX CONCURRENTLY pljobs.%I;'
                   ELSE 'REINDEX INDEX CONCURRENTLY pljobs.%I;' END, c.relname)
  FROM pg_catalog.pg_index AS i
  JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
 WHERE c.relnamespace = 'pljobs'::regnamespace AND NOT (i.indisvalid AND i.indisready)
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_locks AS l
                    WHERE l.relation = i.indrelid AND l.mode = 'ShareUpdateExclusiveLock' AND l.granted)
UNION ALL
SELECT 'dead_tuples', 'notice', 'standby', 'not looked at: a standby does not know', 'ask the primary'
  FROM pljobs._health_now AS n WHERE n.is_standby;
COMMENT ON VIEW pljobs._health_storage IS 'For pljobs.health: findings about tables, indexes and vacuum.';

CREATE OR REPLACE VIEW pljobs._health_holders WITH (security_barrier) AS
WITH RECURSIVE holder AS (
    SELECT (SELECT j.worker_id FROM pljobs.job AS j
             WHERE j.status = 'doing' ORDER BY j.worker_id LIMIT 1) AS worker_id
    UNION ALL
    SELECT (SELECT j.worker_id FROM pljobs.job AS j
             WHERE j.status = 'doing' AND j.worker_id > h.worker_id ORDER BY j.worker_id LIMIT 1)
      FROM holder AS h WHERE h.worker_id IS NOT NULL
)
SELECT h.worker_id, r.queues, r.running
  FROM holder AS h
 CROSS JOIN LATERAL (
       SELECT array_agg(DISTINCT d.queue) AS queues, count(*) AS running
         FROM (SELECT j.queue FROM pljobs.job AS j
                -- As a range, and ordered: so that no statistics can make this read the table.
                WHERE j.status = 'doing' AND j.worker_id >= h.worker_id AND j.worker_id <= h.worker_id
                ORDER BY j.worker_id LIMIT 10000) AS d) AS r
 WHERE h.worker_id IS NOT NULL;
COMMENT ON VIEW pljobs._health_holders IS
    'For pljobs.health: who holds running jobs, how many (at most 10,000), of which queues.';

CREATE OR REPLACE VIEW pljobs._health_workers WITH (security_barrier) AS
WITH now AS MATERIALIZED (
    SELECT n.at, n.patience FROM pljobs._health_now AS n
), worker AS MATERIALIZED (
    SELECT w.id, w.heartbeat_at, w.expires_at, w.tainted_at, w.loop_lag, w.contract, w.driver,
           w.expires_at > n.at AS is_alive, format('%s@%s:%s', w.name, w.host, w.pid) AS who,
           coalesce(h.running, 0) AS running
      FROM now AS n
     CROSS JOIN pljobs.worker AS w
      LEFT JOIN pljobs._health_holders AS h ON h.worker_id = w.id
     WHERE w.stopped_at IS NULL
), gone AS (
    SELECT w.who, n.at - w.expires_at AS gone_for, w.running
      FROM now AS n CROSS JOIN worker AS w WHERE NOT w.is_alive
    UNION ALL
    SELECT CASE WHEN w.id IS NULL THEN 'worker ' || h.worker_id
                ELSE format('%s@%s:%s', w.name, w.host, w.pid) END,
           coalesce(n.at - w.stopped_at, interval '1 day'), h.running
      FROM now AS n
     CROSS JOIN pljobs._health_holders AS h
      LEFT JOIN pljobs.worker AS w ON w.id = h.worker_id
     WHERE w.id IS NULL OR w.stopped_at IS NOT NULL
), can_look_back AS (
    -- Without that index, which may be still to be made, the table would be scanned.
    SELECT EXISTS (SELECT FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_index AS i ON i.indexrelid = c.oid
                    WHERE c.relname = 'job_event_rescued' AND c.relnamespace = 'pljobs'::regnamespace
                      AND i.indisvalid) AS yes
), lost_run AS MATERIALIZED (
    SELECT e.job_id, e.worker_id, j.task, j.crashes
      FROM (SELECT r.job_id, r.worker_id FROM pljobs.job_event AS r
             WHERE (SELECT c.yes FROM can_look_back AS c) AND r.kind = 'rescued'
               AND r.at > (SELECT n.at - interval '1 h' FROM now AS n)
             ORDER BY r.at DESC LIMIT 1000) AS e
      JOIN pljobs.job AS j ON j.id = e.job_id
), stuck AS (
    SELECT r.job_id, r.task, r.requested_at, r.requested_by, r.actor, r.level, r.handling, n.at,
           CASE WHEN coalesce(w.is_alive, false) AND r.handling IS DISTINCT FROM 'swallowed'
                     AND r.delivered_at IS NOT NULL AND coalesce(r.kill_at > n.at, true)
                     AND r.requested_at > n.at - n.patience * interval '10 min' THEN 1 ELSE 2 END AS rank,
           CASE WHEN NOT coalesce(w.is_alive, false) THEN 'its worker is lost: SELECT pljobs.rescue_jobs();'
                WHEN r.delivered_at IS NULL
                THEN format('its worker, %s, has not heard of it; it was last heard of %s ago', w.who,
                            date_trunc('second', n.at - w.heartbeat_at))
                WHEN r.kill_at <= n.at THEN format('end its worker, %s: it can''t stop the task', w.who)
                WHEN r.kill_at IS NOT NULL THEN format('it is stopped by force at %s', r.kill_at)
                ELSE format('let it clean up, or by force: SELECT pljobs.cancel_job(%s, abort => true, '
                            'grace => ''10 s'');', r.job_id) END AS action
      FROM now AS n
     CROSS JOIN (SELECT q.job_id, q.task, q.requested_at, q.requested_by, q.actor, q.level, q.handling,
                        q.delivered_at, q.kill_at, q.worker_id
                   FROM pljobs.request AS q
                  WHERE q.resolved_at IS NULL ORDER BY q.run_id LIMIT 1000) AS r
      LEFT JOIN worker AS w ON w.id = r.worker_id
     WHERE r.requested_at < n.at - n.patience * interval '1 min'
)
SELECT 'expired_leases' AS item,
       CASE WHEN max(g.gone_for) FILTER (WHERE g.running > 0) > n.patience * interval '1 min' THEN 'warning'
            ELSE 'notice' END AS severity,
       (array_agg(g.who ORDER BY g.gone_for DESC))[1]
           || coalesce(' and ' || nullif(count(*) - 1, 0) || ' more', '') AS subject,
       format('lost for %s, and nobody has taken back what ran there: jobs: %s',
              date_trunc('second', max(g.gone_for)), sum(g.running)) AS detail,
       'SELECT pljobs.rescue_jobs(); any worker does that, or pljobs manager, or pg_cron' AS action
  FROM now AS n CROSS JOIN gone AS g
 GROUP BY n.patience
UNION ALL
SELECT 'lost_workers', CASE WHEN count(*) >= 3 THEN 'warning' ELSE 'notice' END,
       count(*) || CASE WHEN count(*) = 1 THEN ' worker' ELSE ' workers' END,
       'lost in the last hour, the last of them: ' || array_to_string((array_agg(
           format('%s@%s:%s', w.name, w.host, w.pid) ORDER BY w.stopped_at DESC))[1:5], ', '),
       'look into their logs, and that of their machines (out of memory?); see killer_jobs'
  FROM now AS n
 CROSS JOIN pljobs.worker AS w
 WHERE w.stopped_at >= w.expires_at AND w.stopped_at > n.at - interval '1 h'
HAVING count(*) > 0
UNION ALL
-- Who was lost again and again is likely to be the cause; the others happened to run beside it.
(SELECT 'killer_jobs', CASE WHEN max(l.crashes) >= 2 THEN 'warning' ELSE 'notice' END, 'task ' || l.task,
        format('of its jobs %s were lost in the last hour, with %s workers; job %s %s times by now',
               count(DISTINCT l.job_id), count(DISTINCT l.worker_id),
               (array_agg(l.job_id ORDER BY l.crashes DESC))[1], max(l.crashes)),
        format('SELECT * FROM pljobs.history WHERE job_id = %s; isolation="process" for that task: it then '
               'takes no worker along', (array_agg(l.job_id ORDER BY l.crashes DESC))[1])
   FROM lost_run AS l
  GROUP BY l.task
 HAVING max(l.crashes) >= 2 OR count(DISTINCT l.worker_id) >= 3
  ORDER BY max(l.crashes) DESC, count(DISTINCT l.worker_id) DESC LIMIT 5)
UNION ALL
SELECT 'killer_jobs', 'notice', 'pljobs.job_event_rescued',
       'not looked at: this index is missing, or not valid', 'psql -f sql/indexes.sql'
  FROM can_look_back AS c WHERE NOT c.yes
UNION ALL
(SELECT 'stuck_aborts', CASE WHEN max(s.rank) = 2 THEN 'warning' ELSE 'notice' END,
        'task ' || coalesce(s.task, '?'),
        format('asked to abort and still running: %s; job %s for %s, by %s, at level %s%s', count(*),
               (array_agg(s.job_id ORDER BY s.rank DESC, s.requested_at))[1],
               date_trunc('second', (array_agg(s.at - s.requested_at
                                               ORDER BY s.rank DESC, s.requested_at))[1]),
               (array_agg(concat_ws(' for ', s.requested_by, s.actor)
                          ORDER BY s.rank DESC, s.requested_at))[1],
               (array_agg(s.level ORDER BY s.rank DESC, s.requested_at))[1],
               ', ' || (array_agg(s.handling ORDER BY s.rank DESC, s.requested_at))[1]),
        (array_agg(s.action ORDER BY s.rank DESC, s.requested_at))[1]
   FROM stuck AS s
  GROUP BY s.task
  ORDER BY max(s.rank) DESC, min(s.requested_at) LIMIT 10)
UNION ALL
(SELECT 'tainted_workers',
        CASE WHEN w.tainted_at < n.at - n.patience * interval '10 min' THEN 'warning' ELSE 'notice' END,
        w.who,
        format('gave up a job whose code may still run, %s ago, and gets no more; %s of its jobs still run',
               date_trunc('second', n.at - w.tainted_at), w.running),
        'end that process when its other jobs are done, and start another'
   FROM now AS n CROSS JOIN worker AS w
  WHERE w.is_alive AND w.tainted_at IS NOT NULL
  ORDER BY w.tainted_at LIMIT 10)
UNION ALL
(SELECT 'late_loops',
        CASE WHEN w.loop_lag > n.patience * interval '10 s' THEN 'warning' ELSE 'notice' END, w.who,
        format('its event loop ran %s late: an async task blocks it, and with it what runs there: jobs: %s',
               w.loop_lag, w.running),
        'its log names the jobs; move what blocks into a sync task'
   FROM now AS n CROSS JOIN worker AS w
  WHERE w.is_alive AND w.loop_lag > n.patience * interval '1 s'
  ORDER BY w.loop_lag DESC LIMIT 10)
UNION ALL
-- The newest contract, as get_contract_v1 has it: not called here, for that takes a right of its own.
SELECT 'old_workers', 'notice', coalesce(w.driver, 'contract ' || w.contract),
       format('%s alive: %s speaks contract %s, and this schema 3', count(*), min(w.who), w.contract),
       'upgrade and restart them: a later migration will refuse to take away what they call'
  FROM worker AS w
 WHERE w.is_alive AND w.contract < 3
 GROUP BY w.driver, w.contract;
COMMENT ON VIEW pljobs._health_workers IS 'For pljobs.health: findings about workers and what they run.';

CREATE OR REPLACE VIEW pljobs._health_jobs WITH (security_barrier) AS
WITH RECURSIVE now AS MATERIALIZED (
    SELECT n.at, n.patience FROM pljobs._health_now AS n
), can_look AS MATERIALIZED (
    -- Without these indexes, which may be still to be made, the table would be scanned; and fetches start
    -- nothing that would be found there.
    SELECT count(*) = 2 AS yes
      FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_index AS i ON i.indexrelid = c.oid
     WHERE c.relname IN ('job_turn', 'job_limit') AND c.relnamespace = 'pljobs'::regnamespace AND i.indisvalid
), queue AS (
    -- From queue to queue along the index, as a fetch does while some are paused.
    SELECT (SELECT j.queue FROM pljobs.job AS j
             WHERE j.status = 'todo' AND j.waiting_for IS NULL ORDER BY j.queue LIMIT 1) AS name
    UNION ALL
    SELECT (SELECT j.queue FROM pljobs.job AS j
             WHERE j.status = 'todo' AND j.waiting_for IS NULL AND j.queue > q.name ORDER BY j.queue LIMIT 1)
      FROM queue AS q WHERE q.name IS NOT NULL
), queue_of_keys AS (
    SELECT (SELECT j.queue FROM pljobs.job AS j
             WHERE j.status = 'todo' AND j.waiting_for = 'turn' ORDER BY j.queue LIMIT 1) AS name
      FROM can_look AS c WHERE c.yes
    UNION ALL
    SELECT (SELECT j.queue FROM pljobs.job AS j
             WHERE j.status = 'todo' AND j.waiting_for = 'turn' AND j.queue > q.name
             ORDER BY j.queue LIMIT 1)
      FROM queue_of_keys AS q WHERE q.name IS NOT NULL
), queue_at_limit AS (
    SELECT (SELECT j.queue FROM pljobs.job AS j
             WHERE j.status = 'todo' AND j.waiting_for = 'limit' ORDER BY j.queue LIMIT 1) AS name
      FROM can_look AS c WHERE c.yes
    UNION ALL
    SELECT (SELECT j.queue FROM pljobs.job AS j
             WHERE j.status = 'todo' AND j.waiting_for = 'limit' AND j.queue > q.name
             ORDER BY j.queue LIMIT 1)
      FROM queue_at_limit AS q WHERE q.name IS NOT NULL
), key AS (
    -- The oldest job of each of the first ten keys, at the highest and at the lowest priority.
    SELECT 0 AS nth, q.name AS queue, p.place, ''::text COLLATE "C" AS name, NULL::bigint AS id,
           NULL::text AS lock, NULL::timestamptz AS created_at, NULL::timestamptz AS scheduled_at
      FROM queue_of_keys AS q
     CROSS JOIN LATERAL (
           SELECT (-2147483648)::integer AS place
           UNION ALL
           SELECT (SELECT -j.priority FROM pljobs.job AS j
                    WHERE j.status = 'todo' AND j.waiting_for = 'turn'
                      AND j.queue >= q.name AND j.queue <= q.name
                    ORDER BY j.queue DESC, -j.priority DESC, j.fairness_key DESC, j.id DESC LIMIT 1
                  ) AS place) AS p
     WHERE q.name IS NOT NULL
    UNION ALL
    SELECT k.nth + 1 AS nth, k.queue, n.place, n.name, n.id, n.lock, n.created_at, n.scheduled_at
      FROM key AS k
     CROSS JOIN LATERAL (
           SELECT -j.priority AS place, j.fairness_key AS name, j.id, j.lock, j.created_at, j.scheduled_at
             FROM pljobs.job AS j
            WHERE j.status = 'todo' AND j.waiting_for = 'turn' AND j.queue <= k.queue
              AND (j.queue, -j.priority, j.fairness_key) > (k.queue, k.place, k.name)
            ORDER BY j.queue, -j.priority, j.fairness_key, j.id LIMIT 1) AS n
     WHERE k.nth BETWEEN 0 AND 9
), head AS (
    -- What runs next, and what runs last of all: the first jobs of the highest and of the lowest priority.
    -- The queue as a range, and first in the order: so that no statistics make this walk all queues' jobs.
    -- How long one waits is not known of a job of a lane, which may have been woken just now; and that it
    -- waits for its task's limit is as somebody wanted it.
    SELECT q.name AS queue, h.id, h.lock IS NULL AS is_waiting, h.created_at, h.scheduled_at
      FROM queue AS q
     CROSS JOIN LATERAL (
           (SELECT j.id, j.lock, j.created_at, j.scheduled_at FROM pljobs.job AS j
             WHERE j.status = 'todo' AND j.waiting_for IS NULL AND j.queue >= q.name AND j.queue <= q.name
             ORDER BY j.queue, -j.priority, j.id LIMIT 10)
           UNION ALL
           (SELECT j.id, j.lock, j.created_at, j.scheduled_at FROM pljobs.job AS j
             WHERE j.status = 'todo' AND j.waiting_for IS NULL AND j.queue <= q.name
               AND (j.queue, -j.priority) >= (q.name, (
                   SELECT -l.priority FROM pljobs.job AS l
                    WHERE l.status = 'todo' AND l.waiting_for IS NULL
                      AND l.queue >= q.name AND l.queue <= q.name
                    ORDER BY l.queue DESC, -l.priority DESC, l.id DESC LIMIT 1))
             ORDER BY j.queue, -j.priority, j.id LIMIT 10)) AS h
     WHERE q.name IS NOT NULL
    UNION ALL
    SELECT k.queue, k.id, k.lock IS NULL AS is_waiting, k.created_at, k.scheduled_at
      FROM key AS k WHERE k.nth > 0
    UNION ALL
    SELECT q.name AS queue, h.id, false AS is_waiting, h.created_at, h.scheduled_at
      FROM queue_at_limit AS q
     CROSS JOIN LATERAL (
           SELECT j.id, j.created_at, j.scheduled_at FROM pljobs.job AS j
            WHERE j.status = 'todo' AND j.waiting_for = 'limit' AND j.queue >= q.name AND j.queue <= q.name
            ORDER BY j.queue, j.task, -j.priority, j.id LIMIT 1) AS h
     WHERE q.name IS NOT NULL
), worker AS MATERIALIZED (
    SELECT w.queues FROM pljobs.worker AS w CROSS JOIN now AS n
     WHERE w.stopped_at IS NULL AND w.expires_at > n.at AND w.tainted_at IS NULL
), moving AS MATERIALIZED (
    SELECT DISTINCT q.name FROM pljobs._health_holders AS h CROSS JOIN unnest(h.queues) AS q(name)
    UNION
    SELECT f.queue
      FROM (SELECT j.queue, j.finished_at FROM pljobs.job AS j
             WHERE j.finished_at IS NOT NULL ORDER BY j.finished_at DESC LIMIT 200) AS f
     CROSS JOIN now AS n
     WHERE f.finished_at > n.at - interval '1 min'
), ready AS MATERIALIZED (
    SELECT h.queue AS name, p.paused_at, p.paused_by, p.pause_reason, min(s.since) AS since,
           min(s.since) FILTER (WHERE h.is_waiting) AS waiting_since,
           (array_agg(h.id ORDER BY s.since) FILTER (WHERE h.is_waiting))[1] AS oldest_id,
           EXISTS (SELECT FROM worker AS w WHERE w.queues IS NULL OR h.queue = ANY (w.queues)) AS is_served
      FROM now AS n
     CROSS JOIN head AS h
      LEFT JOIN pljobs.queue AS p ON p.name = h.queue AND p.paused_at IS NOT NULL
     CROSS JOIN LATERAL (SELECT greatest(h.created_at, h.scheduled_at) AS at) AS d
     -- Since when a job that has run before is back: about its last event, by where it lies.
     CROSS JOIN LATERAL (
           SELECT CASE WHEN d.at > n.at - n.patience * interval '1 min' THEN d.at
                       ELSE greatest(d.at, (
                            SELECT max(b.at)
                              FROM (SELECT e.at FROM pljobs.job_event AS e
                                     WHERE e.job_id >= h.id AND e.job_id <= h.id
                                     ORDER BY e.job_id DESC LIMIT 10) AS b)) END AS since) AS s
     GROUP BY h.queue, p.paused_at, p.paused_by, p.pause_reason
)
(SELECT 'unserved_queues' AS item,
        CASE WHEN EXISTS (SELECT FROM worker) THEN 'warning' ELSE 'critical' END AS severity,
        'queue ' || r.name AS subject,
        format('jobs ready for %s, and %s', date_trunc('second', n.at - r.since),
               CASE WHEN EXISTS (SELECT FROM worker) THEN 'no worker that is alive serves this queue'
                    ELSE 'no worker is alive' END) AS detail,
        'start a worker that serves it; or cancel or move its jobs' AS action
   FROM now AS n CROSS JOIN ready AS r
  WHERE NOT r.is_served AND r.paused_at IS NULL AND r.since < n.at - n.patience * interval '1 min'
  ORDER BY r.since LIMIT 10)
UNION ALL
(SELECT 'paused_queues', 'notice', 'queue ' || r.name,
        format('jobs ready, and paused for %s by %s%s', date_trunc('second', n.at - r.paused_at),
               coalesce(r.paused_by, '?'), ': ' || r.pause_reason),
        format('SELECT pljobs.resume_queue(%L);', r.name)
   FROM now AS n CROSS JOIN ready AS r
  WHERE r.paused_at IS NOT NULL
  ORDER BY r.paused_at LIMIT 10)
UNION ALL
-- A long queue that moves is a matter of taste; one that doesn't, though a worker serves it, is not.
(SELECT 'waiting_jobs', CASE WHEN m.name IS NULL THEN 'warning' ELSE 'notice' END, 'queue ' || r.name,
        format('job %s has been ready for %s%s', r.oldest_id, date_trunc('second', n.at - r.waiting_since),
               CASE WHEN m.name IS NULL THEN ', and nothing of this queue runs' ELSE '' END),
        CASE WHEN m.name IS NULL
             THEN 'look into the log of the workers that serve it: unknown tasks, or no way to the database?'
             ELSE 'more workers, more concurrency, or a higher priority' END
   FROM now AS n
  CROSS JOIN ready AS r
   LEFT JOIN moving AS m ON m.name = r.name
  WHERE r.is_served AND r.paused_at IS NULL
    AND r.waiting_since < n.at - n.patience * CASE WHEN m.name IS NULL THEN interval '10 min'
                                                   ELSE interval '1 h' END
  ORDER BY r.waiting_since LIMIT 10)
UNION ALL
-- Fetches make due jobs ready; workers that are all full don't fetch.
SELECT 'late_schedules', CASE WHEN b.busy THEN 'notice' ELSE 'warning' END,
       'queue ' || l.queue,
       format('job %s was due %s ago, and is not ready yet', l.id,
              date_trunc('second', n.at - l.scheduled_at)),
       CASE WHEN b.busy THEN 'the workers are full: more workers, or more concurrency'
            ELSE 'start a worker' END
  FROM now AS n
 CROSS JOIN (SELECT EXISTS (SELECT FROM worker) AND EXISTS (SELECT FROM moving) AS busy) AS b
 CROSS JOIN (SELECT j.id, j.queue, j.scheduled_at FROM pljobs.job AS j
              WHERE j.status = 'todo' AND j.waiting_for = 'schedule' ORDER BY j.scheduled_at LIMIT 1) AS l
 WHERE l.scheduled_at < n.at - n.patience * interval '5 min'
UNION ALL
SELECT 'late_limits', 'warning', l.what || ' of job ' || l.id,
       format('is over for %s, and nobody has done anything about it', date_trunc('second', n.at - l.due_at)),
       'SELECT pljobs.enforce_limits(); any worker does that, or pljobs manager, or pg_cron'
  FROM now AS n
 CROSS JOIN (
       (SELECT 'start_by' AS what, j.id, j.start_by AS due_at FROM pljobs.job AS j
         WHERE j.status = 'todo' AND j.start_by IS NOT NULL ORDER BY j.start_by LIMIT 1)
       UNION ALL
       (SELECT 'timeout' AS what, t.id, t.timeout_at
          FROM (SELECT j.id, j.timeout_at, j.request_id FROM pljobs.job AS j
                 WHERE j.status = 'doing' AND j.timeout_at IS NOT NULL ORDER BY j.timeout_at LIMIT 1000) AS t
         WHERE t.request_id IS NULL ORDER BY t.timeout_at LIMIT 1)) AS l
 WHERE l.due_at < n.at - n.patience * interval '2 min';
COMMENT ON VIEW pljobs._health_jobs IS 'For pljobs.health: findings about jobs that wait.';

CREATE OR REPLACE VIEW pljobs._health_server WITH (security_barrier) AS
WITH owner AS (
    SELECT s.nspowner AS oid, pg_get_userbyid(s.nspowner) AS name
      FROM pg_catalog.pg_namespace AS s WHERE s.nspname = 'pljobs'
), wanted AS (
    SELECT g.role, g.kind, g.name
      FROM (VALUES ('pljobs_reader', 'view', 'jobs'), ('pljobs_reader', 'view', 'health'),
                   ('pljobs_producer', 'function', 'defer_jobs_v1'),
                   ('pljobs_producer', 'function', 'cancel_job_v1'),
                   ('pljobs_worker', 'function', 'register_worker_v2'),
                   ('pljobs_worker', 'function', 'fetch_jobs_v1'),
                   ('pljobs_worker', 'function', 'heartbeat_v1'),
                   ('pljobs_worker', 'function', 'finish_jobs_v1'),
                   ('pljobs_worker', 'function', 'rescue_jobs_v1'),
                   ('pljobs_canceller', 'function', 'cancel_job_v1'),
                   ('pljobs_operator', 'view', 'health'), ('pljobs_operator', 'function', 'cancel_job_v1'),
                   ('pljobs_operator', 'function', 'pause_queue_v1')) AS g(role, kind, name)
)
SELECT 'roles' AS item, 'notice' AS severity, string_agg(DISTINCT w.role, ', ') AS subject,
       'no such groups: nobody but the owner may do what they are for' AS detail,
       'as a role that may create roles: psql -f sql/roles.sql; then install again' AS action
  FROM wanted AS w
 WHERE to_regrole(w.role) IS NULL
HAVING count(*) > 0
UNION ALL
SELECT 'grants', 'warning', r.rolname::text,
       'lacks what it needs: ' || string_agg(DISTINCT x.missing, ', '),
       'install again (pljobs migrate, or psql -1 -v ON_ERROR_STOP=1 -f sql/install.sql)'
  FROM wanted AS w
  JOIN pg_catalog.pg_roles AS r ON r.rolname = w.role
  LEFT JOIN pg_catalog.pg_proc AS p
    ON w.kind = 'function' AND p.proname = w.name AND p.pronamespace = 'pljobs'::regnamespace
  LEFT JOIN pg_catalog.pg_class AS c
    ON w.kind = 'view' AND c.relname = w.name AND c.relnamespace = 'pljobs'::regnamespace
 CROSS JOIN LATERAL (
       SELECT 'USAGE on the schema' AS missing WHERE NOT has_schema_privilege(r.oid, 'pljobs', 'USAGE')
       UNION ALL
       SELECT 'EXECUTE on ' || w.name
        WHERE w.kind = 'function' AND has_function_privilege(r.oid, p.oid, 'EXECUTE') IS NOT TRUE
       UNION ALL
       SELECT 'SELECT on ' || w.name
        WHERE w.kind = 'view' AND has_table_privilege(r.oid, c.oid, 'SELECT') IS NOT TRUE) AS x
 GROUP BY r.rolname
UNION ALL
SELECT 'grants', 'notice', o.name::text, 'owns the schema, and ' || m.detail,
       format('GRANT %I TO %I;', m.role, o.name)
  FROM owner AS o
 CROSS JOIN (VALUES
       ('pg_signal_backend',
        'may not cancel others'' statements: cancel_job(sql => true) asks the worker to'),
       ('pg_read_all_stats',
        'may not see whether others run one: cancel_job(sql => true) may miss between two statements')
       ) AS m(role, detail)
 WHERE NOT pg_has_role(o.oid, m.role, 'USAGE')
UNION ALL
SELECT 'grants', 'notice', o.name::text,
       'owns the schema and is a superuser: so pljobs''s functions run as one',
       'ALTER SCHEMA pljobs OWNER TO pljobs_owner; then what check_install() says of each owner'
  FROM owner AS o JOIN pg_roles AS r ON r.oid = o.oid
 WHERE r.rolsuper
UNION ALL
SELECT 'queue_limits', 'notice', l.role, format('is limited to queues (%s), and does not exist', l.verb),
       format('was it renamed? SELECT pljobs.limit_queues(%L, %L, NULL);', l.role, l.verb)
  FROM pljobs.queue_limit AS l
 WHERE to_regrole(quote_ident(l.role)) IS NULL
UNION ALL
SELECT 'settings', s.severity, s.name || ' = ' || current_setting(s.name), s.detail,
       format('ALTER SYSTEM SET %s = %s; SELECT pg_reload_conf();', s.name, s.better)
  FROM (VALUES ('fsync', 'off', 'critical', 'when the machine goes down, all may be lost', 'on'),
               ('full_page_writes', 'off', 'critical', 'when the machine goes down, pages may be torn', 'on'),
               ('track_activities', 'off', 'warning',
                'what sessions do can''t be seen: the first items were not looked at', 'on'),
               ('synchronous_commit', 'off', 'notice',
                'a crash of the server may lose jobs just deferred, and run again jobs just done', 'on'),
               ('idle_in_transaction_session_timeout', '0', 'notice',
                'a forgotten transaction holds its jobs, and holds back vacuum, for ever', '''10min''')
       ) AS s(name, bad, severity, detail, better)
 WHERE current_setting(s.name) = s.bad
UNION ALL
SELECT 'standby', 'notice', 'standby',
       format('this server only reads: it shows what was so on its primary %s ago',
              date_trunc('second', clock_timestamp() - n.at)),
       'workers need the primary: several hosts in the URL, with target_session_attrs=read-write'
  FROM pljobs._health_now AS n WHERE n.is_standby;
COMMENT ON VIEW pljobs._health_server IS 'For pljobs.health: findings about roles, rights and settings.';

CREATE OR REPLACE VIEW pljobs.health WITH (security_barrier) AS
WITH item AS (
    SELECT i.place, i.name, i.fine
      FROM (VALUES
            (1, 'held_snapshots', 'no transaction, slot or standby holds back vacuum'),
            (2, 'notification_queue', 'notifications are taken from the queue'),
            (3, 'listeners', 'every session reads the notifications that it listens for'),
            (4, 'open_transactions', 'no idle transaction holds rows of pljobs'),
            (5, 'blocked_sessions', 'nobody waits for a lock on a table of pljobs for long'),
            (6, 'connections', 'connections are left'),
            (7, 'dead_tuples', 'vacuum keeps up with the dead rows of the hot tables'),
            (8, 'bloat', 'the hot tables and their indexes are not much larger than what they hold'),
            (9, 'autovacuum', 'autovacuum is switched on'),
            (10, 'wraparound', 'no transaction id is near its end'),
            (11, 'invalid_indexes', 'every index is valid'),
            (12, 'expired_leases', 'no lease ran out: every running job has its worker'),
            (13, 'lost_workers', 'no worker was lost in the last hour'),
            (14, 'killer_jobs', 'no task was lost with its worker again and again in the last hour'),
            (15, 'stuck_aborts', 'whatever was asked to abort more than a minute ago has stopped'),
            (16, 'tainted_workers', 'no worker has given up a job that it could not stop'),
            (17, 'late_loops', 'no worker''s event loop is blocked'),
            (18, 'old_workers', 'every worker speaks the newest contract'),
            (19, 'unserved_queues', 'every queue that has jobs ready has a worker'),
            (20, 'paused_queues', 'no queue that has jobs ready is paused'),
            (21, 'waiting_jobs', 'no job has been ready for long'),
            (22, 'late_schedules', 'scheduled jobs get ready when they are due'),
            (23, 'late_limits', 'start_by and timeouts are enforced'),
            (24, 'roles', 'every group of pljobs exists'),
            (25, 'grants', 'groups and owner have what they need'),
            (26, 'queue_limits', 'every role that is limited to queues exists'),
            (27, 'settings', 'no setting of the server is known to hurt'),
            (28, 'standby', 'this server takes writes')
           ) AS i(place, name, fine)
), finding AS (
    SELECT f.item, f.severity, f.subject, f.detail, f.action FROM pljobs._health_sessions AS f
    UNION ALL
    SELECT f.item, f.severity, f.subject, f.detail, f.action FROM pljobs._health_storage AS f
    UNION ALL
    SELECT f.item, f.severity, f.subject, f.detail, f.action FROM pljobs._health_workers AS f
    UNION ALL
    SELECT f.item, f.severity, f.subject, f.detail, f.action FROM pljobs._health_jobs AS f
    UNION ALL
    SELECT f.item, f.severity, f.subject, f.detail, f.action FROM pljobs._health_server AS f
)
SELECT i.name AS item, coalesce(f.severity, 'ok') AS severity, f.subject,
       coalesce(f.detail, i.fine) AS detail, f.action
  FROM item AS i
  LEFT JOIN finding AS f ON f.item = i.name
 ORDER BY array_position('{critical,warning,notice}', f.severity) NULLS LAST, i.place, f.subject;
COMMENT ON VIEW pljobs.health IS
    'What to look at, worst first: a row for each finding (notice, warning, critical), with what it is about '
    'and what to do; an ok row for each item without one. After SET pljobs.health_patience = 0.1 things are '
    'found ten times as early.';

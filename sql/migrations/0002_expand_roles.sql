SELECT pljobs._migrate('0002_expand_roles', $migration$

-- Storage and vacuum, as far as 0001 left them to the server. Settings that somebody has changed stay, now
-- and in later upgrades: a migration runs once.
SELECT pljobs._lock_relations('{job,job_event,request,progress,worker,queue,periodic,closed_tree,
                                deleted_parent}', exclusively => false);
DO $$
DECLARE
    v_setting record;
BEGIN
    FOR v_setting IN
        SELECT s.relation, s.name, s.value
          FROM (VALUES
                -- A queue that is empty now will be full again. Cutting the file needs an exclusive lock,
                -- which workers would wait for, and which cancels queries on standbys.
                ('job', 'vacuum_truncate', 'false'),
                -- Arguments, results and errors above 2 kB die as often as their jobs: as the table itself.
                ('job', 'toast.autovacuum_vacuum_scale_factor', '0.01'),
                ('job', 'toast.autovacuum_vacuum_threshold', '10000'),
                ('job', 'toast.autovacuum_vacuum_cost_delay', '0'),
                ('job', 'toast.vacuum_truncate', 'false'),
                -- Written once, deleted in bulk by prune: by count, not by share of what was kept.
                ('job_event', 'autovacuum_vacuum_scale_factor', '0.02'),
                ('job_event', 'autovacuum_vacuum_threshold', '10000'),
                ('job_event', 'vacuum_truncate', 'false'),
                -- Updated twice or more in their first minute, by no indexed column but the last time: room
                -- on the page makes these updates HOT.
                ('request', 'fillfactor', '85'),
                ('request', 'autovacuum_vacuum_scale_factor', '0.02'),
                ('request', 'autovacuum_vacuum_threshold', '5000'),
                ('request', 'vacuum_truncate', 'false'),
                -- Small, updated by each heartbeat that reports: by count alone, at once.
                ('progress', 'autovacuum_vacuum_scale_factor', '0'),
                ('progress', 'autovacuum_vacuum_threshold', '1000'),
                ('progress', 'autovacuum_vacuum_cost_delay', '0'),
                ('progress', 'vacuum_truncate', 'false'),
                -- Some dozens of live rows, one update each heartbeat; read by every fetch.
                ('worker', 'autovacuum_vacuum_scale_factor', '0'),
                ('worker', 'autovacuum_vacuum_threshold', '500'),
                ('worker', 'autovacuum_vacuum_cost_delay', '0'),
                ('worker', 'vacuum_truncate', 'false'),
                -- A handful of rows, read by every fetch or tick, seldom changed: one page.
                ('queue', 'autovacuum_vacuum_scale_factor', '0'),
                ('queue', 'autovacuum_vacuum_threshold', '100'),
                ('queue', 'fillfactor', '50'),
                ('periodic', 'autovacuum_vacuum_scale_factor', '0'),
                ('periodic', 'autovacuum_vacuum_threshold', '100'),
                ('periodic', 'fillfactor', '50'),
                -- Marks: looked up by each fetch of jobs with a parent, deleted in bulk by prune.
                ('closed_tree', 'autovacuum_vacuum_scale_factor', '0.02'),
                ('closed_tree', 'autovacuum_vacuum_threshold', '1000'),
                ('closed_tree', 'vacuum_truncate', 'false'),
                ('deleted_parent', 'autovacuum_vacuum_scale_factor', '0.02'),
                ('deleted_parent', 'autovacuum_vacuum_threshold', '1000'),
                ('deleted_parent', 'vacuum_truncate', 'false')
                -- migration, queue_limit: a few rows that people change; the server's own settings do.
               ) AS s(relation, name, value)
          JOIN pg_catalog.pg_class AS c
            ON c.relnamespace = 'pljobs'::regnamespace AND c.relname = s.relation
          LEFT JOIN pg_catalog.pg_class AS t ON t.oid = c.reltoastrelid
         WHERE NOT EXISTS (
               SELECT FROM pg_catalog.unnest(CASE WHEN s.name LIKE 'toast.%' THEN t.reloptions
                                                  ELSE c.reloptions END) AS o(option)
                WHERE pg_catalog.split_part(o.option, '=', 1) = pg_catalog.replace(s.name, 'toast.', ''))
           -- A table without toasted columns takes no such setting.
           AND (s.name NOT LIKE 'toast.%' OR t.oid IS NOT NULL)
    LOOP
        EXECUTE pg_catalog.format('ALTER TABLE pljobs.%I SET (%s = %L)', v_setting.relation, v_setting.name,
                                  v_setting.value);
    END LOOP;
END
$$;

-- From here on workers wait: nothing that takes long.
SELECT pljobs._lock_relations('{worker,job_event}');

-- Which functions a worker calls (register_worker_v2), with what, and as whom.
ALTER TABLE pljobs.worker
    ADD COLUMN contract integer NOT NULL DEFAULT 1,
    ADD COLUMN driver text,
    ADD COLUMN registered_by text;                         -- null: before this migration

-- Without a key of its own, a row here could not be deleted any more as soon as somebody publishes all
-- tables.
ALTER TABLE pljobs.job_event REPLICA IDENTITY FULL;

-- Workers that died in the last hour, and with which jobs: asked each time that somebody looks at the health.
SELECT pljobs._create_index('job_event', $$
    CREATE INDEX job_event_rescued ON pljobs.job_event (at) WHERE kind = 'rescued'
$$);

-- Roles that may defer to, or fetch from, some queues only. By name, so that it survives a dump. No row: all.
CREATE TABLE pljobs.queue_limit (
    role   text   NOT NULL,
    verb   text   NOT NULL,
    queues text[] NOT NULL,
    CONSTRAINT queue_limit_pkey PRIMARY KEY (role, verb),
    CONSTRAINT queue_limit_verb_known CHECK (verb IN ('defer', 'fetch')),
    CONSTRAINT queue_limit_of_some_queues CHECK (cardinality(queues) > 0)
);

$migration$);

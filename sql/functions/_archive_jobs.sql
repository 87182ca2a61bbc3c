CREATE OR REPLACE FUNCTION pljobs._make_archive(month timestamptz) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET default_tablespace = ''
AS $$
-- Makes the partition of the archive for a month, given by its first moment in UTC, if there is none. False:
-- another transaction is about to make one, or holds the archive. Made apart and attached: this keeps nobody
-- from reading the archive or writing into it, as CREATE TABLE ... PARTITION OF would. Raises 42P07 where a
-- table that is no partition has its name: one that was detached, or is about to be.
DECLARE
    v_first timestamp := _make_archive.month AT TIME ZONE 'UTC';
    v_name text := format('job_archive_%s', to_char(v_first, 'YYYY_MM'));
    v_there boolean;
    v_other name;
BEGIN
    v_there := pljobs._has_archive(v_name);
    IF NOT v_there AND pg_try_advisory_xact_lock(hashtextextended('pljobs.archive', 0)) THEN
        -- Asked again: another may have made it, and committed, in between.
        IF NOT pljobs._has_archive(v_name) THEN
            IF to_regclass(format('pljobs.%I', v_name)) IS NOT NULL THEN
                RAISE EXCEPTION 'jobs can''t be archived: table pljobs.% is in the way, which was detached '
                                'from the archive, or is about to be', v_name
                    USING ERRCODE = '42P07',
                          HINT = format('Attach it again, or move it: ALTER TABLE pljobs.%1$I SET SCHEMA ...;'
                                        ' where its detaching was cut off, finish that first: ALTER TABLE '
                                        'pljobs.job_archive DETACH PARTITION pljobs.%1$I FINALIZE;', v_name);
            END IF;
            -- Where its parent was put (ALTER TABLE pljobs.job_archive SET TABLESPACE), not where the session
            -- makes its tables. Nothing in it is ever updated: full pages, frozen by the first vacuum, which
            -- comes for so many inserts, so that none has to come back for it.
            EXECUTE format(
                'CREATE TABLE pljobs.%I (LIKE pljobs.job_archive INCLUDING ALL) USING heap '
                'WITH (fillfactor = 100, autovacuum_freeze_min_age = 0, toast.autovacuum_freeze_min_age = 0) '
                'TABLESPACE %I', v_name,
                (SELECT t.spcname FROM pg_class AS c
                   JOIN pg_database AS d ON d.datname = current_database()
                   JOIN pg_tablespace AS t ON t.oid = coalesce(nullif(c.reltablespace, 0), d.dattablespace)
                  WHERE c.oid = 'pljobs.job_archive'::regclass));
            -- What the owner's default privileges give others on new tables is not meant for this one.
            FOR v_other IN
                SELECT DISTINCT r.rolname
                  FROM pg_class AS c
                 CROSS JOIN LATERAL aclexplode(c.relacl) AS a
                  LEFT JOIN pg_roles AS r ON r.oid = a.grantee
                 WHERE c.oid = format('pljobs.%I', v_name)::regclass AND a.grantee <> c.relowner
            LOOP
                IF v_other IS NULL THEN
                    EXECUTE format('REVOKE ALL ON pljobs.%I FROM PUBLIC', v_name);
                ELSE
                    EXECUTE format('REVOKE ALL ON pljobs.%I FROM %I', v_name, v_other);
                END IF;
            END LOOP;
            EXECUTE format(
                'ALTER TABLE pljobs.job_archive ATTACH PARTITION pljobs.%I FOR VALUES FROM (%L) TO (%L)',
                v_name, to_char(v_first, 'YYYY-MM-DD 00:00:00+00'),
                to_char(v_first + interval '1 month', 'YYYY-MM-DD 00:00:00+00'));
        END IF;
        v_there := true;
    END IF;
    RETURN v_there;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END
$$;
COMMENT ON FUNCTION pljobs._make_archive(timestamptz) IS 'Makes the archive''s partition for a month.';

CREATE OR REPLACE FUNCTION pljobs._has_archive(name text) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- Whether the archive has a partition of this name.
BEGIN
    RETURN EXISTS (SELECT FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
                    WHERE i.inhparent = 'pljobs.job_archive'::regclass AND NOT i.inhdetachpending
                      AND c.relname = _has_archive.name);
END
$$;
COMMENT ON FUNCTION pljobs._has_archive(text) IS 'Whether the archive has a partition of this name.';

CREATE OR REPLACE FUNCTION pljobs._archive_jobs(job_ids bigint[]) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
-- Copies finished jobs into the archive, and returns their ids: all but those of months that another
-- transaction is making a partition for. The caller holds the rows locked, and deletes them.
DECLARE
    v_month timestamptz;
    v_unmade timestamptz[] := ARRAY[]::timestamptz[];
    v_ids bigint[];
BEGIN
    -- Before it asks which partitions there are: none of them is dropped any more.
    LOCK TABLE ONLY pljobs.job_archive IN ROW EXCLUSIVE MODE;
    FOR v_month IN
        SELECT DISTINCT date_trunc('month', j.finished_at, 'UTC')
          FROM pljobs.job AS j WHERE j.id = ANY (_archive_jobs.job_ids) ORDER BY 1
    LOOP
        IF NOT pljobs._make_archive(v_month) THEN
            v_unmade := v_unmade || v_month;
        END IF;
    END LOOP;
    v_ids := ARRAY(SELECT j.id FROM pljobs.job AS j
                    WHERE j.id = ANY (_archive_jobs.job_ids)
                      AND date_trunc('month', j.finished_at, 'UTC') <> ALL (v_unmade));
    INSERT INTO pljobs.job_archive (
           id, status, queue, task, args, priority, lock, queueing_lock, attempts, crashes, created_at,
           scheduled_at, started_at, finished_at, worker_id, message, error, result, deferred_by, parent_id,
           start_by, timeout, grace, on_cancelled, progress, progress_message, progress_at, fairness_key,
           archived_at)
    SELECT j.id, j.status, j.queue, j.task, j.args, j.priority, j.lock, j.queueing_lock, j.attempts,
           j.crashes, j.created_at, j.scheduled_at, j.started_at, j.finished_at, j.worker_id, j.message,
           j.error, j.result, j.deferred_by, j.parent_id, j.start_by, j.timeout, j.grace, j.on_cancelled,
           p.fraction, p.message, p.at, j.fairness_key, clock_timestamp()
      FROM pljobs.job AS j
      LEFT JOIN LATERAL (
           SELECT o.fraction, o.message, o.at FROM pljobs.progress AS o
            WHERE o.job_id = j.id OFFSET 0) AS p ON true
     WHERE j.id = ANY (v_ids)
    -- It is there already where tables were restored apart from one another.
    ON CONFLICT ON CONSTRAINT job_archive_pkey DO NOTHING;
    RETURN v_ids;
END
$$;
COMMENT ON FUNCTION pljobs._archive_jobs(bigint[]) IS 'Copies finished jobs into the archive.';

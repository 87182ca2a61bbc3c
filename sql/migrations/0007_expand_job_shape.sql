SELECT pljobs._migrate('0007_expand_job_shape', $migration$

-- squawk-ignore-file ban-drop-constraint

-- From here on workers wait: nothing that takes long.
SELECT pljobs._lock_relations('{job}');

-- What a job has, by its status: one rule, not eleven, for PostgreSQL reads each anew for each statement that
-- writes a job. NOT VALID: it says what the eleven said.
ALTER TABLE pljobs.job
    DROP CONSTRAINT job_counts_not_negative,
    DROP CONSTRAINT job_finished_exactly_at_the_end,
    DROP CONSTRAINT job_request_only_while_doing,
    DROP CONSTRAINT job_run_exactly_while_doing,
    DROP CONSTRAINT job_status_known,
    DROP CONSTRAINT job_timeout_only_while_doing,
    DROP CONSTRAINT job_turn_is_a_keys,
    DROP CONSTRAINT job_waiting_for_known,
    DROP CONSTRAINT job_waits_only_while_todo,
    DROP CONSTRAINT job_with_a_key_waits_for_its_turn,
    DROP CONSTRAINT job_worker_while_doing,
    ADD CONSTRAINT job_is_as_its_status_says CHECK (
        attempts >= 0 AND crashes >= 0
        AND CASE status
            WHEN 'todo' THEN
                run_id IS NULL AND request_id IS NULL AND timeout_at IS NULL AND finished_at IS NULL
                AND CASE WHEN waiting_for IS NULL THEN fairness_key IS NULL
                         WHEN waiting_for = 'turn' THEN fairness_key IS NOT NULL
                         ELSE waiting_for IN ('schedule', 'lock', 'limit') END
            WHEN 'doing' THEN
                run_id IS NOT NULL AND worker_id IS NOT NULL AND waiting_for IS NULL AND finished_at IS NULL
            ELSE
                status IN ('succeeded', 'failed', 'aborted', 'cancelled')
                AND run_id IS NULL AND request_id IS NULL AND timeout_at IS NULL AND waiting_for IS NULL
                AND finished_at IS NOT NULL
            END
    ) NOT VALID;

$migration$);

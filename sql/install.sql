-- Installs or upgrades pljobs. Safe to run again; one transaction; refuses an edited migration and a newer
-- database.
--
--     psql -1 -v ON_ERROR_STOP=1 -f sql/install.sql
--
-- This file is the table of contents and holds nothing but comments and \ir lines: `pljobs migrate` reads the
-- same list. Every file named here is plain SQL. Functions come before tables, for creating them keeps nobody
-- waiting: so an upgrade holds the tables that workers use for as short as can be.

-- The transaction, the lock against other installers, what must not be so.
\ir begin.sql

-- The group roles, as far as they may be made.
\ir roles.sql

-- The schema, its ledger of migrations, and the functions that migrations use.
\ir ledger.sql

-- Not over a database that a newer release has migrated.
\ir migrations/latest.sql

-- Helpers: granted to nobody.
\ir functions/_caller.sql
\ir functions/_ago.sql
\ir functions/_roles.sql
\ir functions/_notify.sql
\ir functions/_lanes.sql
\ir functions/_requeue_job.sql
\ir functions/_delete_jobs.sql
\ir functions/_archive_jobs.sql
\ir functions/_record_request.sql
\ir functions/_raise_held.sql
\ir functions/_end_job.sql
\ir functions/_hints.sql
\ir functions/_cancel_waiting_jobs.sql
\ir functions/_ask_to_abort.sql
\ir functions/_abort_job.sql
\ir functions/_stop_run.sql
\ir functions/_reports.sql
\ir functions/_store_progress.sql
\ir functions/_deliver_requests.sql
\ir functions/_release_job.sql
\ir functions/_promote_jobs.sql
\ir functions/_jump_ahead.sql
\ir functions/_flow.sql
\ir functions/_matching_jobs.sql
\ir functions/_finish_run.sql

-- Every job's way in.
\ir functions/defer_jobs.sql
\ir functions/defer_job.sql
\ir functions/defer_periodic_job.sql

-- A worker's calls.
\ir functions/get_contract.sql
\ir functions/register_worker.sql
\ir functions/unregister_worker.sql
\ir functions/fetch_jobs.sql
\ir functions/next_fetch.sql
\ir functions/finish_jobs.sql
\ir functions/finish_job.sql
\ir functions/heartbeat.sql
\ir functions/cancel_sql.sql

-- What people and applications ask for.
\ir functions/cancel_job.sql
\ir functions/delete_job.sql
\ir functions/retry_job.sql
\ir functions/cancel_jobs.sql
\ir functions/cancel_tree.sql
\ir functions/retry_jobs.sql
\ir functions/rescind_request.sql
\ir functions/wait_for_job.sql
\ir functions/pause_queue.sql
\ir functions/resume_queue.sql
\ir functions/notify_queues.sql
\ir functions/limit_queues.sql
\ir functions/throttle_queue.sql
\ir functions/throttle_task.sql

-- Housekeeping, run by any worker, by `pljobs manager`, or by pg_cron.
\ir functions/rescue_jobs.sql
\ir functions/enforce_limits.sql
\ir functions/wake_lanes.sql
\ir functions/prune_jobs.sql
\ir functions/prune_history.sql
\ir functions/drop_archive.sql

-- What all of this release comes to, to compare a database with.
\ir manifest.sql
\ir functions/check_install.sql

-- Tables, sequences, indexes. Released migrations are frozen.
\ir locks.sql
\ir migrations/0001_expand_core.sql
\ir migrations/0002_expand_roles.sql
\ir migrations/0003_expand_idempotency.sql
\ir migrations/0004_expand_timeline.sql
\ir migrations/0005_expand_flow.sql
\ir migrations/0006_expand_archive.sql
\ir migrations/0007_expand_job_shape.sql
\ir migrations/0008_expand_functions.sql
\ir migrations/0009_expand_functions.sql
\ir migrations/0010_expand_functions.sql
\ir migrations/0011_expand_functions.sql
\ir migrations/0012_expand_functions.sql
\ir migrations/0013_expand_functions.sql

-- What people read, and who may do what.
\ir views.sql
\ir health.sql
\ir grants.sql

-- The caller's own settings again.
\ir end.sql

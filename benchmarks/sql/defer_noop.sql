-- Defer one no-op job in a transaction of its own.
SELECT pljobs.defer_jobs_v1('[{"task": "noop"}]', notify => :notify);

-- Defer one job in a transaction of its own, as a driver does.
SELECT pljobs.defer_jobs_v1('[{"task": "noop", "queue": "live"}]', notify => :notify);

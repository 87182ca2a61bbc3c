SELECT pljobs._migrate('0008_expand_functions', $migration$

-- Tasks that were unthrottled while jobs were parked at their limit: 0.3.1 kept a row that limits nothing,
-- for which all fetches waited for each other.
DELETE FROM pljobs.throttle AS t WHERE t.max_running IS NULL AND t.rate IS NULL;

$migration$);

SELECT pljobs._migrate('0008_expand_functions', $migration$

-- Tasks that were unthrottled while jobs were parked at their limit: 0.3.1 kept a row that limits nothing,
-- for which all fetches waited for each other.
DELETE FROM pljobs.throttle AS t WHERE t.max_running IS NULL AND t.rate IS NULL;

-- 0.3.1 counted months as long as they were: what says that it is full later than an empty bucket can be
-- would count as full.
UPDATE pljobs.bucket AS b
   SET full_at = clock_timestamp() + pljobs._lasts(t.burst, t.rate, t.period)
  FROM pljobs.throttle AS t
 WHERE t.scope = b.scope AND t.name = b.name AND t.set_at = b.set_at
   -- What a fetch holds is left alone: it would have to be waited for.
   AND b.ctid = ANY (ARRAY(
       SELECT o.ctid
         FROM pljobs.bucket AS o
         JOIN pljobs.throttle AS r ON r.scope = o.scope AND r.name = o.name AND r.set_at = o.set_at
        WHERE r.rate IS NOT NULL AND o.full_at > clock_timestamp() + pljobs._lasts(r.burst, r.rate, r.period)
          FOR NO KEY UPDATE OF o SKIP LOCKED));

$migration$);

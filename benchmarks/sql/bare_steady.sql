-- The floor of steady.sql: insert some narrow rows, claim as many with SKIP LOCKED, delete them; three commits.
INSERT INTO bench_bare (taken) SELECT false FROM generate_series(1, :batch);
WITH claimed AS (
    UPDATE bench_bare AS b SET taken = true
     WHERE b.id = ANY (ARRAY(
           SELECT w.id FROM bench_bare AS w WHERE NOT w.taken ORDER BY w.id LIMIT :batch FOR UPDATE SKIP LOCKED))
    RETURNING b.id
)
SELECT coalesce(array_agg(c.id), '{}') AS ids FROM claimed AS c \gset
DELETE FROM bench_bare WHERE id = ANY (:ids::bigint[]);

-- What defer.sql with a notification can't do without: one narrow row, and a NOTIFY.
WITH added AS (INSERT INTO bench_bare (taken) VALUES (false) RETURNING id)
SELECT pg_notify('pljobs_todo', 'bench') FROM added;

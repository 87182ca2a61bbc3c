-- The floor of defer.sql: one narrow row in a transaction of its own.
INSERT INTO bench_bare (taken) VALUES (false);

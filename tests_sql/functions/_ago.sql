BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT is(date_trunc('hour', pljobs._ago('3 days') - clock_timestamp() + interval '1 min'), interval '-3 days', 'the time so long ago');
SELECT is(pljobs._ago(NULL), NULL, 'null for null');
SELECT ok(pljobs._ago(i::interval) BETWEEN clock_timestamp() - interval '1 min' AND clock_timestamp(), 'never in the future: ' || i) FROM unnest('{0,-1 s,-300000 years,-178000000 years,5000000 years -1826212500 days}'::text[]) AS i;
SELECT ok(pljobs._ago(i::interval) > '0001-01-01', 'never before what every client can read: ' || i) FROM unnest('{7000 years,178000000 years,5000000 years -1800000000 days}'::text[]) AS i;
SELECT is(pljobs.prune_jobs_v1('7000 years') + pljobs.prune_history_v1('7000 years') + pljobs.drop_archive('7000 years'), 0::bigint, 'nothing was that long ago');
SELECT throws_ok('SELECT ' || f || '(''-300000 years'')', 'PJ004', NULL, 'not before now: ' || f) FROM unnest('{pljobs.prune_jobs_v1,pljobs.prune_history_v1,pljobs.drop_archive}'::text[]) AS f;
SELECT throws_ok($$SELECT pljobs.cancel_jobs(older_than => '-300000 years')$$, 'PJ004', NULL, 'nor cancelled');
SELECT is_empty($$SELECT pljobs.cancel_jobs(older_than => '7000 years')$$, 'that old is no job');

SELECT is(pljobs._later('2020-01-01 00:00+00', i::interval), t, 'so much later: ' || i)
  FROM (VALUES ('1 h', '2020-01-01 01:00+00'::timestamptz), ('0', '2020-01-01 00:00+00'), ('-1 s', '2020-01-01 00:00+00'), ('1 month -31 days', '2020-01-01 00:00+00'), ('-178000000 years', '2020-01-01 00:00+00'),
               ('11 years', '2030-01-01 00:00+00'), ('300000 years', '2030-01-01 00:00+00'), ('178000000 years', '2030-01-01 00:00+00'), ('5000000 years -1800000000 days', '2030-01-01 00:00+00'), (NULL, NULL)) AS v(i, t);

SELECT * FROM finish();
ROLLBACK;

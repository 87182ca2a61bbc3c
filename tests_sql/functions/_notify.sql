-- That the messages arrive, once each, is in races/notify.spec: they are sent at commit.
BEGIN;
\ir ../lib/fixtures.sql
SELECT * FROM no_plan();

SELECT lives_ok($$SELECT pljobs._notify_worker(9223372036854775807)$$, 'the channel of the largest id is not too long');
SELECT lives_ok($$SELECT pljobs._notify_todo(ARRAY[repeat(chr(252), 255), '', '%;''"'])$$, 'any name of a queue can be told');
SELECT lives_ok($$SELECT pljobs._notify_todo(NULL)$$, 'no queues, no message');
SELECT lives_ok($$SELECT pljobs._notify_todo('{}')$$, 'an empty list of queues, no message');

SELECT * FROM finish();
ROLLBACK;

SELECT pljobs._migrate('0004_expand_timeline', $migration$

-- Not to draw from: its value is the server's timeline when ids were last known to be safe. The timeline
-- changes when a standby is promoted, which may not know which ids its primary had drawn last. A sequence,
-- for no transaction holds what it is set to.
CREATE SEQUENCE pljobs.timeline MINVALUE 0 START 0;
DO $$
BEGIN
    PERFORM setval('pljobs.timeline', pljobs._timeline());
END
$$;

$migration$);

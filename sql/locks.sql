-- Where several migrations that lock tables are still to be run, one after the other would wait for workers
-- that wait for what the one before has locked. So all that they will need, at once.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pljobs.migration AS m WHERE m.name = '0001_expand_core')
       AND NOT EXISTS (SELECT FROM pljobs.migration AS m WHERE m.name = '0002_expand_roles') THEN
        PERFORM pljobs._lock_relations('{job,job_event,worker}');
    END IF;
END
$$;

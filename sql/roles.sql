-- Makes the group roles that grants.sql grants to. Once a cluster, by a role that may create roles; then run
-- install.sql (again). Grant them to logins: GRANT pljobs_worker TO my_worker;
DO $$
DECLARE
    v_role text;
BEGIN
    FOREACH v_role IN ARRAY ARRAY[
        'pljobs_reader', 'pljobs_producer', 'pljobs_worker', 'pljobs_canceller', 'pljobs_operator'
    ] LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname = v_role) THEN
            EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', v_role);
        END IF;
    END LOOP;
END
$$;

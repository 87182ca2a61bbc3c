-- Makes the roles that pljobs knows, as groups that nobody can log in as. install.sql runs this too: where it
-- may not create roles, it says so and goes on. Then somebody who may runs this file alone, once a cluster,
-- and install.sql grants to them when it is run again. Grant the groups to logins: GRANT pljobs_worker TO
-- my_worker;
DO $$
DECLARE
    v_role text;
    v_missing text[] := '{}';
BEGIN
    FOREACH v_role IN ARRAY ARRAY[
        'pljobs_owner', 'pljobs_reader', 'pljobs_producer', 'pljobs_worker', 'pljobs_canceller',
        'pljobs_operator'
    ] LOOP
        CONTINUE WHEN EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname = v_role);
        BEGIN
            EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', v_role);
            -- Who makes the owner has to become it; a superuser may anyway.
            IF v_role = 'pljobs_owner' AND NOT EXISTS (
                SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname = current_user AND r.rolsuper
            ) THEN
                EXECUTE pg_catalog.format('GRANT %I TO %I', v_role, current_user);
            END IF;
        EXCEPTION
            WHEN insufficient_privilege THEN
                v_missing := v_missing || v_role;
            WHEN duplicate_object OR unique_violation THEN
                NULL;  -- Made at this moment, by the installer of another database.
        END;
    END LOOP;
    IF v_missing <> '{}' THEN
        RAISE NOTICE 'role % may not create the roles %', current_user,
            pg_catalog.array_to_string(v_missing, ', ')
            USING HINT = 'Without them only the owner of schema pljobs can use it. Have sql/roles.sql run '
                         'by a role with CREATEROLE, then install again.';
    END IF;
END
$$;

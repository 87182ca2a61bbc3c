-- What somebody may put in the way of pljobs' functions (tests_py/test_security_hijack.py): each that is used notes so in
-- evil.canary. As a superuser, in a database with the schema; it becomes hijack_mallory.
CREATE SCHEMA evil AUTHORIZATION hijack_mallory;
SET ROLE hijack_mallory;
CREATE TABLE evil.canary (what text, as_whom text);
CREATE FUNCTION evil.sing(what text) RETURNS boolean LANGUAGE sql SECURITY INVOKER
    BEGIN ATOMIC INSERT INTO evil.canary VALUES (sing.what, current_user); SELECT true; END;
GRANT USAGE ON SCHEMA evil TO PUBLIC;
GRANT ALL ON evil.canary TO PUBLIC;

-- Each function and operator of PostgreSQL that the source of pljobs could mean, with the same arguments.
DO $do$
DECLARE
    v_source text := (SELECT string_agg(p.prosrc, ' ') FROM pg_proc AS p WHERE p.pronamespace = 'pljobs'::regnamespace)
                     || (SELECT string_agg(pg_get_viewdef(c.oid), ' ') FROM pg_class AS c
                          WHERE c.relnamespace = 'pljobs'::regnamespace AND c.relkind = 'v');
    v_made record;
BEGIN
    FOR v_made IN
        SELECT p.proname, pg_get_function_arguments(p.oid) AS arguments, pg_get_function_result(p.oid) AS result,
               p.proretset, p.prorettype = 'void'::regtype AS is_void, p.pronargs,
               (SELECT string_agg('$' || i, ', ') FROM generate_series(1, p.pronargs) AS i) AS passed
          FROM pg_proc AS p
         WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND p.provariadic = 0
           AND p.prorettype <> ALL ('{trigger,internal,cstring,record}'::regtype[])
           AND NOT p.proargtypes::oid[] && ARRAY['internal', 'cstring', '"any"']::regtype[]::oid[]
           AND p.proargmodes IS NULL
           AND (v_source ~ ('\m' || p.proname || '\s*\(')
                OR EXISTS (SELECT FROM pg_operator AS o JOIN pg_proc AS f ON f.oid = o.oprcode WHERE f.proname = p.proname))
    LOOP
        BEGIN
            EXECUTE format('CREATE FUNCTION evil.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L', v_made.proname,
                           regexp_replace(v_made.arguments, ' DEFAULT [^,]*', '', 'g'), v_made.result,
                           format('BEGIN PERFORM evil.sing(%L); %s END', v_made.proname, CASE
                               WHEN v_made.is_void THEN format('PERFORM pg_catalog.%I(%s);', v_made.proname, v_made.passed)
                               WHEN v_made.proretset THEN format('RETURN QUERY SELECT * FROM pg_catalog.%I(%s);', v_made.proname, v_made.passed)
                               ELSE format('RETURN pg_catalog.%I(%s);', v_made.proname, v_made.passed) END));
        EXCEPTION WHEN OTHERS THEN NULL;  -- polymorphic in a way that PL/pgSQL can't be
        END;
    END LOOP;
    FOR v_made IN
        SELECT o.oprname, o.oprleft::regtype AS l, o.oprright::regtype AS r, p.proname
          FROM pg_operator AS o JOIN pg_proc AS p ON p.oid = o.oprcode
         WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND o.oprkind = 'b'
           AND to_regprocedure(format('evil.%I(%s,%s)', p.proname, o.oprleft::regtype, o.oprright::regtype)) IS NOT NULL
    LOOP
        EXECUTE format('CREATE OPERATOR evil.%s (FUNCTION = evil.%I, LEFTARG = %s, RIGHTARG = %s)', v_made.oprname,
                       v_made.proname, v_made.l, v_made.r);
    END LOOP;
    -- Types of PostgreSQL's names, which see what becomes one.
    FOR v_made IN SELECT unnest('{text,int8,jsonb,interval,timestamptz,int4,bool,regclass,name,float8,numeric,oid}'::text[]) AS type
    LOOP
        EXECUTE format('CREATE DOMAIN evil.%1$I AS pg_catalog.%1$I CHECK (evil.sing(%2$L))', v_made.type, 'type ' || v_made.type);
    END LOOP;
END
$do$;
CREATE TYPE evil.thing AS (a pg_catalog.text);
CREATE FUNCTION evil.thing_to_text(evil.thing) RETURNS pg_catalog.text LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.sing('cast'); RETURN 'x'; END $$;
CREATE CAST (evil.thing AS pg_catalog.text) WITH FUNCTION evil.thing_to_text AS IMPLICIT;
CREATE FUNCTION evil.text_to_thing(pg_catalog.text) RETURNS evil.thing LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.sing('cast'); RETURN NULL; END $$;
CREATE CAST (pg_catalog.text AS evil.thing) WITH FUNCTION evil.text_to_thing AS IMPLICIT;

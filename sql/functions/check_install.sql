CREATE OR REPLACE FUNCTION pljobs._inventory() RETURNS TABLE (kind text, name text, definition text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- What is in schema pljobs: one row an object, with a text that is the same on every server that has the same
-- object. A query and nothing else, so that it can also be run where this function is not, or not this one.
-- Storage settings are left out, for they are the DBA's to change; so are partitions, of which there are as
-- many as there are months in the archive; and _manifest, which holds these texts.
SELECT CASE p.prokind WHEN 'p' THEN 'procedure' ELSE 'function' END AS kind,
       format('%s(%s)', p.proname, pg_get_function_identity_arguments(p.oid)) AS name,
       encode(sha256(convert_to(concat_ws(E'\n', p.prosrc, p.prosecdef, p.provolatile, p.proisstrict,
              p.proparallel, l.lanname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid),
              array_to_string(p.proconfig, E'\n'), obj_description(p.oid, 'pg_proc')), 'UTF8')), 'hex')
       AS definition
  FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang
 WHERE p.pronamespace = to_regnamespace('pljobs') AND p.proname <> '_manifest'
UNION ALL
-- Before 16, a view of one table is shown with its columns qualified: all qualifiers are left out.
SELECT 'view', c.relname::text,
       encode(sha256(convert_to(concat_ws(E'\n', array_to_string(c.reloptions, ','),
              (SELECT string_agg(format('%s %s', a.attname, format_type(a.atttypid, a.atttypmod)), E'\n'
                                 ORDER BY a.attnum)
                 FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0),
              regexp_replace(regexp_replace(pg_get_viewdef(c.oid), '\m[a-z_]+\.(?=[a-z_])', '', 'g'),
                             '\s+', ' ', 'g'),
              obj_description(c.oid, 'pg_class')), 'UTF8')), 'hex')
  FROM pg_class AS c WHERE c.relnamespace = to_regnamespace('pljobs') AND c.relkind = 'v'
UNION ALL
SELECT CASE c.relkind WHEN 'S' THEN 'sequence' ELSE 'table' END, c.relname::text,
       concat_ws(' ', c.relpersistence, c.relreplident,
                 CASE WHEN c.relrowsecurity OR c.relforcerowsecurity THEN 'row security' END,
                 CASE WHEN c.relkind NOT IN ('r', 'S') THEN c.relkind::text END)
  FROM pg_class AS c
 WHERE c.relnamespace = to_regnamespace('pljobs') AND c.relkind NOT IN ('v', 'i', 'I', 't', 'c')
   AND NOT c.relispartition
UNION ALL
SELECT 'column', format('%s.%s', c.relname, a.attname),
       concat_ws(' ', format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'NOT NULL' END,
                 CASE WHEN a.attidentity <> '' THEN 'identity ' || a.attidentity::text END,
                 'DEFAULT ' || pg_get_expr(d.adbin, d.adrelid))
  FROM pg_class AS c
  JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
 WHERE c.relnamespace = to_regnamespace('pljobs') AND c.relkind IN ('r', 'p') AND NOT c.relispartition
UNION ALL
SELECT 'constraint', format('%s.%s', c.relname, o.conname),
       -- Whether somebody has validated it is theirs.
       regexp_replace(regexp_replace(pg_get_constraintdef(o.oid), '\s+', ' ', 'g'), ' NOT VALID$', '')
  FROM pg_constraint AS o JOIN pg_class AS c ON c.oid = o.conrelid
 WHERE o.connamespace = to_regnamespace('pljobs') AND o.contype <> 'n' AND NOT c.relispartition
UNION ALL
-- Without storage settings: those are whoever's it is.
SELECT 'index', c.relname::text, regexp_replace(pg_get_indexdef(c.oid), ' WITH \([^()]*\)(?= WHERE |$)', '')
  FROM pg_class AS c
 WHERE c.relnamespace = to_regnamespace('pljobs') AND c.relkind IN ('i', 'I') AND NOT c.relispartition
   AND NOT EXISTS (SELECT FROM pg_constraint AS o WHERE o.conindid = c.oid)
UNION ALL
SELECT 'trigger', format('%s.%s', c.relname, t.tgname), pg_get_triggerdef(t.oid)
  FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
 WHERE c.relnamespace = to_regnamespace('pljobs') AND NOT t.tgisinternal
UNION ALL
SELECT 'rule', format('%s.%s', c.relname, r.rulename), pg_get_ruledef(r.oid)
  FROM pg_rewrite AS r JOIN pg_class AS c ON c.oid = r.ev_class
 WHERE c.relnamespace = to_regnamespace('pljobs') AND r.rulename <> '_RETURN'
$$;
COMMENT ON FUNCTION pljobs._inventory() IS 'What is in schema pljobs.';

CREATE OR REPLACE FUNCTION pljobs.check_install()
RETURNS TABLE (kind text, name text, problem text, fix text)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
-- What definitions are printed with.
SET quote_all_identifiers = off
SET standard_conforming_strings = on
SET intervalstyle = postgres
SET datestyle = iso
AS $$
-- Compares schema pljobs with what this release of it should be, and names each difference and what to do
-- about it; no row: all is as it should be. Migrations, functions, views, tables, columns, constraints,
-- indexes (those left invalid by a build that broke off, too), owners, and grants: what PUBLIC has, what
-- anybody has on tables, and whether the groups have what they should, and nothing else. Changes and locks
-- nothing.
DECLARE
    v_schema oid := (SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = 'pljobs');
    v_owner oid := (SELECT n.nspowner FROM pg_namespace AS n WHERE n.nspname = 'pljobs');
BEGIN
    RETURN QUERY
    WITH expected AS (
        SELECT m.kind, m.name, m.definition FROM pljobs._manifest() AS m
    ), found AS (
        SELECT i.kind, i.name, i.definition FROM pljobs._inventory() AS i
        UNION ALL SELECT 'migration', g.name, g.checksum FROM pljobs.migration AS g
    )
    SELECT coalesce(e.kind, f.kind), coalesce(e.name, f.name),
           CASE WHEN f.name IS NULL THEN 'missing' WHEN e.name IS NULL THEN 'unknown' ELSE 'differs' END,
           CASE WHEN e.name IS NULL AND f.kind <> 'migration'
                THEN 'not of this release: drop it, if it is not there on purpose'
                WHEN coalesce(e.kind, f.kind) = 'index'
                THEN concat_ws(' ', CASE WHEN f.name IS NOT NULL
                                         THEN format('DROP INDEX CONCURRENTLY pljobs.%I;', f.name) END,
                               regexp_replace(e.definition, 'INDEX', 'INDEX CONCURRENTLY') || ';')
                WHEN e.name IS NULL THEN 'a newer release was here: install that one'
                WHEN e.kind = 'migration' AND f.name IS NOT NULL
                     THEN 'the database ran another text of it: find out which, and restore it'
                WHEN e.kind IN ('function', 'procedure', 'view', 'migration') THEN 'install again'
                ELSE 'should be: ' || e.definition END
      FROM expected AS e FULL JOIN found AS f ON f.kind = e.kind AND f.name = e.name
     WHERE e.definition IS DISTINCT FROM f.definition
       AND (e.name IS NOT NULL OR f.name !~ '_cc(new|old)\d*$')
     ORDER BY 1, 2;

    RETURN QUERY
    SELECT 'index', c.relname::text, 'invalid',
           -- What an interrupted REINDEX CONCURRENTLY has left is of no use to anybody.
           format(CASE WHEN c.relname ~ '_cc(new|old)\d*$' THEN 'DROP INDEX CONCURRENTLY pljobs.%I;'
                       ELSE 'REINDEX INDEX CONCURRENTLY pljobs.%I;' END, c.relname)
      FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
     WHERE c.relnamespace = v_schema AND NOT (i.indisvalid AND i.indisready) ORDER BY 2;

    RETURN QUERY
    SELECT o.kind, o.name, format('belongs to %s', o.owner::regrole),
           format('ALTER %s %s OWNER TO %s;', o.what, o.name, v_owner::regrole)
      FROM (SELECT 'function' AS kind, p.oid::regprocedure::text AS name, p.proowner AS owner,
                   'ROUTINE' AS what
              FROM pg_proc AS p WHERE p.pronamespace = v_schema
            UNION ALL
            SELECT CASE c.relkind WHEN 'v' THEN 'view' WHEN 'S' THEN 'sequence' ELSE 'table' END,
                   c.oid::regclass::text, c.relowner,
                   CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END
              FROM pg_class AS c
             WHERE c.relnamespace = v_schema AND c.relkind IN ('r', 'p', 'v', 'S')
               -- An identity's sequence is always its table's owner's.
               AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = c.oid AND d.deptype = 'i'
                                  AND c.relkind = 'S')) AS o
     WHERE o.owner <> v_owner ORDER BY 1, 2;

    RETURN QUERY
    WITH granted AS (
        SELECT 'schema' AS kind, n.oid, 'pljobs' AS name, 'SCHEMA pljobs' AS what, a.grantee,
               a.privilege_type, a.is_grantable
          FROM pg_namespace AS n
         CROSS JOIN LATERAL aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) AS a
         WHERE n.oid = v_schema
        UNION ALL
        SELECT 'function', p.oid, p.proname::text, 'ROUTINE ' || p.oid::regprocedure::text, a.grantee,
               a.privilege_type, a.is_grantable
          FROM pg_proc AS p
         CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
         WHERE p.pronamespace = v_schema AND a.grantee <> p.proowner
        UNION ALL
        SELECT CASE c.relkind WHEN 'v' THEN 'view' WHEN 'S' THEN 'sequence' ELSE 'table' END, c.oid,
               c.relname::text,
               format('%s %s', CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, c.oid::regclass),
               a.grantee, a.privilege_type, a.is_grantable
          FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a
         WHERE c.relnamespace = v_schema AND c.relkind IN ('r', 'p', 'v', 'S') AND a.grantee <> c.relowner
        UNION ALL
        SELECT CASE c.relkind WHEN 'v' THEN 'view' ELSE 'table' END, c.oid, c.relname::text,
               format('TABLE %s', c.oid::regclass), a.grantee, a.privilege_type || ' (some columns)',
               a.is_grantable
          FROM pg_class AS c
          JOIN pg_attribute AS t ON t.attrelid = c.oid
         CROSS JOIN LATERAL aclexplode(t.attacl) AS a
         WHERE c.relnamespace = v_schema AND c.relkind IN ('r', 'p', 'v')
    ), listed AS (
        SELECT p.kind, p.name, r.oid AS grantee,
               CASE p.kind WHEN 'schema' THEN 'USAGE' WHEN 'view' THEN 'SELECT' ELSE 'EXECUTE' END
               AS privilege_type
          FROM pljobs._privileges() AS p CROSS JOIN LATERAL unnest(p.grantees) AS g(name)
          JOIN pg_roles AS r ON r.rolname = g.name
         -- What is missing is said above, once.
         WHERE EXISTS (SELECT FROM pg_proc AS f WHERE f.pronamespace = v_schema AND f.proname = p.name)
            OR EXISTS (SELECT FROM pg_class AS c WHERE c.relnamespace = v_schema AND c.relname = p.name)
            OR p.kind = 'schema'
    )
    SELECT coalesce(l.kind, g.kind), coalesce(l.name, g.name),
           CASE WHEN g.oid IS NULL
                THEN format('%s is not granted to %s', l.privilege_type, l.grantee::regrole)
                ELSE format('%s%s is granted to %s', g.privilege_type,
                            CASE WHEN g.is_grantable THEN ', to pass on,' END,
                            CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::regrole::text END) END,
           CASE WHEN g.oid IS NULL THEN 'install again'
                ELSE format('REVOKE ALL ON %s FROM %s;', g.what,
                            CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::regrole::text END) END
      FROM listed AS l
      FULL JOIN granted AS g ON g.kind = l.kind AND g.name = l.name AND g.grantee = l.grantee
                            AND g.privilege_type = l.privilege_type AND NOT g.is_grantable
     WHERE (g.oid IS NULL OR l.name IS NULL)
       -- A DBA may let single roles use single functions and views: for where there are no groups.
       AND (g.oid IS NULL OR g.grantee <> v_owner AND (
            g.grantee = 0 OR g.kind IN ('table', 'sequence') OR g.is_grantable OR g.name LIKE '\_%'
            OR g.kind = 'schema' AND g.privilege_type <> 'USAGE'
            OR g.kind = 'view' AND g.privilege_type NOT LIKE 'SELECT%'
            OR EXISTS (SELECT FROM pljobs._privileges() AS p CROSS JOIN LATERAL unnest(p.grantees) AS u(name)
                         JOIN pg_roles AS r ON r.rolname = u.name WHERE r.oid = g.grantee)))
     ORDER BY 1, 2, 3;
END
$$;
COMMENT ON FUNCTION pljobs.check_install()
    IS 'Names what differs from what this release should be: SELECT * FROM check_install();';

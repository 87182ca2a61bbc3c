"""What an install refuses to run over, and what it makes of rights that were granted by hand."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from matrix import GROUPS, read_matrix
from pljobs import exceptions, install, install_check
from pljobs.embedded import EmbeddedServerError, Server

REPO = Path(__file__).parent.parent
OLD = REPO / "tests_py" / "releases" / "pljobs-0.1.0-py3-none-any.whl"
EVIL, DBO = "install_evil", "install_dbo"
# Each is run when an install, or what looks whether there is something to install, comes by.
TRAPS = {
    "a trigger on the ledger": """
        CREATE TABLE pljobs.migration (name text PRIMARY KEY, checksum text,
            applied_at timestamptz DEFAULT now(), applied_by text DEFAULT session_user);
        CREATE TRIGGER trap BEFORE INSERT ON pljobs.migration FOR EACH ROW EXECUTE FUNCTION pljobs.trap();
    """,
    "a view for a ledger": """
        CREATE VIEW pljobs.migration AS SELECT pljobs.spring() AS name, 'x'::text AS checksum;
        GRANT SELECT ON pljobs.migration TO PUBLIC;
    """,
    "a default in the ledger": """
        CREATE TABLE pljobs.migration (name text PRIMARY KEY, checksum text,
            applied_at timestamptz DEFAULT now(), applied_by text DEFAULT pljobs.spring());
    """,
    "a function that fits better": """
        CREATE FUNCTION pljobs._lock_relations() RETURNS void LANGUAGE sql AS 'SELECT pljobs.spring()';
    """,
    "what is asked whether all is well": """
        CREATE TABLE pljobs.migration (name text PRIMARY KEY, checksum text);
        CREATE FUNCTION pljobs.check_install() RETURNS TABLE (kind text, name text, problem text, fix text)
            LANGUAGE sql AS 'SELECT pljobs.spring(), NULL, NULL, NULL';
    """,
}
SPRUNG = """
    CREATE FUNCTION pljobs.spring() RETURNS text LANGUAGE plpgsql AS $$
    BEGIN
        EXECUTE 'RESET ROLE';
        EXECUTE 'CREATE TABLE public.sprung AS SELECT current_user AS as_whom';
        RETURN 'x';
    END $$;
    CREATE FUNCTION pljobs.trap() RETURNS trigger LANGUAGE plpgsql
        AS 'BEGIN PERFORM pljobs.spring(); RETURN NEW; END';
    GRANT USAGE ON SCHEMA pljobs TO PUBLIC;
"""


@pytest.fixture
def logins(server: Server, template: str, empty_db_url: str) -> Iterator[psycopg.Connection]:
    """A superuser's connection to an empty database, in which two logins may create schemas."""
    with psycopg.connect(empty_db_url, autocommit=True) as conn:
        for login in (EVIL, DBO):
            conn.execute(f"CREATE ROLE {login} LOGIN".encode())
            conn.execute(f"GRANT CREATE ON DATABASE {conn.info.dbname} TO {login}".encode())
        conn.execute(f"GRANT CREATE ON SCHEMA public TO {DBO}".encode())
        try:
            yield conn
        finally:
            conn.execute("DROP SCHEMA IF EXISTS pljobs CASCADE")
            for login in (EVIL, DBO):
                conn.execute(f"DROP OWNED BY {login}; DROP ROLE {login}".encode())


def as_login(conn: psycopg.Connection, login: str) -> psycopg.Connection:
    return psycopg.connect(make_conninfo(conn.info.dsn, user=login), autocommit=True)


def with_psql(server: Server, conn: psycopg.Connection, sql: Path = REPO / "sql") -> None:
    server.run_sql(f"BEGIN;\n\\i '{sql / 'install.sql'}'\nCOMMIT;", conn.info.dbname)


def sprung(conn: psycopg.Connection) -> object:
    row = conn.execute("SELECT to_regclass('public.sprung')").fetchone()
    assert row is not None
    return row[0]


def test_what_the_owners_default_privileges_say_is_not_for_this_schema(logins: psycopg.Connection) -> None:
    defaults = "ALTER DEFAULT PRIVILEGES FOR ROLE pljobs_owner GRANT ALL ON"
    for kind in ("TABLES", "SEQUENCES", "FUNCTIONS"):
        logins.execute(f"{defaults} {kind} TO {EVIL}".encode())
    install.migrate(logins)
    assert install_check.check(logins) == []
    assert logins.execute("SELECT * FROM pljobs.check_install()").fetchall() == []
    for table in ("pljobs.job", "pljobs.jobs"):
        can = logins.execute("SELECT has_table_privilege(%s, %s, 'SELECT')", [EVIL, table]).fetchone()
        assert can == (False,)


# Into a schema that is somebody else's


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("whose", ["a superuser", "the database's owner"])
def test_nothing_is_installed_into_a_schema_of_somebody_elses(
    server: Server, logins: psycopg.Connection, trap: str, whose: str
) -> None:
    with as_login(logins, EVIL) as evil:
        evil.execute(("CREATE SCHEMA pljobs;" + SPRUNG + TRAPS[trap]).encode())

    if whose == "a superuser":
        with pytest.raises(exceptions.MigrationEdited, match=f"SET ROLE {EVIL}"):
            install.migrate(logins)
        with pytest.raises(exceptions.MigrationEdited):
            install_check.check(logins)
        with pytest.raises(exceptions.MigrationEdited):
            install_check.plan(logins)
        with pytest.raises(EmbeddedServerError, match=f"belongs to {EVIL}"):
            with_psql(server, logins)
    else:
        with as_login(logins, DBO) as dbo:
            with pytest.raises(exceptions.MigrationEdited, match="belongs to another role"):
                install.migrate(dbo)
            with pytest.raises(exceptions.MigrationEdited):
                install_check.plan(dbo)
    assert sprung(logins) is None


def test_what_another_role_says_about_indexes_is_not_run(server: Server, logins: psycopg.Connection) -> None:
    with as_login(logins, EVIL) as evil:
        evil.execute(
            """CREATE SCHEMA pljobs; GRANT USAGE ON SCHEMA pljobs TO PUBLIC;
            CREATE FUNCTION pljobs.check_install()
            RETURNS TABLE (kind text, name text, problem text, fix text) LANGUAGE sql
            AS $$SELECT 'index', 'x', 'missing', 'RESET ROLE; CREATE TABLE public.sprung ();'$$"""
        )
    with pytest.raises(EmbeddedServerError, match="schema pljobs belongs to another role"):
        server.run_sql(f"\\i '{REPO / 'sql' / 'indexes.sql'}'", logins.info.dbname)
    assert sprung(logins) is None


@pytest.mark.parametrize("trap", [trap for trap in TRAPS if "fits better" in trap or "default" in trap])
def test_nothing_is_installed_over_things_of_others(logins: psycopg.Connection, trap: str) -> None:
    with as_login(logins, DBO) as dbo:
        dbo.execute(f"CREATE SCHEMA pljobs; GRANT ALL ON SCHEMA pljobs TO {EVIL}".encode())
        with as_login(logins, EVIL) as evil:
            evil.execute((SPRUNG.replace("GRANT USAGE", "-- GRANT USAGE") + TRAPS[trap]).encode())
        with pytest.raises(exceptions.MigrationEdited, match=f"things of others: .*{EVIL}"):
            install.migrate(dbo)
    assert sprung(logins) is None


def test_nothing_is_installed_where_everybody_may_create(logins: psycopg.Connection) -> None:
    with as_login(logins, DBO) as dbo:
        dbo.execute("CREATE SCHEMA pljobs; GRANT CREATE ON SCHEMA pljobs TO PUBLIC")
        with pytest.raises(exceptions.MigrationEdited, match="anybody may create"):
            install.migrate(dbo)


def test_a_database_owner_who_is_no_superuser_installs(logins: psycopg.Connection) -> None:
    with as_login(logins, DBO) as dbo:
        install.migrate(dbo)
        assert install_check.check(dbo) == []
        assert install.migrate(dbo) == ()
        assert privileges(logins) == of_the_matrix()


# Rights that were granted by hand


DRIFT = f"""
GRANT SELECT, UPDATE ON pljobs.job TO {EVIL};
GRANT SELECT (args) ON pljobs.job TO {EVIL};
GRANT UPDATE ON pljobs.job, pljobs.worker TO pljobs_producer;
GRANT SELECT (args) ON pljobs.job TO pljobs_reader;
GRANT USAGE ON SEQUENCE pljobs.run_id TO {EVIL}, pljobs_producer;
GRANT EXECUTE ON FUNCTION pljobs._caller() TO {EVIL}, pljobs_producer, PUBLIC;
GRANT EXECUTE ON FUNCTION pljobs.rescue_jobs() TO PUBLIC, pljobs_producer;
GRANT SELECT ON pljobs.queues TO PUBLIC;
GRANT INSERT ON pljobs.queue_limits TO pljobs_worker;
GRANT CREATE ON SCHEMA pljobs TO pljobs_producer, {EVIL};
"""


def privileges(conn: psycopg.Connection) -> set[tuple[str, str, str]]:
    """Whoever else than the owner has what on what."""
    found = conn.execute(
        "SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END,"
        " a.privilege_type, g.name"
        " FROM pg_namespace AS n CROSS JOIN LATERAL ("
        "   SELECT 'schema' AS name, coalesce(n.nspacl, acldefault('n', n.nspowner)) AS acl"
        "   UNION ALL SELECT p.proname, coalesce(p.proacl, acldefault('f', p.proowner)) FROM pg_proc AS p"
        "              WHERE p.pronamespace = n.oid"
        "   UNION ALL SELECT c.relname, c.relacl FROM pg_class AS c WHERE c.relnamespace = n.oid"
        "   UNION ALL SELECT c.relname || '.' || t.attname, t.attacl FROM pg_class AS c"
        "              JOIN pg_attribute AS t ON t.attrelid = c.oid WHERE c.relnamespace = n.oid) AS g"
        " CROSS JOIN LATERAL aclexplode(g.acl) AS a"
        " WHERE n.nspname = 'pljobs' AND a.grantee <> n.nspowner"
    ).fetchall()
    return set(found)


def of_the_matrix() -> set[tuple[str, str, str]]:
    return {(f"pljobs_{group}", "USAGE", "schema") for group in GROUPS} | {
        (grantee, "SELECT" if row.kind == "view" else "EXECUTE", row.name)
        for row in read_matrix().values()
        for grantee in row.grantees
    }


def test_an_install_grants_the_matrix_and_nothing_else(logins: psycopg.Connection) -> None:
    install.migrate(logins)
    assert privileges(logins) == of_the_matrix()


def test_an_install_takes_back_what_the_groups_and_everybody_were_given_and_names_the_rest(
    logins: psycopg.Connection,
) -> None:
    install.migrate(logins)
    logins.execute(DRIFT.encode())
    assert len(install_check.check(logins)) == 17
    install.migrate(logins)

    left = {right for right in privileges(logins) if right[0] == EVIL}
    assert privileges(logins) == of_the_matrix() | left
    assert {
        (difference.kind, difference.name, difference.problem) for difference in install_check.check(logins)
    } == {
        ("table", "job", f"SELECT is granted to {EVIL}"),
        ("table", "job", f"UPDATE is granted to {EVIL}"),
        ("table", "job", f"SELECT (some columns) is granted to {EVIL}"),
        ("sequence", "run_id", f"USAGE is granted to {EVIL}"),
        ("function", "_caller", f"EXECUTE is granted to {EVIL}"),
        ("schema", "pljobs", f"CREATE is granted to {EVIL}"),
    }
    # What it says to do is what helps.
    for difference in install_check.check(logins):
        logins.execute(difference.fix.encode())
    assert install_check.check(logins) == []
    assert privileges(logins) == of_the_matrix()


def test_an_upgrade_leaves_nobody_with_more_than_the_matrix(
    server: Server, logins: psycopg.Connection, tmp_path: Path
) -> None:
    with zipfile.ZipFile(OLD) as wheel:
        wheel.extractall(tmp_path)
    with_psql(server, logins, tmp_path / "pljobs" / "sql")
    logins.execute("GRANT UPDATE ON pljobs.job TO pljobs_producer; GRANT SELECT ON pljobs.job TO PUBLIC")
    with_psql(server, logins)

    assert privileges(logins) == of_the_matrix()
    pinned = logins.execute(
        "SELECT proname FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace"
        " WHERE n.nspname = 'pljobs' AND (p.proowner <> n.nspowner OR p.prokind = 'f'"
        " AND 'search_path=pg_catalog, pg_temp' <> ALL (coalesce(p.proconfig, '{}')))"
    ).fetchall()
    assert pinned == []


@pytest.mark.parametrize("upgraded", [False, True], ids=["before the upgrade", "after it"])
def test_the_schema_of_an_older_release_can_be_handed_to_the_owner_role(
    server: Server, logins: psycopg.Connection, tmp_path: Path, upgraded: bool
) -> None:
    with zipfile.ZipFile(OLD) as wheel:
        wheel.extractall(tmp_path)
    with_psql(server, logins, tmp_path / "pljobs" / "sql")
    if upgraded:
        with_psql(server, logins)
    page = (REPO / "docs" / "security.md").read_text()
    (handing_over,) = [
        block.split("```")[0] for block in page.split("```sql\n")[1:] if block.startswith("DO $$")
    ]
    logins.execute(handing_over.encode())
    with_psql(server, logins)

    owners = logins.execute(
        "SELECT proowner::regrole::text FROM pg_proc WHERE pronamespace = 'pljobs'::regnamespace UNION"
        " SELECT relowner::regrole::text FROM pg_class WHERE relnamespace = 'pljobs'::regnamespace UNION"
        " SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'pljobs'"
    ).fetchall()
    assert owners == [("pljobs_owner",)]
    assert privileges(logins) == of_the_matrix()

"""Nothing that a caller puts in the way is ever found: functions, operators, types, temporary tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pljobs.embedded import Server
from public_calls import PublicCall, Values, public_calls

DECOYS = Path(__file__).parent.parent / "tests_sql" / "lib" / "decoys.sql"
# What a session of the victim's is led to have: names of ours, in front of everything.
TRAPS = """
CREATE TEMP TABLE {name} (id bigint, status text);
CREATE FUNCTION pg_temp.{name}_trap() RETURNS trigger LANGUAGE plpgsql
    AS $$ BEGIN PERFORM evil.sing('temp table {name}'); RETURN NULL; END $$;
CREATE TRIGGER trap BEFORE INSERT OR UPDATE OR DELETE ON pg_temp.{name}
    EXECUTE FUNCTION pg_temp.{name}_trap();
"""
SETTINGS = (
    "SET search_path = evil, pg_temp, pljobs, pg_catalog",
    "SET standard_conforming_strings = off",
    "SET transform_null_equals = on",
    "SET array_nulls = off",
    "SET TimeZone = 'Antarctica/Troll'",
)


@pytest.fixture(scope="module")
def trapped(server: Server, template: str) -> Iterator[psycopg.Connection]:
    """A superuser's connection to a database in which mallory has set his traps."""
    url = server.create_database("hijack", template)
    server.run_sql(
        "CREATE ROLE hijack_mallory LOGIN; CREATE ROLE hijack_ops LOGIN; GRANT pljobs_operator TO hijack_ops"
    )
    try:
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(DECOYS.read_bytes())
            conn.execute("RESET ROLE")
            yield conn
    finally:
        server.drop_database("hijack")
        server.run_sql("DROP ROLE hijack_mallory; DROP ROLE hijack_ops")


@pytest.fixture
def victim(server: Server, trapped: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """An operator's session with everything in the way that can be."""
    with psycopg.connect(make_conninfo(server.url("hijack"), user="hijack_ops"), autocommit=True) as conn:
        for (name,) in trapped.execute(
            "SELECT relname FROM pg_class"
            " WHERE relnamespace = 'pljobs'::regnamespace AND relkind IN ('r', 'v')"
        ).fetchall():
            conn.execute(TRAPS.format(name=name).encode())
        for setting in SETTINGS:
            conn.execute(setting.encode())
        yield conn


def sung(conn: psycopg.Connection) -> list[tuple[str, str]]:
    found = conn.execute("SELECT DISTINCT what, as_whom FROM evil.canary ORDER BY 1").fetchall()
    conn.execute("TRUNCATE evil.canary")
    return found


def a_job(conn: psycopg.Connection, queue: str = "q") -> int:
    row = conn.execute("SELECT pljobs.defer_job('t', queue => %s)", [queue]).fetchone()
    assert row is not None
    return int(row[0])


def a_worker(conn: psycopg.Connection) -> int:
    row = conn.execute("SELECT pljobs.register_worker_v2('w', 'h', 1, 2)").fetchone()
    assert row is not None
    return int(row[0])


def tried(conn: psycopg.Connection, call: PublicCall, values: Values, *given: str) -> str | None:
    """Make the call; return the code of its error."""
    try:
        conn.execute(call.statement(*given).encode(), {name: values[name] for name in call.types})
    except psycopg.Error as error:
        return error.sqlstate
    return None


def test_the_traps_would_catch_who_looks_for_names_of_his_own_path(
    trapped: psycopg.Connection, victim: psycopg.Connection
) -> None:
    decoys = trapped.execute(
        "SELECT count(*) FILTER (WHERE k = 'f'), count(*) FILTER (WHERE k = 'o') FROM ("
        " SELECT 'f' AS k FROM pg_proc WHERE pronamespace = 'evil'::regnamespace UNION ALL"
        " SELECT 'o' FROM pg_operator WHERE oprnamespace = 'evil'::regnamespace) AS d"
    ).fetchone()
    assert decoys is not None
    assert decoys[0] > 300
    assert decoys[1] > 300
    for naive in (
        "SELECT md5('x')", "SELECT pg_catalog.int8 '1' = pg_catalog.int8 '1'", "SELECT clock_timestamp()",
        "SELECT 'x'::text", "UPDATE job SET status = 'x'", "SELECT pg_has_role(1::pg_catalog.oid, 'USAGE')",
    ):  # fmt: skip
        sung(trapped)
        victim.execute(naive.encode())
        assert sung(trapped), naive


def test_no_function_finds_what_its_caller_has_put_in_the_way(
    trapped: psycopg.Connection, victim: psycopg.Connection
) -> None:
    sung(trapped)
    answered = 0
    for call in public_calls(trapped):
        # Nobody waits here.
        for given in (("timeout",) if call.is_procedure else (), tuple(call.types)):
            said = tried(victim, call, Values(a_job(trapped), a_worker(trapped)), *given)
            answered += said is None
            assert said in {None, *SAID}, call.name
            assert sung(trapped) == [], call.name
    assert answered > 60


def test_a_whole_life_of_a_job_finds_nothing_either(
    trapped: psycopg.Connection, victim: psycopg.Connection
) -> None:
    calls = {call.name: call for call in public_calls(trapped)}
    sung(trapped)

    def run(name: str, **given: object) -> list[tuple[object, ...]]:
        call = calls[name]
        return victim.execute(call.statement(*given).encode(), given).fetchall()

    worker = a_worker(trapped)
    job: object = None
    for outcome in ("succeeded", "failed", "aborted", "killed", "interrupted", "abandoned"):
        (job,) = run(
            "defer_job", task="t", queue=f"q {outcome}", lock=f"lane {outcome}", on_cancelled="after"
        )[0]
        (_, run_id, *_) = run("fetch_jobs_v1", worker_id=worker, queues=[f"q {outcome}"], max_jobs=1)[0]
        seen = f'[{{"job_id": {job}, "run_id": {run_id}, "progress": 0.5, "handling": "handling"}}]'
        run("heartbeat_v1", worker_id=worker, run_ids=[run_id], observed=seen, loop_lag="1 s")
        if outcome in {"aborted", "killed"}:
            run("cancel_job_v1", job_id=job, abort=True, grace="0 s", sql=True)
        run("heartbeat_v1", worker_id=worker, run_ids=[run_id], observed=seen)
        end = f'[{{"job_id": {job}, "run_id": {run_id}, "outcome": "{outcome}", "retry_in": "1 s"}}]'
        run("finish_jobs_v1", runs=end)
    run("cancel_tree_v1", root=job, force=True)
    run("rescue_jobs_v1")
    jobs, others = ("jobs", "stalled_jobs", "history"), ("requests", "stuck_aborts", "workers", "queues")
    for view in (*jobs, *others, "queue_limits"):
        victim.execute(f"SELECT * FROM pljobs.{view}".encode())
    assert sung(trapped) == []


def test_an_install_finds_nothing_either(trapped: psycopg.Connection) -> None:
    from pljobs import install, install_check

    sung(trapped)
    trapped.execute("SET search_path = evil, pljobs, pg_catalog")
    trapped.execute("DROP FUNCTION pljobs.rescue_jobs()")
    try:
        install.migrate(trapped)
        assert install_check.check(trapped) == []
    finally:
        trapped.execute("RESET search_path")
    assert sung(trapped) == []


# Names that could be taken for SQL

NASTY = [
    "'; SELECT evil.sing('injected'); --",
    "\\'; SELECT evil.sing('injected'); --",
    "$$; SELECT evil.sing('injected'); $$",
    "')); DROP TABLE pljobs.job; --",
    '"; SELECT evil.sing(1); --',
    "%s %I %L %1$s",
    "{a,b}",
    '{"a": 1}',
    "*",
    "null",
    "none",
    "\\",
    "''",
    "a.b",
    "e\u0301\u202e",
    "pljobs_worker_1",
    "x" * 255,
]
SAID = {"PJ001", "PJ002", "PJ003", "PJ004", "PJ008", "PJ010", "PJ011", "22P02", "22007", "22023", "22001"}


def catalogue(conn: psycopg.Connection) -> object:
    return conn.execute(
        "SELECT md5(string_agg(d, '' ORDER BY d)) FROM ("
        " SELECT prosrc || proacl::text || proowner AS d FROM pg_proc"
        " WHERE pronamespace = 'pljobs'::regnamespace UNION ALL"
        " SELECT attrelid::text || attname FROM pg_attribute JOIN pg_class AS c ON c.oid = attrelid"
        " WHERE c.relnamespace = 'pljobs'::regnamespace UNION ALL"
        " SELECT rolname || rolsuper FROM pg_roles) AS x"
    ).fetchone()


@pytest.mark.parametrize("strings", ["on", "off"])
def test_no_text_is_taken_for_sql(
    trapped: psycopg.Connection, victim: psycopg.Connection, strings: str
) -> None:
    before = catalogue(trapped)
    victim.execute(f"SET standard_conforming_strings = {strings}".encode())
    sung(trapped)
    times = 0
    for call in public_calls(trapped):
        for name in call.of_type("pg_catalog.text", "pg_catalog._text", "pg_catalog.jsonb"):
            for nasty in NASTY:
                values = Values(1, 1, more={name: _as(call.types[name], name, nasty)})
                said = tried(victim, call, values, name)
                assert said in {None, *SAID}, f"{call.name}, {name} = {nasty}"
                times += 1
    assert times > 1000
    assert sung(trapped) == []
    assert catalogue(trapped) == before


def _as(of: str, name: str, nasty: str) -> object:
    from psycopg.types.json import Jsonb

    if of == "pg_catalog._text":
        return [nasty]
    if of == "pg_catalog.text":
        return nasty
    if name in {"jobs", "runs", "observed"}:
        keys = (
            *("task", "queue", "lock", "queueing_lock", "on_cancelled", "outcome", "message", "error"),
            *("retry_in", "retry_queue", "progress_message", "handling", "sql"),
        )
        return Jsonb([{"job_id": 1, "run_id": 1, **dict.fromkeys(keys, nasty)}])
    return Jsonb({"task": nasty, "queue": nasty, nasty: nasty})

"""What the documentation shows is run: its SQL, its Python, its links, and the worker in bash."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import psycopg
import pytest

from pljobs.embedded import Server, environment
from waiting import DEADLINE, wait_until

REPO = Path(__file__).parent.parent
PAGES = sorted(
    [
        *(REPO / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        REPO / "sql" / "README.md",
        REPO / "examples" / "README.md",
        REPO / "benchmarks" / "README.md",
        *(REPO / "docs").rglob("*.md"),
    ]
)
# README.md's are test_readme.py's. Named, so that a page whose blocks are no longer found is missed.
WITH_SQL = ["cancelling.md", "operating.md", "security.md", "sql-contract.md"]
WORKER = REPO / "examples" / "bash" / "worker.sh"

# What a page's SQL finds: a worker (1) that runs job 33, and jobs in every other state.
SCENE = """
ALTER TABLE pljobs.job ALTER COLUMN id RESTART WITH 30;
SELECT pljobs.register_worker_v1('mailer', 'host', 4711);
SELECT pljobs.defer_job('shop.ended', queue => 'scene'), pljobs.defer_job('shop.broken', queue => 'scene'),
       pljobs.defer_job('shop.cancelled', queue => 'scene'),
       pljobs.defer_job('shop.send_mail', queue => 'scene');
SELECT pljobs.cancel_job(32);
SELECT pljobs.fetch_jobs_v1(1, 10, queues => '{scene}');
SELECT pljobs.finish_jobs_v1('[{"job_id": 30, "run_id": 1, "outcome": "succeeded"},
    {"job_id": 31, "run_id": 2, "outcome": "failed", "message": "ValueError: no", "error": "Traceback"}]');
SELECT pljobs.defer_job('shop.send_mail', '{"to": "ann"}', queue => 'mail');
"""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str
    line: int
    language: str
    text: str


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    found = [
        Block(
            page=str(page.relative_to(REPO)),
            line=text.count("\n", 0, match.start()) + 1,
            language=match[1],
            text=match[2],
        )
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]
    return [block for block in found if block.language in languages]


def run_sql(server: Server, dbname: str, block: Block, *variables: str) -> str:
    """Run a block in psql; each `-- word` after a statement is the answer that it must give."""
    command = [*server.psql_command(dbname), "-XqAt", "-v", "ON_ERROR_STOP=1", *variables]
    done = subprocess.run(
        command, input=block.text, capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 0, f"{block.page}:{block.line}: {done.stderr}"
    expected = re.findall(r";\s+-- (\S+)$", block.text, re.MULTILINE)
    answered = done.stdout.split("\n")
    for answer in expected:
        assert answer in answered, f"{block.page}:{block.line}: no {answer!r} in {answered}"
        answered = answered[answered.index(answer) + 1 :]
    return done.stdout


def documented(words: str) -> Block:
    """The one block of operating.md that has these words in it, for tests of what it does."""
    (found,) = (
        block for block in blocks(REPO / "docs" / "operating.md", "sql", "shell") if words in block.text
    )
    return found


async def run_python(block: Block, names: dict[str, object]) -> None:
    """Run a block, which may await, in these names; `# True` and its like after an expression must be so."""
    claim = re.compile(r"^(\s*)(\S.*?)  # (True|False)\b.*$", re.MULTILINE)
    text = claim.sub(r"\1assert (\2) is \3", block.text)
    code: CodeType = compile(
        "\n" * block.line + text,
        block.page,
        "exec",
        flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
    )
    answer = eval(code, names)
    if inspect.isawaitable(answer):
        await answer


@pytest.fixture
async def app_db(
    server: Server, template: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[psycopg.AsyncConnection]:
    """The database that pages call `app`, found by libpq's variables, as readers have it."""
    url = server.create_database("app", template)
    monkeypatch.setenv("PGHOST", str(server.base))
    monkeypatch.setenv("PGUSER", "postgres")
    monkeypatch.setenv("PGDATABASE", "app")
    monkeypatch.setenv("PATH", f"{server.bin_dir}{os.pathsep}{os.environ['PATH']}")
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        yield connection
    server.drop_database("app")


def test_the_pages_with_sql_are_all_known() -> None:
    found = {str(page.relative_to(REPO)) for page in PAGES if blocks(page, "sql")}
    assert found == {"README.md", "sql/README.md", *(f"docs/{name}" for name in WITH_SQL)}


@pytest.mark.parametrize("page", [*(REPO / "docs" / name for name in WITH_SQL), REPO / "sql" / "README.md"])
def test_the_sql_of_a_page_runs_and_answers_as_it_says(server: Server, template: str, page: Path) -> None:
    found = blocks(page, "sql")
    assert found
    server.create_database("page", template)
    try:
        server.run_sql(SCENE, "page")
        for block in found:
            run_sql(server, "page", block)
    finally:
        server.drop_database("page")


async def test_the_python_of_the_python_page_runs(app_db: psycopg.AsyncConnection) -> None:
    names: dict[str, object] = {"__name__": "shop"}
    found = blocks(REPO / "docs" / "python.md", "python")
    assert found
    for block in found:
        await run_python(block, names)


def test_no_other_page_has_python() -> None:
    # That of migrations.md is for other tools: test_migration_tools.py.
    found = {str(page.relative_to(REPO)) for page in PAGES if blocks(page, "python")}
    assert found == {"README.md", "docs/python.md", "docs/migrations.md"}


def anchors(page: Path) -> set[str]:
    """What the headings of a page can be linked to by, as GitHub makes it of them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_pages_lead_somewhere() -> None:
    links = 0
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text()):
            if "://" in target:
                continue
            links += 1
            found = page.parent / target if target else page
            assert found.exists(), f"{page.name} links to {target}"
            if anchor:
                assert anchor in anchors(found), f"{page.name} links to {target}#{anchor}"
    assert links > 100


def test_the_sql_page_states_every_versioned_function(conn: psycopg.Connection) -> None:
    text = (REPO / "docs" / "sql-contract.md").read_text()
    functions = conn.execute(
        "SELECT p.proname, coalesce(p.proargnames[1:p.pronargs], '{}') FROM pg_proc AS p"
        " WHERE p.pronamespace = 'pljobs'::regnamespace AND p.proname ~ '_v[0-9]+$'"
    ).fetchall()
    assert functions
    for name, arguments in functions:
        heading = re.search(rf"^{name}\((.*?)\)", text, re.MULTILINE | re.DOTALL)
        assert heading, f"the contract does not state {name}"
        for argument in arguments:
            assert re.search(rf"\b{argument}\b", heading[1]), f"the contract: {name} without {argument}"


def test_the_sql_page_states_every_error_code() -> None:
    text = (REPO / "docs" / "sql-contract.md").read_text()
    raised = {
        code for path in (REPO / "sql").rglob("*.sql") for code in re.findall(r"'(PJ\d+)'", path.read_text())
    } - {"PJ000"}  # caught where it is raised
    assert raised == set(re.findall(r"^\| (PJ\d+)", text, re.MULTILINE))


def test_the_cancelling_page_states_every_outcome() -> None:
    text = (REPO / "docs" / "cancelling.md").read_text()
    body = (REPO / "sql" / "functions" / "cancel_job.sql").read_text().split("DECLARE")[0]
    outcomes = set(re.findall(r"'(\w+)'", body)) & set(calls_outcomes())
    assert len(outcomes) == 9
    assert outcomes <= set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE))


def calls_outcomes() -> list[str]:
    """The outcomes that the driver knows."""
    from typing import get_args

    from pljobs.answers import CancelOutcome

    return list(get_args(CancelOutcome))


# The worker in bash


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of tasks."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, body in {
        "hello": 'read -r args; echo "got $args"',
        "broken": "echo no >&2; exit 3",
        "slow": "sleep 60",
        "stubborn": f"trap '' TERM; touch {shlex.quote(str(tmp_path / 'deaf'))}; sleep 60",
    }.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def bash_worker(server: Server, conn: psycopg.Connection, tasks: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The example worker, running these tasks."""
    env = {
        **environment(),
        "PGHOST": str(server.base),
        "PGUSER": "postgres",
        "PGDATABASE": conn.info.dbname,
        "PATH": f"{server.bin_dir}{os.pathsep}{os.environ['PATH']}",
        "POLL": "0.1",
        "LEASE": "20",
    }
    with subprocess.Popen([str(WORKER), str(tasks)], env=env) as process:
        yield process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=DEADLINE) == 0


def defer(conn: psycopg.Connection, task: str, args: str = "{}") -> int:
    row = conn.execute("SELECT pljobs.defer_job(%s, %s)", [task, args]).fetchone()
    assert row is not None
    return int(row[0])


def wait_for(conn: psycopg.Connection, job_id: int, status: str) -> dict[str, object]:
    def look() -> dict[str, object] | None:
        with conn.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            row = cursor.execute("SELECT * FROM pljobs.jobs WHERE id = %s", [job_id]).fetchone()
        return row if row is not None and row["status"] == status else None

    found = wait_until(look, what=f"job {job_id} is {status}")
    assert found is not None
    return found


def test_the_bash_worker_is_short() -> None:
    assert len(WORKER.read_text().splitlines()) < 85


def test_the_bash_worker_kills_what_does_not_stop_in_time(
    bash_worker: subprocess.Popen[bytes], conn: psycopg.Connection, tmp_path: Path
) -> None:
    job_id = defer(conn, "stubborn")
    # A job is doing before its script is: a SIGTERM that comes before the trap ends it.
    wait_until((tmp_path / "deaf").exists, what="the script does not heed SIGTERM")
    conn.execute(
        "SELECT pljobs.cancel_job(%s, abort => true, grace => '0.1 s', term_grace => '0.2 s')", [job_id]
    )
    wait_for(conn, job_id, "aborted")
    found = conn.execute("SELECT resolution, level FROM pljobs.requests WHERE job_id = %s", [job_id])
    assert found.fetchone() == ("killed", 4)


def test_the_bash_worker_runs_jobs_and_reports_their_ends(
    bash_worker: subprocess.Popen[bytes], conn: psycopg.Connection
) -> None:
    args = '{"to": "a \\"b\\"\\tc\\nd \\u00e9"}'
    good, bad = defer(conn, "hello", args), defer(conn, "broken")
    assert wait_for(conn, good, "succeeded")["result"] == 'got {"to": "a \\"b\\"\\tc\\nd é"}'
    assert wait_for(conn, bad, "failed")["error"] == "no"


def test_the_bash_worker_honours_an_abort(
    bash_worker: subprocess.Popen[bytes], conn: psycopg.Connection
) -> None:
    job_id = defer(conn, "slow")
    wait_for(conn, job_id, "doing")
    answer = conn.execute("SELECT pljobs.cancel_job(%s, abort => true)", [job_id]).fetchone()
    assert answer == ("abort_requested",)
    wait_for(conn, job_id, "aborted")
    row = conn.execute(
        "SELECT delivered_at IS NOT NULL, resolution FROM pljobs.requests WHERE job_id = %s", [job_id]
    ).fetchone()
    assert row == (True, "aborted")


def test_the_bash_worker_keeps_its_lease_while_a_job_runs(
    bash_worker: subprocess.Popen[bytes], conn: psycopg.Connection
) -> None:
    job_id = defer(conn, "slow")
    wait_for(conn, job_id, "doing")
    # Seen where it is renewed: one so short that a test can wait for its end, a busy machine loses.
    renewed = (
        "SELECT FROM pljobs.worker AS w JOIN pljobs.job AS j ON j.worker_id = w.id"
        " WHERE j.id = %s AND w.expires_at > j.started_at + interval '22 s'"
    )
    wait_until(lambda: conn.execute(renewed, [job_id]).rowcount, what="two seconds on, it has been renewed")
    assert conn.execute("SELECT pljobs.rescue_jobs()").fetchone() == (0,)


def test_the_bash_worker_gives_its_job_back_when_it_is_stopped(
    bash_worker: subprocess.Popen[bytes], conn: psycopg.Connection
) -> None:
    job_id = defer(conn, "slow")
    wait_for(conn, job_id, "doing")
    bash_worker.send_signal(signal.SIGTERM)
    assert bash_worker.wait(timeout=DEADLINE) == 0
    row = wait_for(conn, job_id, "todo")
    assert row["attempts"] == 0
    assert conn.execute("SELECT state FROM pljobs.workers").fetchone() == ("stopped",)


def test_the_bash_worker_registers_again(
    bash_worker: subprocess.Popen[bytes], conn: psycopg.Connection
) -> None:
    wait_until(lambda: conn.execute("SELECT id FROM pljobs.workers").fetchone(), what="it registered")
    conn.execute("SELECT pljobs.unregister_worker_v1(id) FROM pljobs.workers")
    job_id = defer(conn, "hello")
    wait_for(conn, job_id, "succeeded")
    assert conn.execute("SELECT count(*) FROM pljobs.workers").fetchone() == (1,)


def test_the_commands_that_the_pages_name_exist() -> None:
    from pljobs.cli_commands import cli

    named = [
        (page, said)
        for page in PAGES
        for said in re.findall(r"`pljobs ([a-z][^`]*)`", " ".join(page.read_text().split()))
    ]
    assert len(named) > 30
    for page, said in named:
        words = said.split()
        command = cli.commands.get(words[0])
        assert command is not None, f"{page.name}: pljobs {said}"
        options = {option for parameter in command.params for option in parameter.opts}
        wanted = {word for word in words[1:] if re.match(r"--?[a-z]", word)}
        assert wanted <= options, f"{page.name}: pljobs {said}"

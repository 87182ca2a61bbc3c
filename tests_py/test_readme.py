"""The README's shell, Python and SQL blocks, run in order as a reader would, but for make and pip."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import psycopg
import pytest

from pljobs.embedded import Server
from test_docs import REPO, app_db, blocks, run_python, run_sql
from waiting import wait_until_async

__all__ = ["app_db"]

README = REPO / "README.md"


async def test_the_readme_is_true(
    app_db: psycopg.AsyncConnection, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "sql").symlink_to(REPO / "sql")
    # The page starts with an empty database, and its jobs' ids are those of the page.
    await app_db.execute("DROP SCHEMA pljobs CASCADE")
    names: dict[str, object] = {}
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for block in blocks(README, "shell", "python", "sql"):
            if block.language == "shell":
                workers += run_shell(block.text)
            elif block.language == "sql":
                await settle(app_db, block.text)
                run_sql(server, "app", block)
            elif block.text.startswith("# tasks.py\n"):
                (tmp_path / "tasks.py").write_text(block.text)
            else:
                await run_python(block, names)
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait(timeout=20)
        sys.modules.pop("tasks", None)
    assert len(workers) == 1
    assert [worker.returncode for worker in workers] == [0]


def run_shell(text: str) -> list[subprocess.Popen[bytes]]:
    """Run each line; return the workers that it started."""
    started = []
    for line in filter(None, text.splitlines()):
        command = shlex.split(line)
        if command[0] in {"make", "pip"}:
            continue  # tested below
        if command[:2] == ["pljobs", "worker"]:
            started.append(subprocess.Popen(command))
        else:
            subprocess.run(command, check=True, timeout=180)
    return started


async def settle(conn: psycopg.AsyncConnection, text: str) -> None:
    """Wait for what the page says has happened before this block: `a moment later` takes a moment."""
    if "defer_job(" in text:
        await conn.execute("ALTER TABLE pljobs.job ALTER COLUMN id RESTART WITH 33")
        return
    wanted = "doing" if "cancel_job(33)" in text else "aborted"

    async def there() -> bool:
        row = await (await conn.execute("SELECT status FROM pljobs.jobs WHERE id = 33")).fetchone()
        return row == (wanted,)

    await wait_until_async(there, what=f"job 33 is {wanted}")


def test_the_make_targets_that_it_names_exist() -> None:
    named = {
        line.split()[1]
        for block in blocks(README, "shell")
        for line in block.text.splitlines()
        if line.startswith("make ")
    }
    assert named == {"demo", "test"}
    for target in named:
        subprocess.run(["make", "-C", str(REPO), "-n", target], check=True, capture_output=True)


def test_the_extras_that_it_names_exist() -> None:
    extras = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"pip install '\.\[([\w,]+)\]'", README.read_text())
    assert named
    for names in named:
        assert set(names.split(",")) <= set(extras)


def test_every_outcome_word_is_in_it() -> None:
    from test_docs import calls_outcomes

    text = README.read_text()
    assert [word for word in calls_outcomes() if f"`{word}`" not in text] == []

"""What the tests of the command line share: a way to run it, an app, a worker."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pljobs.cli_commands import cli
from waiting import DEADLINE, wait_until

Pljobs = Callable[..., Result]

APP = """
import asyncio, os, time
from pljobs import App, JobAborted

app = App("postgresql:///is_not_there")

@app.task(name="spin", queue="spinning", priority=3, lock="spin lock")
async def spin():
    while True:
        await asyncio.sleep(0.01)

@app.task(name="swallow")
async def swallow():
    while not os.path.exists("enough"):
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            pass

@app.task(name="leave_a_thread")
async def leave_a_thread():
    await asyncio.to_thread(time.sleep, 600)

@app.task(name="add")
def add(a, b):
    return a + b
"""


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("PG", "PLJOBS_URL", "PLJOBS_APP", "PLJOBS_ACTOR")):
            monkeypatch.delenv(name)


@pytest.fixture
def pljobs(db_url: str, bare_environment: None) -> Pljobs:
    def run(*arguments: str, stdin: str | None = None, exits: int = 0) -> Result:
        result = CliRunner().invoke(cli, arguments, input=stdin, env={"PLJOBS_URL": db_url})
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == exits, result.output
        return result

    return run


class Command:
    """A command in a process of its own."""

    def __init__(self, url: str, folder: Path, *arguments: str) -> None:
        self._said, self._answered = (folder / f"{'_'.join(arguments)}.{name}" for name in ("err", "out"))
        with self._said.open("w") as said, self._answered.open("w") as answered:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pljobs", *arguments],
                stdout=answered, stderr=said, env={**os.environ, "PLJOBS_URL": url},
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self._said.read_text()

    @property
    def answered(self) -> str:
        return self._answered.read_text()

    def has_said(self, text: str) -> None:
        wait_until(lambda: text in self.said, what=f"it says {text}")

    def ends(self, code: int) -> None:
        assert self.process.wait(DEADLINE) == code, self.said


@pytest.fixture
def command(db_url: str, bare_environment: None, tmp_path: Path) -> Iterator[Callable[..., Command]]:
    begun = []

    def begin(*arguments: str, url: str = db_url) -> Command:
        begun.append(Command(url, tmp_path, *arguments))
        return begun[-1]

    yield begin
    for each in begun:
        each.process.kill()
        each.process.wait()


@pytest.fixture
def app_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "shop", None)
    monkeypatch.delitem(sys.modules, "shop")
    return tmp_path


@pytest.fixture
def worker(app_folder: Path, db_url: str, pljobs: Pljobs) -> Iterator[subprocess.Popen[str]]:
    options = ["--app", "shop:app", "-c", "5", "--shutdown-timeout", "1"]
    command = [sys.executable, "-m", "pljobs", "worker", *options]
    with subprocess.Popen(
        command, env={**os.environ, "PLJOBS_URL": db_url}, cwd=app_folder, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        # Somebody has to read, or the pipe fills.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        wait_until(lambda: answer(pljobs("workers", "--json")))
        yield process
        (app_folder / "enough").touch()
        process.terminate()
        process.wait(DEADLINE)


def answer(result: Result) -> object:
    return json.loads(result.stdout)


def fields(result: Result) -> dict[str, object]:
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def status(pljobs: Pljobs, job_id: int = 1) -> object:
    return json.loads(pljobs("show", str(job_id), "--json").stdout)["job"]["status"]


def started(pljobs: Pljobs, task: str) -> int:
    job_id = json.loads(pljobs("defer", task, "--json").stdout)["job_id"]
    wait_until(lambda: status(pljobs, job_id) == "doing")
    return int(job_id)


def in_a_terminal(url: str, *arguments: str, columns: int = 120) -> str:
    """Run the command in a terminal of its own, and return what it shows."""
    ours, its = pty.openpty()
    environment = {
        **os.environ,
        "PLJOBS_URL": url,
        "COLUMNS": str(columns),
        "TERM": "xterm",
        "PYTHONUTF8": "1",
    }
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "pljobs", *arguments], stdout=its, stderr=its, env=environment
    )
    os.close(its)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # its end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait(DEADLINE) == 0
    return shown.decode()

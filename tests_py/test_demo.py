"""The demo: on real files, on a server of its own that stays until told to go; nothing else is left."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import TupleRow

from pljobs import demo_files, demo_tasks
from pljobs.demo_server import Home, find_home
from waiting import wait_until

TEXTS = {
    "one.txt": "one two  three\n",
    "sub/two.txt": "läuft 4 ever",
    "empty.txt": "",
    ".hidden/three.txt": "x",
}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    tmp_path /= "texts"
    tmp_path.mkdir()
    for name, text in TEXTS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "binary").write_bytes(b"a\0b")
    (tmp_path / "link").symlink_to("one.txt")
    (tmp_path / "loop").symlink_to(".", target_is_directory=True)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / os.fsdecode(b"bad\xff.txt")).write_text("not named in UTF-8")
    return tmp_path


@pytest.fixture
def home() -> Iterator[Path]:
    # Below /tmp itself: the account that PostgreSQL runs as can't enter pytest's folders.
    path = Path(tempfile.mkdtemp(prefix="pljobs-demo-", dir="/tmp")) / "home"
    path.parent.chmod(0o755)
    yield path
    if path.exists():
        Home(path).remove()
    shutil.rmtree(path.parent)


def pljobs(*arguments: str, home: Path) -> list[str]:
    return [str(Path(sys.executable).parent / "pljobs"), "demo", *arguments, "--home", str(home)]


def run(*arguments: str, home: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    # libpq's variables of whoever runs the tests are about other servers.
    environment = {**os.environ, "PGSERVICE": "is_not_there", "PGHOST": "/is/not/there"}
    return subprocess.run(
        pljobs(*arguments, home=home),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment,
        cwd=cwd,
    )


def database(home: Path) -> psycopg.Connection[TupleRow]:
    return psycopg.connect(Home(home).url, autocommit=True)


@pytest.mark.slow
def test_the_demo_from_start_to_stop(texts: Path, home: Path, tmp_path: Path) -> None:
    # In a folder with modules of the same names as ours or Python's: none of them is taken for those.
    (tmp_path / "logging.py").write_text("1 / 0")
    (tmp_path / "pljobs.py").write_text("1 / 0")
    done = run(str(texts), home=home, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left out: 1 binary, 1 with names that are not UTF-8" in done.stdout

    with database(home) as conn:
        results = conn.execute(
            "SELECT args->>'path', result->>'sha256', result->>'words', result->>'bytes' FROM jobs"
            " WHERE task = 'hash_file' AND status = 'succeeded'"
        ).fetchall()
        assert {path: rest for path, *rest in results} == {
            str(texts / name): [
                hashlib.sha256(text.encode()).hexdigest(),
                str(len(text.split())),
                str(len(text.encode())),
            ]
            for name, text in TEXTS.items()
        }
        ends = conn.execute("SELECT task, status FROM jobs WHERE task <> 'hash_file' ORDER BY id").fetchall()
        assert ends == [
            ("hash_again_async", "aborted"),
            ("hash_again_sync", "aborted"),
            ("long_query", "aborted"),
            ("hash_stubbornly", "aborted"),
            ("nightly_report", "cancelled"),
        ]
        resolutions = conn.execute("SELECT resolution FROM requests ORDER BY id").fetchall()
        assert [word for (word,) in resolutions] == [
            "cancelled", "deleted", "aborted", "aborted", "aborted", "killed",
        ]  # fmt: skip
        ways = conn.execute("SELECT sql_way FROM requests WHERE task = 'long_query'").fetchall()
        assert ways == [("server",)]
        assert conn.execute("SELECT count(*) FROM workers WHERE state <> 'stopped'").fetchone() == (0,)

    # The line that it leaves the user with works when it is pasted.
    line = next(line.strip() for line in done.stdout.splitlines() if "postgresql://" in line)
    statement = " -XAtc 'SELECT cancel_job(33, abort => true);'"
    pasted = subprocess.run(line + statement, shell=True, capture_output=True, text=True, check=True)
    assert pasted.stdout.strip() == "not_found"
    assert "demo --stop --home" in done.stdout

    stopped = run("--stop", home=home)
    assert stopped.returncode == 0, stopped.stderr
    assert not home.exists()


@pytest.mark.slow
def test_job_33_is_the_running_one_where_there_are_files_enough(tmp_path: Path, home: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(str(number))
    done = run(str(tmp_path), home=home)
    assert "SELECT cancel_job(33, abort => true);\n    -> abort_requested; it ended" in done.stdout
    # Again: the server that still runs is replaced.
    again = run(str(tmp_path), home=home)
    assert again.returncode == 0, again.stderr
    assert "33 and 34 run until they are aborted" in again.stdout


INTERRUPTED_WHILE_IT_ASKS = """
import signal, sys
from pljobs import cli, demo

def asks(self, conn, job_ids):
    if len(job_ids) > 1:
        return are_doing(self, conn, job_ids)
    if not started:
        started.extend([True] * are_doing(self, conn, job_ids))
        return bool(started)
    conn.pgconn.send_query(b"SELECT 1")
    signal.raise_signal(signal.SIGINT)
    while conn.pgconn.get_result():
        pass
    return True

started, are_doing = [], demo._Demo._are_doing
demo._Demo._are_doing = asks
sys.argv[0] = "pljobs"
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["psql", "Ctrl-C", "Ctrl-C while it asks"])
def test_staying_it_leaves_a_job_for_the_user_to_abort(texts: Path, home: Path, way: str) -> None:
    command = pljobs(str(texts), "--stay", home=home)
    if way == "Ctrl-C while it asks":
        command = [sys.executable, "-c", INTERRUPTED_WHILE_IT_ASKS, *command[1:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        told = ""
        for line in demo.stdout:
            told += line
            if "In psql: " in line:
                break
        statement = told.rsplit("In psql: ", 1)[1].strip()
        assert re.fullmatch(r"SELECT cancel_job\(\d+, abort => true\);", statement)
        with database(home) as conn:
            if way == "psql":
                assert conn.execute(statement).fetchone() == ("abort_requested",)
            elif way == "Ctrl-C":
                demo.send_signal(signal.SIGINT)
            rest = demo.stdout.read()
            assert demo.wait(60) == 0
            assert re.search(r"Job \d+ ended, [\d.]+ ms after it was asked to: aborted\.", rest)
            assert conn.execute("SELECT status FROM jobs ORDER BY id DESC LIMIT 1").fetchone() == ("aborted",)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_takes_away_what_it_started(texts: Path, home: Path, number: signal.Signals) -> None:
    with subprocess.Popen(pljobs(str(texts), home=home), stderr=subprocess.PIPE, text=True) as demo:
        wait_until((home / "worker.log").exists, 120)
        demo.send_signal(number)
        _, told = demo.communicate(timeout=60)
        assert demo.returncode == 130, told
    assert "interrupted" in told
    assert not home.exists()


@pytest.mark.slow
def test_killed_it_leaves_no_worker_and_can_be_stopped(texts: Path, home: Path) -> None:
    with subprocess.Popen(pljobs(str(texts), home=home)) as demo:
        wait_until((home / "worker.log").exists, 120)
        with database(home) as conn:
            wait_until(lambda: conn.execute("SELECT 1 FROM jobs WHERE status = 'doing'").fetchone(), 120)
            demo.kill()
            demo.wait()
            alive = "SELECT count(*) FROM workers WHERE state = 'alive'"
            # It gives its jobs 2 s to end, and the stubborn one 15 more before that is killed.
            wait_until(lambda: conn.execute(alive).fetchone() == (0,), 120)
    assert run("--stop", home=home).returncode == 0
    assert not home.exists()


def test_a_folder_without_texts_or_none_at_all_is_told_before_anything_is_started(
    tmp_path: Path, home: Path
) -> None:
    (tmp_path / "binary").write_bytes(b"\0")
    (tmp_path / "file").write_text("text")
    nothing = run(str(tmp_path / "nothing"), home=home)
    assert (nothing.returncode, "does not exist" in nothing.stderr) == (2, True)
    assert run(str(tmp_path / "file"), home=home).returncode == 2
    (tmp_path / "file").unlink()
    empty = run(str(tmp_path), home=home)
    assert (empty.returncode, "no text file under" in empty.stderr) == (1, True)
    assert "left out: 1 binary" in empty.stderr
    assert not home.exists()


def test_a_home_that_holds_something_else_is_left_alone(texts: Path, home: Path) -> None:
    home.mkdir()
    (home / "pg").mkdir()
    (home / "pg" / "precious").touch()
    for arguments in ([str(texts)], ["--stop"]):
        done = run(*arguments, home=home)
        assert done.returncode == 1
        assert "holds something else" in done.stderr
    assert (home / "pg" / "precious").exists()
    shutil.rmtree(home)


def test_stop_without_a_demo_leaves_nothing(home: Path) -> None:
    assert run("--stop", home=home).returncode == 0
    assert not home.exists()
    assert run("--stop", "--stay", home=home).returncode == 2


def test_two_demos_do_not_share_a_home(texts: Path, home: Path) -> None:
    with Home(home).locked():
        done = run(str(texts), home=home)
    assert done.returncode == 1
    assert "another demo is running" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's home needs no care")
def test_the_home_of_root_is_not_where_postgresql_can_enter() -> None:
    assert find_home(None).path == Path("/var/lib/pljobs-demo")


def test_an_ordinary_users_home_is_in_the_state_folder_unless_its_path_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path)[:40])
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)
    assert find_home(None).path == Path(str(tmp_path)[:40]) / "pljobs-demo"
    monkeypatch.setenv("XDG_STATE_HOME", "/" + "x" * 90)
    assert find_home(None).path == Path("/var/tmp/pljobs-demo-4321")


def test_words_are_counted_across_the_ends_of_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a bc  déf\n\tghij " * 20 + "end"
    (tmp_path / "text").write_text(text)
    for size in range(1, 12):
        monkeypatch.setattr(demo_tasks, "CHUNK", size)
        assert demo_tasks.digest(str(tmp_path / "text")) == {
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "words": len(text.split()),
            "bytes": len(text.encode()),
        }


def test_files_are_found_folder_by_folder_those_with_a_dot_last(texts: Path) -> None:
    found = demo_files.find(texts)
    assert [str(Path(path).relative_to(texts)) for path in found.files] == [
        "empty.txt", "one.txt", "sub/two.txt", ".hidden/three.txt",
    ]  # fmt: skip
    assert (found.binary, found.odd_names, found.more) == (1, 1, False)
    some = demo_files.find(texts, limit=2)
    assert (len(some.files), some.more) == (2, True)
    assert demo_files.find(texts, limit=4).more is False

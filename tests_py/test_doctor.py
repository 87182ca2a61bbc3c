"""`pljobs doctor` says what is wrong, worst first, and what to do; its exit code says how bad it is."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg.conninfo import make_conninfo

from cli_fixtures import Pljobs, answer, bare_environment, in_a_terminal
from nights import Conn, night_server
from pljobs import calls_health, release
from pljobs.cli_commands import cli
from pljobs.embedded import Server
from pljobs.exceptions import ConnectorException

__all__ = ["bare_environment"]

OLD_WHEEL = Path(__file__).parent / "releases" / "pljobs-0.1.0-py3-none-any.whl"
OURS = ("versions", "notifications", "install")


@pytest.fixture(scope="module")
def night(server: Server) -> Iterator[Server]:
    """A server that is as it should be."""
    with night_server(server) as started:
        yield started


@pytest.fixture
def db_url(night: Server) -> Iterator[str]:
    """A fresh database with the schema, and a worker that is alive."""
    yield night.create_database("doctor", "night")
    night.drop_database("doctor")


@pytest.fixture
def conn(db_url: str) -> Iterator[Conn]:
    with psycopg.connect(db_url, autocommit=True) as connection:
        connection.execute(
            "SELECT pljobs.register_worker_v2('w', 'h', 1, 3, lease => '1 h', queues => '{good}')"
        )
        yield connection


@pytest.fixture
def pljobs(db_url: str, conn: Conn, bare_environment: None) -> Pljobs:
    def run(*arguments: str, stdin: str | None = None, exits: int = 0) -> Result:
        return doctor_of(db_url, *arguments, exits=exits)

    return run


def doctor_of(url: str, *arguments: str, exits: int = 0) -> Result:
    result = CliRunner().invoke(cli, arguments, env={"PLJOBS_URL": url})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == exits, result.output
    return result


def told(result: Result) -> dict[str, Any]:
    """What --json says."""
    said = answer(result)
    assert isinstance(said, dict)
    return said


def finding(result: Result, item: str) -> dict[str, str]:
    """The one finding of an item."""
    (only,) = [found for found in told(result)["findings"] if found["item"] == item]
    return dict(only)


def leave_unserved(conn: Conn, queue: str = "bad") -> None:
    """A job that has been ready for an hour, in a queue that nobody serves."""
    conn.execute("SELECT pljobs.defer_job('a task', queue => %s)", [queue])
    conn.execute("UPDATE pljobs.job SET created_at = created_at - interval '1 h'")


def test_where_all_is_well_it_says_so(pljobs: Pljobs) -> None:
    result = pljobs("doctor")

    assert result.stdout == ""
    assert result.stderr == "looked at 31 items: all is well\n"
    assert told(pljobs("doctor", "--json")) == {
        "ok": True,
        "severity": "ok",
        "driver": release.driver(),
        "server": told(pljobs("doctor", "--json"))["server"],
        "standby": False,
        "findings": [],
    }


def test_with_all_it_shows_what_it_looked_at(pljobs: Pljobs) -> None:
    everything = told(pljobs("doctor", "--all", "--json"))["findings"]

    assert {found["severity"] for found in everything} == {"ok"}
    assert len(everything) == 31
    assert {found["item"] for found in everything} > set(OURS)
    lines = pljobs("doctor", "--all").stdout.splitlines()
    assert len(lines) == 32
    assert lines[0].split() == ["severity", "item", "subject", "detail", "what", "to", "do"]


def test_notices_are_no_failure(pljobs: Pljobs, conn: Conn) -> None:
    conn.execute("SELECT pljobs.defer_job('a task', queue => 'good'), pljobs.pause_queue('good', 'why not')")

    result = pljobs("doctor")
    assert result.stdout.splitlines()[1].startswith("notice    paused_queues  queue good")
    assert result.stderr == "looked at 31 items: 1 notice\n"
    assert told(pljobs("doctor", "--json"))["ok"] is True


def test_a_warning_and_what_is_critical_have_exit_codes_of_their_own(pljobs: Pljobs, conn: Conn) -> None:
    leave_unserved(conn)

    found = finding(pljobs("doctor", "--json", exits=7), "unserved_queues")
    assert found["severity"] == "warning"
    assert found["action"].startswith("start a worker")
    conn.execute("UPDATE pljobs.worker SET stopped_at = clock_timestamp()")
    assert finding(pljobs("doctor", "--json", exits=8), "unserved_queues")["severity"] == "critical"
    assert told(pljobs("doctor", "--json", exits=8))["ok"] is False


def test_the_worst_comes_first(pljobs: Pljobs, conn: Conn) -> None:
    leave_unserved(conn)
    conn.execute("SELECT pljobs.defer_job('a task', queue => 'good'), pljobs.pause_queue('good')")
    conn.execute("ALTER TABLE pljobs.job SET (autovacuum_enabled = off)")

    result = pljobs("doctor", exits=8)
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == ["critical", "warning", "notice"]
    assert result.stderr == "looked at 31 items: 1 critical, 1 warning, 1 notice\n"


def test_on_a_terminal_each_finding_is_a_paragraph(db_url: str, conn: Conn) -> None:
    conn.execute("SELECT pljobs.defer_job('a task', queue => %s), pljobs.pause_queue(%s)", ["a\x1b[2Jb"] * 2)

    shown = in_a_terminal(db_url, "doctor")
    assert "queue a\\x1b[2Jb" in shown
    assert "\x1b[2J" not in shown
    paragraph = shown.splitlines()
    assert paragraph[0].startswith("\x1b[36mnotice\x1b[0m  \x1b[1mpaused_queues\x1b[0m")
    assert paragraph[1].startswith("        jobs ready, and paused for ")
    assert paragraph[2].startswith("        -> SELECT pljobs.resume_queue(")


def test_the_operating_page_states_every_item(pljobs: Pljobs) -> None:
    page = (Path(__file__).parent.parent / "docs" / "operating.md").read_text()
    table = page.split("| Item |")[1].split("\n\n")[0]
    stated = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)))

    looked_at = {found["item"] for found in told(pljobs("doctor", "--all", "--json"))["findings"]}
    assert sorted(stated) == sorted(looked_at)


# What is seen from the client alone


def test_a_newer_and_an_older_driver_are_noticed(pljobs: Pljobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "version", lambda: "99.0.0")
    assert finding(pljobs("doctor", "--json"), "versions")["subject"] == "schema"
    monkeypatch.setattr(release, "version", lambda: "0.1.9")
    assert finding(pljobs("doctor", "--json"), "versions")["subject"] == "driver"
    monkeypatch.setattr(release, "version", lambda: "unknown")
    assert told(pljobs("doctor", "--json"))["findings"] == []


def test_a_driver_whose_workers_would_be_refused_is_a_warning(
    pljobs: Pljobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "CONTRACT", 99)
    found = finding(pljobs("doctor", "--json", exits=7), "versions")
    assert (found["subject"], found["action"]) == ("schema", "pljobs migrate")
    monkeypatch.setattr(release, "CONTRACT", 0)
    assert finding(pljobs("doctor", "--json", exits=7), "versions")["subject"] == "driver"


def test_a_schema_that_somebody_has_changed_is_a_warning(pljobs: Pljobs, conn: Conn) -> None:
    conn.execute("DROP INDEX pljobs.request_job")

    found = finding(pljobs("doctor", "--json", exits=7), "install")
    assert "1 place" in found["detail"]
    assert "schema --check" in found["action"]


def test_a_pooler_that_changes_server_processes_is_noticed(
    pljobs: Pljobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = calls_health.describe_server

    def described() -> Any:
        return original().then(
            lambda server: calls_health.Server(**{**_fields(server), "pid": server.pid + 1})
        )

    monkeypatch.setattr(calls_health, "describe_server", described)
    found = finding(pljobs("doctor", "--json", exits=7), "notifications")
    assert "pooler" in found["detail"]


def _fields(server: calls_health.Server) -> dict[str, Any]:
    return {name: getattr(server, name) for name in calls_health.Server.__slots__}


def test_notifications_that_do_not_arrive_are_noticed(
    pljobs: Pljobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = calls_health.notify_oneself
    monkeypatch.setattr(calls_health, "notify_oneself", lambda channel: original(f"{channel}_lost"))
    monkeypatch.setattr("pljobs.cli_doctor.LISTEN_PATIENCE", 0.1)

    found = finding(pljobs("doctor", "--json", exits=7), "notifications")
    assert "does not arrive" in found["detail"]


def test_what_could_not_be_tried_is_said(pljobs: Pljobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> Any:
        raise ConnectorException("no way", sqlstate="XX000")

    monkeypatch.setattr(calls_health, "notify_oneself", lambda channel: refused())
    monkeypatch.setattr(calls_health, "count_differences", refused)
    said = {found["item"]: found for found in told(pljobs("doctor", "--json"))["findings"]}
    assert {(found["severity"], found["detail"]) for found in said.values()} == {
        ("notice", "not looked at: no way")
    }
    assert set(said) == {"notifications", "install"}


def test_a_table_that_nobody_can_read_is_what_it_says(
    pljobs: Pljobs, db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pljobs.cli_doctor.LOCK_TIMEOUT_MS", 50)
    with psycopg.connect(db_url, application_name="a repair") as other:
        other.execute("LOCK TABLE pljobs.job IN ACCESS EXCLUSIVE MODE")
        found = finding(pljobs("doctor", "--json", exits=8), "blocked_sessions")
        assert found["subject"] == f"pid {other.info.backend_pid}"

    assert "a repair, idle in transaction: holds pljobs.job exclusively" in found["detail"]


def test_a_table_that_is_free_again_when_it_looks_who_it_was(
    pljobs: Pljobs, db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = calls_health.list_lockers
    monkeypatch.setattr("pljobs.cli_doctor.LOCK_TIMEOUT_MS", 50)
    with psycopg.connect(db_url) as other:
        other.execute("LOCK TABLE pljobs.job IN ACCESS EXCLUSIVE MODE")

        def too_late() -> Any:
            other.rollback()
            return original()

        monkeypatch.setattr(calls_health, "list_lockers", too_late)
        found = finding(pljobs("doctor", "--json", exits=8), "blocked_sessions")
    assert "could not be read for 0.05 s" in found["detail"]


# Who asks, and of what


@pytest.mark.parametrize("group", ["reader", "operator", "producer"])
def test_readers_and_operators_may_ask(
    night: Server, db_url: str, conn: Conn, bare_environment: None, group: str
) -> None:
    night.run_sql(f"CREATE ROLE asking LOGIN IN ROLE pljobs_{group}")
    try:
        url = make_conninfo(db_url, user="asking")
        if group == "producer":
            refused = doctor_of(url, "doctor", exits=1)
            assert "permission denied for view health: ask as a member of pljobs_reader" in refused.stderr
            return
        found = told(doctor_of(url, "doctor", "--json"))["findings"]
        assert {(one["item"], one["action"]) for one in found} == {
            (item, "GRANT pg_read_all_stats TO asking;")
            for item in ("held_snapshots", "listeners", "open_transactions")
        }
        night.run_sql("GRANT pg_read_all_stats TO asking")
        assert told(doctor_of(url, "doctor", "--json"))["findings"] == []
    finally:
        night.run_sql("DROP ROLE asking")


def test_a_monitor_that_may_read_the_view_alone_is_told_what_it_missed(
    night: Server, db_url: str, conn: Conn, bare_environment: None
) -> None:
    night.run_sql("CREATE ROLE asking LOGIN IN ROLE pg_monitor")
    night.run_sql("GRANT USAGE ON SCHEMA pljobs TO asking; GRANT SELECT ON pljobs.health TO asking", "doctor")
    try:
        found = told(doctor_of(make_conninfo(db_url, user="asking"), "doctor", "--json"))["findings"]
        assert {one["item"] for one in found} == {"versions", "install"}
        assert all(one["detail"].startswith("not looked at: permission denied") for one in found)
    finally:
        night.run_sql("DROP OWNED BY asking", "doctor")
        night.run_sql("DROP ROLE asking")


def test_a_schema_of_the_first_release_has_to_be_migrated(
    night: Server, tmp_path: Path, bare_environment: None
) -> None:
    with zipfile.ZipFile(OLD_WHEEL) as wheel:
        wheel.extractall(tmp_path)
    url = night.create_database("old")
    try:
        assert "run `pljobs migrate`" in doctor_of(url, "doctor", exits=1).stderr
        night.run_sql(f"BEGIN;\n\\i '{tmp_path / 'pljobs' / 'sql' / 'install.sql'}'\nCOMMIT;", "old")
        refused = doctor_of(url, "doctor", exits=1).stderr
        assert "of release 0.1.0" in refused
        assert "run `pljobs migrate`" in refused
        doctor_of(url, "migrate")
        with psycopg.connect(url) as migrated:
            found = migrated.execute(
                "SELECT item, severity FROM pljobs.health WHERE severity <> 'ok'"
            ).fetchall()
        # Who installed it then was a superuser, who owns it still.
        assert found == [("grants", "notice")]
    finally:
        night.drop_database("old")

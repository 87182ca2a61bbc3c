"""N1-N6: networks that swallow, cut, delay and lose what is sent, and what anybody may send."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from chaos.rig import Rig
from chaos.rows import row
from oracle import Violation
from pljobs import App
from pljobs.exceptions import DatabaseUnavailable
from proxy import Proxy, running_proxy
from waiting import wait_until
from workers import HERE, Command, Process

# A peer that is frozen is noticed within ten seconds (the control thread's) or fifteen (the other's); then
# there is a connection to make. What a loaded machine takes is added.
NOTICED_WITHIN, LOADED = 15.0, 10.0
# For what only prepares: a fetch whose reply is lost holds its worker up for as long as that is not noticed.
PATIENCE = NOTICED_WITHIN + 2 * LOADED
# A lease that no such time uses up.
STEADY: dict[str, Any] = {
    "fetch_job_polling_interval": 1.0,
    "update_heartbeat_interval": 1.0,
    "stalled_worker_timeout": 60.0,
}
# One that a loaded machine keeps, and that is soon over all the same.
BRISK: dict[str, Any] = {
    "fetch_job_polling_interval": 0.1,
    "update_heartbeat_interval": 0.5,
    "stalled_worker_timeout": 5.0,
}
FLOODER = "chaos_flooder"


def proxied(rig: Rig, host: str = "127.0.0.1") -> Proxy:
    """Put a proxy before the rig's server, which heals when the rig does."""
    proxy = rig.stack.enter_context(running_proxy(rig.server, rig.seed, host))
    rig.heal_with(proxy.heal)
    rig.allow("08006", "08P01")  # what the server says of a client that is gone
    return proxy


def hold(rule: bool, invariant: str, tale: str) -> None:
    """Raise Violation unless the rule holds."""
    if not rule:
        raise Violation(invariant, tale)


def measured(rig: Rig, what: str, began: float) -> float:
    """Keep the longest of these times in the notes, in milliseconds; return it in seconds."""
    took = time.monotonic() - began
    rig.notes[what] = max(rig.notes[what], int(1000 * took))
    return took


def status_of(rig: Rig, job_id: int) -> str:
    return str(rig.rows("SELECT status FROM pljobs.jobs WHERE id = %s", job_id)[0][0])


def started(rig: Rig, *job_ids: int) -> bool:
    """Say whether all of these have been started."""
    left = rig.count("SELECT count(*) FROM pljobs.jobs WHERE id = ANY (%s) AND status = 'todo'", [*job_ids])
    return left == 0


def at_work(rig: Rig, *job_ids: int) -> bool:
    """Say whether the bodies of all these run: that their workers have heard of them."""
    query = "SELECT count(DISTINCT job_id) FROM public.side WHERE what = 'start' AND job_id = ANY (%s)"
    return rig.count(query, [*job_ids]) == len(job_ids)


# N1


@row("N1", "every connection of idle workers is half-open", invariants="I1-I7, I10, I11", push=0, long=6)
def half_open(rig: Rig) -> None:
    proxy = proxied(rig)
    for _ in range(6):
        rig.worker(proxy.url(rig.dbname), **STEADY, concurrency=2)
    rig.await_workers()
    running = [rig.defer("forever") for _ in rig.workers]
    wait_until(lambda: at_work(rig, *running), PATIENCE, "they run")
    rig.harms["connections frozen"] += proxy.freeze()
    _serves_meanwhile(rig, running, "noticed after ms")
    for worker in rig.workers:
        hold(worker.said("reconnecting"), "I10", f"{worker.log.name}: a dead line is not noticed")
    rig.settle()
    rig.check()


def _serves_meanwhile(rig: Rig, running: list[int], what: str) -> None:
    """Check that jobs start and aborts arrive, though whoever listens has heard nothing of them."""
    began = time.monotonic()
    for job_id in running:
        rig.cancel(job_id)
    fresh = [rig.defer("forever") for _ in range(2 * len(rig.workers))]
    wait_until(
        lambda: started(rig, *fresh) and all(status_of(rig, job_id) == "aborted" for job_id in running),
        NOTICED_WITHIN + LOADED + 10,
        "jobs start and aborts arrive",
    )
    hold(measured(rig, what, began) < NOTICED_WITHIN + LOADED, "I10", "a dead line is noticed too late")


@row("N1V", "the network between worker and server goes down", invariants="I1-I7, I10, I11", push=0, long=6)
def link_down(rig: Rig) -> None:
    if (why := _no_namespaces()) is not None:
        rig.notes[f"not run: {why}"] += 1
        return
    name = f"plj{os.getpid() % 10000}"
    host, guest = "10.213.77.1", "10.213.77.2"
    with _namespace(name, host, guest):
        proxy = proxied(rig, host)
        worker = Elsewhere(name, proxy.url(rig.dbname), rig.folder / "worker1.log", rig.url)
        rig.workers.append(worker)
        rig._started.append(worker)
        rig.await_workers()
        running = rig.defer("forever")
        wait_until(lambda: at_work(rig, running), PATIENCE, "it runs")
        _ip("link", "set", f"{name}h", "down")
        rig.harms["link down"] += 1
        began = time.monotonic()
        wait_until(
            lambda: worker.said("can't reach the database"), NOTICED_WITHIN + LOADED, "the worker notices"
        )
        hold(
            measured(rig, "noticed after ms", began) < NOTICED_WITHIN + LOADED / 2,
            "I10",
            "a dead line is noticed too late",
        )
        rig.cancel(running)
        fresh = rig.defer("quick")
        _ip("link", "set", f"{name}h", "up")
        began = time.monotonic()
        wait_until(
            lambda: started(rig, fresh) and status_of(rig, running) == "aborted",
            NOTICED_WITHIN + LOADED + 10,
            "the worker goes on",
        )
        measured(rig, "went on after ms", began)
        rig.settle()
        rig.check()


class Elsewhere(Process):
    """A worker process in a network namespace."""

    def __init__(self, namespace: str, url: str, log: Path, side_url: str) -> None:
        options = {**STEADY, "concurrency": 2, "name": "elsewhere"}
        Command.__init__(
            self,
            ["ip", "netns", "exec", namespace, sys.executable, str(HERE / "worker_process.py"), url,
             json.dumps(options)],
            log,
            {"PYTHONUNBUFFERED": "1", "PLJOBS_SIDE_URL": side_url},
        )  # fmt: skip


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _no_namespaces() -> str | None:
    """Say why there can be no network namespace here; None: there can."""
    try:
        _ip("netns", "add", "pljtry")
        _ip("netns", "delete", "pljtry")
    except FileNotFoundError:
        return "no ip command"
    except subprocess.CalledProcessError as error:
        return str(error.stderr).strip()
    return None


@contextlib.contextmanager
def _namespace(name: str, host: str, guest: str) -> Iterator[None]:
    """Make a network namespace with one way out, to this machine."""
    with contextlib.suppress(subprocess.CalledProcessError):
        _ip("netns", "delete", name)
    _ip("netns", "add", name)
    try:
        _ip("link", "add", f"{name}h", "type", "veth", "peer", "name", f"{name}g", "netns", name)
        _ip("addr", "add", f"{host}/30", "dev", f"{name}h")
        _ip("link", "set", f"{name}h", "up")
        _ip("-n", name, "addr", "add", f"{guest}/30", "dev", f"{name}g")
        _ip("-n", name, "link", "set", f"{name}g", "up")
        _ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "delete", f"{name}h")
        _ip("netns", "delete", name)


# N2

NOBODYS = "nobody serves this"


@row("N2", "the reply of a COMMIT is lost: fetch, finish, cancel, defer", invariants="I1-I7, I9, I11",
     push=1, long=15)  # fmt: skip
def lost_replies(rig: Rig) -> None:
    proxy = proxied(rig)
    proxy.reset_then = True
    for _ in range(2):
        rig.worker(proxy.url(rig.dbname), **BRISK)
    rig.await_workers()
    app = App(proxy.url(rig.dbname))
    with app.open():
        for turn in range(20 if rig.long else 10):
            rig.load(4, endless=turn == 0)  # more would take all slots
            _lose(rig, proxy, "finish_jobs_v1" if turn % 2 else "fetch_jobs_v1")
            if turn % 5 == 0:
                _defer_once(rig, proxy, app, f"{rig.seed} {turn}")
                _cancel_again(rig, proxy, app)
    rig.settle()
    rig.check()


def _lose(rig: Rig, proxy: Proxy, call: str) -> None:
    before = proxy.lost
    proxy.swallow_reply_to = call.encode()

    def lost() -> bool:
        query = "SELECT FROM pljobs.jobs WHERE status = 'todo' AND queue <> %s LIMIT 1"
        if proxy.lost == before and not rig.rows(query, NOBODYS):
            rig.load(2, endless=False)  # there must be something to ask about
        return proxy.lost > before

    wait_until(lost, 30, f"a reply of {call} is lost")
    rig.harms[f"lost reply of {call}"] += 1


def _until_answered(rig: Rig, proxy: Proxy, call: str, ask: Callable[[], object]) -> object:
    """Ask until there is an answer, of which the first is lost; return the one that came."""
    before = proxy.lost
    proxy.swallow_reply_to = call.encode()
    for _ in range(10):
        try:
            answer = ask()
        except DatabaseUnavailable:
            continue
        hold(proxy.lost > before, "N2", f"{call}: no reply was lost")
        rig.harms[f"lost reply of {call}"] += 1
        return answer
    raise Violation("N2", f"{call}: no answer")


def _defer_once(rig: Rig, proxy: Proxy, app: App, key: str) -> None:
    before = rig.count("SELECT count(*) FROM pljobs.jobs")
    deferrer = app.configure_task("quick", idempotency_key=key, queue=NOBODYS)
    job_id = _until_answered(rig, proxy, "defer_jobs_v2", deferrer.defer)
    after = rig.count("SELECT count(*) FROM pljobs.jobs WHERE queue = 'nobody serves this'")
    ids = rig.rows("SELECT id FROM pljobs.jobs WHERE queue = 'nobody serves this' ORDER BY id DESC LIMIT 1")
    hold(ids == [(job_id,)], "N2", f"deferred {ids}, answered {job_id}")
    rig.notes["deferred by key"] += 1
    hold(after == rig.notes["deferred by key"], "N2", f"{after} jobs of as many keys less, {before}")


def _cancel_again(rig: Rig, proxy: Proxy, app: App) -> None:
    job_id = rig.defer("forever")
    wait_until(lambda: started(rig, job_id), PATIENCE, "it runs")
    result = _until_answered(
        rig, proxy, "cancel_job_v1", lambda: app.job_manager.cancel_job(job_id, abort=True)
    )
    outcome = str(getattr(result, "outcome", result))
    rig.answers[job_id].append(outcome)
    hold(
        outcome in {"abort_already_requested", "already_cancelled"}, "I7", f"asked again, answered {outcome}"
    )


# N3


@row("N3", "connections reset in the middle of a message", invariants="I1-I7, I9, I11", push=1, long=30)
def cut_messages(rig: Rig) -> None:
    rig.let_leave()
    proxy = proxied(rig)
    for _ in range(2):
        rig.worker(proxy.url(rig.dbname), **BRISK)
    rig.await_workers()
    for _ in range(25):
        rig.load(3)
        before = proxy.cuts
        # Long ones as well: the bytes of several calls, so that each part of each message is met.
        size = rig.random.choice([rig.random.randint(1, 300), rig.random.randint(1, 4000)])
        if rig.random.random() < 0.5:
            proxy.cut_up_after, way = size, "request"
        else:
            proxy.cut_down_after, way = size, "reply"
        if rig.random.random() < 0.2:
            rig.cancel_some()
        wait_until(lambda: _is_cut(rig, proxy, before), 60, "a connection is cut")  # noqa: B023
        rig.harms[f"cut in a {way}"] += 1
    rig.settle()
    rig.check()


def _is_cut(rig: Rig, proxy: Proxy, before: int) -> bool:
    rig.check_workers()
    return proxy.cuts > before


# N4


@row("N4", "slow networks: 50 to 2,000 ms each way", invariants="I1-I7, I9, I11", push=0, long=2)
def slow(rig: Rig) -> None:
    """Run shortly it is 50 to 250 ms, and the lease as much shorter."""
    proxy = proxied(rig)
    longest, lease = (2.0, 30.0) if rig.long else (0.25, 6.0)
    proxy.delay = (0.05, longest)
    options: dict[str, Any] = {
        "fetch_job_polling_interval": 2.0,
        "update_heartbeat_interval": lease / 4,
        "stalled_worker_timeout": lease,
    }
    for _ in range(3):
        rig.worker(proxy.url(rig.dbname), **options)
    rig.harms["slow lines"] += len(rig.workers)
    for worker in rig.workers:
        worker.until_said("started", 120)
    rig.load(30)
    for _ in range(4):
        rig.cancel_some()
        rig.await_events(4, 2 * longest)
    # For longer than a lease, and with runs that it is all about.
    held = [rig.defer("forever") for _ in range(3)]
    began = rig.rows("SELECT clock_timestamp()")[0][0]

    def long_enough() -> bool:
        return bool(
            rig.rows(
                "SELECT clock_timestamp() > %s + %s * interval '1 s' AND bool_and(w.heartbeat_at > %s)"
                " FROM pljobs.workers AS w",
                began, 1.3 * lease, began,
            )[0][0]
        )  # fmt: skip

    wait_until(long_enough, 3 * lease + 60, "longer than a lease")
    wait_until(lambda: started(rig, *held), 60, "they run")
    _end(rig)
    crashes = rig.rows("SELECT id, crashes FROM pljobs.jobs WHERE crashes > 0")
    hold(not crashes, "I8", f"rescued from workers that are alive: {crashes}")
    lost = rig.count("SELECT count(*) FROM pljobs.workers WHERE stopped_at IS NOT NULL")
    hold(lost == 0, "I8", f"{lost} workers were taken for lost")
    rig.heal()
    rig.check(without={"I10"})


def _end(rig: Rig) -> None:
    """Wait until all jobs have ended, with the network as it is."""
    for (job_id,) in rig.rows("SELECT id FROM pljobs.jobs WHERE task = 'forever' AND status <> 'cancelled'"):
        rig.cancel(job_id)
    wait_until(
        lambda: rig.count("SELECT count(*) FROM pljobs.jobs WHERE status IN ('todo', 'doing')") == 0,
        180,
        "all jobs end",
    )


# N5


@row("N5", "a listener that stops reading, and 20,000 notifications", invariants="I1-I7, I10, I11",
     push=1, long=5)  # fmt: skip
def deaf(rig: Rig) -> None:
    worker = rig.worker(**STEADY)
    rig.await_workers()
    (worker_id,) = rig.rows("SELECT max(id) FROM pljobs.workers")[0]
    (pid,) = wait_until(
        lambda: rig.rows("SELECT pid FROM pg_stat_activity WHERE query LIKE '%%heartbeat_v1%%' AND datname ="
                         " current_database() AND pid <> pg_backend_pid()"),
        what="its line is up",
    )[0]  # fmt: skip
    worker.signal(signal.SIGSTOP)
    rig.harms["SIGSTOP"] += 1
    with rig.connect() as conn:
        # As many transactions: in one, equal ones would be folded. As long as pljobs's own are at most.
        conn.execute(
            f"DO $$ BEGIN FOR i IN 1..20000 LOOP PERFORM pg_notify('pljobs_worker_{worker_id}',"
            " lpad(i::text, 60)); COMMIT; END LOOP; END $$".encode()
        )
        rig.harms["notifications"] += 20000
        used = float(conn.execute("SELECT pg_notification_queue_usage()").fetchall()[0][0])
        rig.notes["queue used, millionths"] = int(used * 1e6)
        hold(used < 0.01, "N5", f"{100 * used} % of the notification queue is used")
        conn.execute("SET pljobs.health_patience = 0.01")
        named = "SELECT subject FROM pljobs.health WHERE item = 'listeners' AND severity <> 'ok'"
        wait_until(
            lambda: conn.execute(named.encode()).fetchall() == [(f"pid {pid}",)],
            what=f"health names the pid {pid}",
        )
    worker.signal(signal.SIGCONT)
    rig.load(10)
    rig.settle()
    rig.check()
    sizes = rig.rows(
        "SELECT octet_length('pljobs_worker_' || 9223372036854775807), octet_length('pljobs_todo' || md5(''))"
    )[0]
    hold(max(sizes) <= 100, "N5", f"channel and payload of {sizes} bytes")


# N6


@row("N6", "notifications lost, then forged in a flood", invariants="I1-I7, I10, I11", push=1, long=8)
def lost_and_forged(rig: Rig) -> None:
    proxy = proxied(rig)
    with rig.connect() as conn:
        conn.execute(
            f"DO $$ BEGIN CREATE ROLE {FLOODER} LOGIN;"
            " EXCEPTION WHEN duplicate_object THEN NULL; END $$".encode()
        )
    deaf_from_the_start = rig.random.random() < 0.5
    proxy.drop_notifications = deaf_from_the_start
    rig.worker(proxy.url(rig.dbname), **STEADY, concurrency=30)
    rig.await_workers()
    if deaf_from_the_start:
        rig.workers[0].until_said("Notifications don't arrive")
    proxy.drop_notifications = True
    running = [rig.defer("forever") for _ in range(3)]
    wait_until(lambda: started(rig, *running), 1 + LOADED, "jobs are seen by polling")
    began = time.monotonic()
    for job_id in running:
        rig.cancel(job_id)
    wait_until(
        lambda: all(status_of(rig, job_id) == "aborted" for job_id in running),
        1 + LOADED,
        "aborts are seen by polling",
    )
    measured(rig, "aborted by polling after ms", began)
    rig.load(20)
    rig.harms["notifications dropped"] += proxy.dropped
    hold(proxy.dropped > 0, "N6", "nothing was dropped")
    proxy.drop_notifications = False
    _flood(rig)
    rig.settle()
    rig.check()


def _flood(rig: Rig) -> None:
    """Have somebody without any right say what workers are told, as fast as may be."""
    innocent = rig.defer("forever")
    wait_until(lambda: started(rig, innocent), PATIENCE, "it runs")
    (worker_id,) = rig.rows("SELECT max(id) FROM pljobs.workers")[0]
    with psycopg.connect(make_conninfo(rig.url, user=FLOODER), autocommit=True) as conn:
        # In the server, a transaction each: as fast as can be.
        forged = (
            f"PERFORM pg_notify('pljobs_worker_{worker_id}', 'abort'); COMMIT;"
            f" PERFORM pg_notify('pljobs_worker_{worker_id}', '{{\"job_id\": {innocent}}}'); COMMIT;"
            " PERFORM pg_notify('pljobs_todo', md5('default')); COMMIT;"
        )
        conn.execute(
            "DO $$ DECLARE v_end timestamptz := clock_timestamp() + '2 s'; BEGIN"
            f" WHILE clock_timestamp() < v_end LOOP {forged} END LOOP; END $$".encode()
        )
        rig.harms["floods of 2 s"] += 1
    # How often it looks is counted where that can be seen at once, in test_security_notify.py.
    hold(status_of(rig, innocent) == "doing", "N6", "a forged notification has stopped a job")
    asked = rig.count("SELECT count(*) FROM pljobs.requests WHERE job_id = %s", innocent)
    hold(asked == 0, "N6", "a forged notification made a request")

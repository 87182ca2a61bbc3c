"""The demo: the main job on real files and an embedded PostgreSQL; six jobs are stopped on the way."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import click
from psycopg.conninfo import make_conninfo

from pljobs import demo_files, demo_report, demo_tasks, embedded, install
from pljobs.cli_base import Failure
from pljobs.cli_output import visible
from pljobs.connector import PsycopgConnector
from pljobs.demo_report import Connection, Screen
from pljobs.demo_server import DATABASE, LOGIN, SIGNALS, Home, find_home, interruptible_later, worker
from pljobs.embedded import Server

CONCURRENCY = 10
LOOPED_FILES = 100
LOOK_EVERY = 0.05
PACE = 0.8
PATIENCE = 30.0
FIRST_ID = 33


def run(folder: Path | None, *, home: Path | None = None, stay: bool = False) -> None:
    """Run the demo on the text files under a folder; with `stay`, leave a job running for the user to abort.

    The server keeps running afterwards, until `stop` or the next demo. Interrupted, or failing, it takes away
    what it started.
    """
    found = _files(folder)
    # A PGOPTIONS or PGSERVICE of the user's is about other servers.
    for name in os.environ.keys() - embedded.environment().keys():
        del os.environ[name]
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)
    place = find_home(home)
    with place.locked():
        try:
            began = time.monotonic()
            with interruptible_later():
                server = place.start()
            url = _database(server)
            took = time.monotonic() - began
            click.echo(
                f"PostgreSQL is up in {place.path}, the schema in its database {DATABASE} ({took:.1f} s)."
            )
            _Demo(place, server, url, found).run(stay=stay)
        except BaseException:
            with interruptible_later():
                place.remove()
            click.echo(f"\nWhat was started is stopped, and {place.path} removed.", err=True)
            raise


def stop(*, home: Path | None = None) -> None:
    """Stop the demo's server and remove its folder."""
    place = find_home(home)
    with place.locked():
        place.remove()
    click.echo(f"The demo's server is stopped, and {place.path} removed.")


@dataclass(slots=True)
class _Demo:
    """One run: who it plays with, and how it asked each of them."""

    place: Home
    server: Server
    url: str
    found: demo_files.Found
    hashing: int = 0
    # The id of each job that is played with.
    ids: dict[str, int] = field(default_factory=dict)
    # How each was asked, and what the answer was.
    asked: dict[int, tuple[str, str]] = field(default_factory=dict)

    def run(self, *, stay: bool) -> None:
        connector = PsycopgConnector(self.url)
        # The worker is another process: this is for deferring, and for app.job_manager.
        demo_tasks.app.connector = connector
        with demo_tasks.app.open(), connector.connect() as conn:
            self._defer()
            screen = Screen(len(self.found.files))
            url = make_conninfo(self.url, user=LOGIN)
            with worker(self.place, url, concurrency=CONCURRENCY) as alive:
                with screen.live():
                    self._play(conn, screen, alive)
                demo_report.print_report(conn, self.asked)
                self._say_how_to_go_on(stay=stay)
                if stay:
                    self._stay(conn, alive)

    def _defer(self) -> None:
        files, tasks = self.found.files, demo_tasks
        looped = files[:LOOPED_FILES]
        hashing = [{"path": path} for path in files]
        # With as many files as that, the job to abort from psql is number 33.
        before = min(len(hashing), FIRST_ID - 1)
        tasks.hash_file.batch_defer(*hashing[:before])
        self.ids["async"] = tasks.hash_again_async.configure(priority=9).defer(paths=looped)
        self.ids["sync"] = tasks.hash_again_sync.configure(priority=9).defer(paths=looped)
        self.ids["query"] = tasks.long_query.configure(priority=9).defer()
        self.ids["process"] = tasks.hash_stubbornly.configure(priority=9).defer(paths=looped)
        tonight = tasks.nightly_report.configure(schedule_in={"hours": 1})
        self.ids["cancel"], self.ids["delete"] = (tonight.defer(paths=looped) for _ in range(2))
        tasks.hash_file.batch_defer(*hashing[before:])
        click.echo(
            f"Deferred {len(files)} jobs, one for each text file under {visible(str(self.found.folder))}"
            f"{self.found.left_out()},\nand six to play with: {self.ids['async']} and {self.ids['sync']} run"
            f" until they are aborted, {self.ids['query']} hangs in a statement,"
            f"\n{self.ids['process']} ignores whatever it is told, {self.ids['cancel']} and"
            f" {self.ids['delete']} wait for tonight."
            f"\nA worker runs them in a process of its own, {CONCURRENCY} at once.\n"
        )

    def _play(self, conn: Connection, screen: Screen, alive: Callable[[], None]) -> None:
        """Watch the jobs being done, and meanwhile ask six of them to stop, one after the other."""
        acts = deque(
            [
                self._cancel_waiting,
                self._delete_waiting,
                self._abort_async,
                self._abort_sync,
                self._cancel_statement,
                self._kill_process,
            ]
        )
        running = [self.ids[name] for name in ("async", "sync", "query", "process")]
        _until(lambda: self._are_doing(conn, running), alive, "the worker to start the jobs")
        next_act = time.monotonic() + PACE / 2
        while True:
            alive()
            began = time.monotonic()
            counts = demo_report.counts(conn)
            screen.show(counts)
            if acts and began >= next_act:
                acts.popleft()(conn, screen, alive)
                next_act = time.monotonic() + PACE
            if not acts and not counts.get("todo") and not counts.get("doing"):
                return
            # Counting a million jobs takes a while: look less often then.
            time.sleep(LOOK_EVERY if acts else max(LOOK_EVERY, 5 * (time.monotonic() - began)))

    def _cancel_waiting(self, _: Connection, screen: Screen, __: Callable[[], None]) -> None:
        job_id = self.ids["cancel"]
        statement, answer = self._from_sql(f"SELECT cancel_job({job_id});")
        self._tell(screen, "a job that waits", job_id, ("psql", statement, answer))

    def _delete_waiting(self, _: Connection, screen: Screen, __: Callable[[], None]) -> None:
        job_id = self.ids["delete"]
        answer = demo_tasks.app.job_manager.cancel_job_by_id(job_id, delete_job=True)
        self._tell(
            screen,
            "another, and delete it",
            job_id,
            ("Python", f"app.job_manager.cancel_job_by_id({job_id}, delete_job=True)", str(answer)),
        )

    def _abort_async(self, conn: Connection, screen: Screen, alive: Callable[[], None]) -> None:
        job_id = self.ids["async"]
        statement, answer = self._from_sql(f"SELECT cancel_job({job_id}, abort => true);")
        ended = _ended(conn, job_id, alive)
        self._tell(screen, "a running async job", job_id, ("psql", statement, answer), ended)

    def _abort_sync(self, conn: Connection, screen: Screen, alive: Callable[[], None]) -> None:
        job_id = self.ids["sync"]
        answer = demo_tasks.app.job_manager.cancel_job_by_id(job_id, abort=True)
        ended = _ended(conn, job_id, alive)
        call = f"app.job_manager.cancel_job_by_id({job_id}, abort=True)"
        self._tell(screen, "a running sync job", job_id, ("Python", call, str(answer)), ended)

    def _cancel_statement(self, conn: Connection, screen: Screen, alive: Callable[[], None]) -> None:
        job_id = self.ids["query"]
        statement, answer = self._from_sql(f"SELECT cancel_job({job_id}, abort => true, sql => true);")
        ended = _ended(conn, job_id, alive)
        self._tell(screen, "a job that hangs in a statement", job_id, ("psql", statement, answer), ended)

    def _kill_process(self, conn: Connection, screen: Screen, alive: Callable[[], None]) -> None:
        job_id = self.ids["process"]
        call = f"app.job_manager.cancel_job_by_id({job_id}, abort=True, grace=0.2, term_grace=0.2)"
        manager = demo_tasks.app.job_manager
        answer = manager.cancel_job_by_id(job_id, abort=True, grace=0.2, term_grace=0.2)
        ended = _ended(conn, job_id, alive)
        what = "a job that ignores it, in a process of its own"
        self._tell(screen, what, job_id, ("Python", call, str(answer)), ended)

    def _from_sql(self, statement: str) -> tuple[str, str]:
        """Run a statement in psql; return it and its answer."""
        command = [*self.server.psql_command(DATABASE), "-XqAtc", statement]
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, check=False, env=embedded.environment(), cwd="/"
        )
        if done.returncode:
            raise Failure(f"psql failed: {done.stderr}")
        return statement, done.stdout.strip()

    def _tell(
        self,
        screen: Screen,
        what: str,
        job_id: int,
        said: tuple[str, str, str],
        ended: tuple[str, str] | None = None,
    ) -> None:
        where, statement, answer = said
        self.asked[job_id] = (where, answer)
        how = f"; it ended {ended[1]} later: {ended[0]}" if ended else ""
        screen.tell(f"  {where}: cancel {what}\n    {statement}\n    -> {answer}{how}")

    def _are_doing(self, conn: Connection, job_ids: list[int]) -> bool:
        statement = "SELECT count(*) FROM jobs WHERE status = 'doing' AND id = ANY (%s)"
        row = conn.execute(statement, [job_ids]).fetchone()
        return row is not None and row[0] == len(job_ids)

    def _say_how_to_go_on(self, *, stay: bool) -> None:
        psql = shlex.join(self.server.psql_command(DATABASE))
        pljobs = _this_command()
        home = f" --home {shlex.quote(str(self.place.path))}" if self.place != find_home(None) else ""
        lines = ["The database is still there. Open psql on it:", "", f"  {psql}", ""]
        if not stay:
            example = self.ids["async"]
            lines += [
                f"Try  SELECT cancel_job({example}, abort => true);  and  TABLE requests;",
                f"`{pljobs} demo --stay{home}` leaves a job running, for you to abort by hand.",
            ]
        lines.append(f"`{pljobs} demo --stop{home}` stops the server and removes {self.place.path}.")
        demo_report.print_end(lines)

    def _stay(self, conn: Connection, alive: Callable[[], None]) -> None:
        """Leave a job running until somebody aborts it; Ctrl-C does it here."""
        deferrer = demo_tasks.hash_again_async.configure(priority=9)
        job_id = deferrer.defer(paths=self.found.files[:LOOPED_FILES])
        _until(lambda: self._are_doing(conn, [job_id]), alive, "the worker to start the job")
        try:
            statement = f"SELECT cancel_job({job_id}, abort => true);"
            click.echo(f"\nJob {job_id} runs until you abort it. In psql: {statement}")
            click.echo("Waiting for that. Ctrl-C aborts it, too.")
            while True:
                # An interrupted statement would leave a connection of no use to what follows.
                with interruptible_later():
                    if not self._are_doing(conn, [job_id]):
                        break
                alive()
                time.sleep(LOOK_EVERY)
        except KeyboardInterrupt:
            demo_tasks.app.job_manager.cancel_job_by_id(job_id, abort=True, reason="Ctrl-C")
            _ended(conn, job_id, alive)
        ended = demo_report.ended_after(conn, job_id)
        how = f", {ended[1]} after it was asked to" if ended else ""
        click.echo(f"Job {job_id} ended{how}: {ended[0] if ended else 'not asked to'}.")


def _files(folder: Path | None) -> demo_files.Found:
    chosen = demo_files.default_folder() if folder is None else folder
    found = demo_files.find(chosen, limit=demo_files.DEFAULT_LIMIT if folder is None else None)
    if not found.files and folder is None:
        found = demo_files.find(Path(__file__).parent)
    if not found.files:
        raise Failure(f"no text file under {chosen}{found.left_out()}: name another folder")
    return found


def _database(server: Server) -> str:
    """Make the demo's database, with the schema, and that on everybody's search_path."""
    url = server.create_database(DATABASE)
    install.migrate(url)
    server.run_sql(f"ALTER DATABASE {DATABASE} SET search_path = pljobs, public")
    # As a DBA does it: logins are in groups, and the owner may cancel their statements, no superuser's.
    server.run_sql(f"CREATE ROLE {LOGIN} LOGIN; GRANT pljobs_operator TO {LOGIN}")
    server.run_sql("GRANT pg_signal_backend, pg_read_all_stats TO pljobs_owner")
    return url


def _until(condition: Callable[[], bool], alive: Callable[[], None], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        alive()
        if time.monotonic() > end:
            raise Failure(f"waited {PATIENCE:g} s for {what}")
        time.sleep(LOOK_EVERY)


def _ended(conn: Connection, job_id: int, alive: Callable[[], None]) -> tuple[str, str] | None:
    """Wait until a job has ended that was asked to; return as what, and after how long."""
    _until(lambda: demo_report.ended_after(conn, job_id) is not None, alive, f"job {job_id} to end")
    return demo_report.ended_after(conn, job_id)


def _this_command() -> str:
    """Return how to call this program again from here."""
    called = Path(sys.argv[0])
    if called.name != "pljobs":
        return shlex.join([sys.executable, "-m", "pljobs"])
    on_path = shutil.which("pljobs")
    return "pljobs" if on_path and Path(on_path).resolve() == called.resolve() else shlex.quote(str(called))

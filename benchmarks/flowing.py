"""What throttles and turns cost the server: fetch and finish with them, beside the same without."""

from __future__ import annotations

from functools import partial

from backlog import fill, short, work
from harness import Bench, connect, vacuum

KEYED = fill("fairness_key, waiting_for", "{key}, 'turn'", priority=0)
MANY_KEYS = KEYED.replace("{key}", "'key ' || g %% 1000")
ONE_KEY = KEYED.replace("{key}", "'big'")
# What is set up, with which jobs already waiting.
KINDS: dict[str, tuple[str, str | None]] = {
    "another queue has a limit": ("pljobs.throttle_queue('another', max_running => 10)", None),
    "its queue has a limit": ("pljobs.throttle_queue('live', max_running => 1000)", None),
    "its queue has a limit and a rate": (
        "pljobs.throttle_queue('live', max_running => 1000, rate => 1000000, period => '1 s')",
        None,
    ),
    "its task has a limit": ("pljobs.throttle_task('noop', max_running => 1000)", None),
    "1,000 keys take turns": ("1", MANY_KEYS),
    "of one key": ("1", ONE_KEY),
    "1,000 keys have a limit each": (
        "pljobs.throttle_queue('live', max_running => 100, each_key => true)",
        MANY_KEYS,
    ),
}


def bench_flow(bench: Bench) -> None:
    """Fetch and finish 10 a call, one client; where keys take turns, a million jobs have keys."""
    rows = bench.pick(2_000, 1_000_000)
    plain = bench.database("plain")
    for kind, (setting, jobs) in KINDS.items():
        url = bench.database("flow")
        with connect(url) as conn:
            conn.execute(f"SELECT {setting}".encode())
            if jobs is not None:
                conn.execute(jobs.encode(), [rows])
                vacuum(conn, "pljobs.job")
                conn.execute("CHECKPOINT")
        ready = None if jobs is None else 0
        sides = {
            "with": partial(work, bench, url, False, ready),
            "without": partial(work, bench, plain, False),
        }
        what = kind if jobs is None else f"{kind}, {short(rows)} jobs"
        bench.add(f"fetch + finish 10, {what}", "ms", bench.measure(sides)["ms"], "over all workers")
        bench.drop(url)
    bench.drop(plain)

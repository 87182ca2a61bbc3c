"""What the workers of 0.1.0 run while their schema is upgraded: `python benchmarks/run.py upgrade`."""

from __future__ import annotations

from pljobs import App, JobContext

app = App("")


@app.task(name="noop")
async def noop() -> None:
    """Do nothing."""


@app.task(name="second_time", pass_context=True, retry=True)
async def second_time(context: JobContext) -> None:
    """Fail the first time, for that writes history."""
    if context.job.attempts == 0:
        raise RuntimeError("as told")

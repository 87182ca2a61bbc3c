"""Logs on stderr: lines for people that can't drive a terminal, or one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from pljobs.cli_output import safe_json, visible
from pljobs.logs import JobLogFilter

# What every record has; whatever else one has was given with extra=.
_OWN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _People(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        # What a task writes; pljobs's own lines name the job by themselves.
        inside = getattr(record, "run_id", None) is not None and not record.name.startswith("pljobs.")
        record.job = (
            f"{getattr(record, 'task_name', '?')}[{getattr(record, 'job_id', '?')}]: " if inside else ""
        )
        return visible(super().format(record), lines=True)


class _Scripts(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        # One's own fields never hide these.
        extra = {key: value for key, value in vars(record).items() if key not in _OWN and value is not None}
        fields = extra | fields
        return safe_json(json.dumps(fields, ensure_ascii=False, default=str))


def set_up(level: str, *, as_json: bool) -> None:
    """Send every record of at least this level to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Scripts() if as_json else _People("%(asctime)s %(levelname)-7s %(name)s: %(job)s%(message)s")
    )
    handler.addFilter(JobLogFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())

"""Loggers that never raise: what an application's filter or handler does must keep no job from ending."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import MutableMapping
from typing import Any


class CarefulLogger(logging.LoggerAdapter[logging.Logger]):
    """Log through a logger; print what its filters and handlers raise, as logging does for `emit`.

    Whoever logs is in the middle of something: an abort to deliver, an end to report, a lease to keep.
    """

    def process(
        self,
        msg: Any,  # noqa: ANN401 - as LoggerAdapter declares it
        kwargs: MutableMapping[str, Any],
    ) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, kwargs  # an adapter's own would replace the caller's `extra`

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:  # noqa: ANN401
        if not self.isEnabledFor(level):
            return
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # the caller's line, not this one
        try:
            self.logger.log(level, msg, *args, **kwargs)
        except Exception:  # noqa: BLE001
            if logging.raiseExceptions and sys.stderr is not None:
                traceback.print_exc()


def careful_logger(name: str) -> CarefulLogger:
    """Return a careful one of this name."""
    return CarefulLogger(logging.getLogger(name), None)

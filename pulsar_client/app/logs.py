"""Logging of a server: one readable line an event, to standard error or to a file.

What the application has configured itself is left alone.
"""

import logging
import sys
from typing import TextIO

from pulsar_client.app.settings import Settings

__all__ = ["CountingHandler", "LogFile", "announce", "configure"]

_logger = logging.getLogger("pulsar_client.app")

FORMAT = "%(asctime)s [%(process)d] %(levelname)s: %(message)s"


class LogFile(logging.FileHandler):
    """A log file that can be opened anew after it was renamed."""

    def reopen(self) -> None:
        """Write to the file that has the name now; it is made if there is none."""
        self.acquire()
        try:
            old, self.stream = self.stream, self._open()
            if old is not None:
                old.close()
        finally:
            self.release()


class CountingHandler(logging.Handler):
    """Counts errors: what the handlers of an application did wrong."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count one."""
        self.count += 1


def configure(settings: Settings) -> LogFile | None:
    """Set up logging, unless the application has.

    Returns:
        The log file, if there is one.

    Raises:
        OSError: it can't be opened.
    """
    root = logging.getLogger()
    level = settings.log_level.upper()
    logging.getLogger("pulsar_client").setLevel(level)
    if settings.log_file is not None:
        handler: logging.Handler = LogFile(settings.log_file)
    elif root.handlers:
        return None
    else:
        handler = logging.StreamHandler(standard_error())
    handler.setFormatter(logging.Formatter(FORMAT))
    root.addHandler(handler)
    root.setLevel(level)
    return handler if isinstance(handler, LogFile) else None


def announce(text: str) -> None:
    """Log a line that must appear on standard error, whatever else goes there."""
    root = logging.getLogger()
    if not _logger.isEnabledFor(logging.INFO) or any(
        isinstance(handler, LogFile) for handler in root.handlers
    ):
        stream = standard_error()
        stream.write(text + "\n")
        stream.flush()
    _logger.info("%s", text)


def standard_error() -> TextIO:
    """Give standard error, which a program may have replaced."""
    return sys.__stderr__ or sys.stderr

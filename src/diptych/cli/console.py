"""How log records look on the terminal."""

from __future__ import annotations

import logging
import os
import sys

from diptych.progress import is_first_process


def log_to_console(debug: bool) -> None:
    """Sends the log to stderr, which leaves stdout to results; `debug` brings details and tracebacks."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(ConsoleFormatter(debug))
    # Great Expectations logs tracebacks of what it also raises.
    handler.addFilter(lambda record: debug or not record.name.startswith("great_expectations"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # Of several processes that train together the first speaks for all; the others have their warnings.
    level = logging.INFO if is_first_process() else logging.WARNING
    logging.getLogger("diptych").setLevel(logging.DEBUG if debug else level)


def open_standard_streams() -> None:
    """Open the null device in place of a standard stream that is closed, as it may be where a daemon starts this.

    The next file that is opened would take its number, and be written to by each child.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115


class ConsoleFormatter(logging.Formatter):
    """The message, after time and task for what happens in a flow; warnings and errors say that they are."""

    def __init__(self, debug: bool) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self.debug = debug

    def format(self, record: logging.LogRecord) -> str:
        """The record's text; the record itself stays as it is for other handlers."""
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        name = getattr(record, "task_run_name", None) or getattr(record, "flow_name", None)
        if name:
            text = f"{self.formatTime(record, self.datefmt)} {name:<10} | {text}"
        if self.debug and record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        return text

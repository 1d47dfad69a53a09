"""The standard streams: log records on stderr, and the result of a command on stdout."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import click

from diptych.progress import is_first_process


def log_to_console(debug: bool) -> None:
    """Send the log to stderr, which leaves stdout to results; `debug` adds details and tracebacks."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(ConsoleFormatter(debug))
    # Great Expectations logs the tracebacks of exceptions that it also raises.
    handler.addFilter(lambda record: debug or not record.name.startswith("great_expectations"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # Only the first of several processes that train together reports progress; the others log warnings.
    level = logging.INFO if is_first_process() else logging.WARNING
    logging.getLogger("diptych").setLevel(logging.DEBUG if debug else level)


def print_result(content: Any, text: str, as_json: bool) -> None:
    """Print the result of a command: its `content` as JSON for programs, or `text` for people."""
    # `diptych --help` imports this module, and prints no JSON.
    import json

    click.echo(json.dumps(content, indent=2) if as_json else text)


def open_standard_streams() -> None:
    """Open the null device in place of each standard stream that a daemon has closed.

    Otherwise the next file that is opened would take its number, and children would write to that file.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115


class ConsoleFormatter(logging.Formatter):
    """Formatter that adds time and task to the records of a flow, and the level to warnings and errors."""

    def __init__(self, debug: bool) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self.debug = debug

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text; the record itself stays as it is for other handlers."""
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        name = getattr(record, "task_run_name", None) or getattr(record, "flow_name", None)
        if name:
            text = f"{self.formatTime(record, self.datefmt)} {name:<10} | {text}"
        if self.debug and record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        return text

"""The `diptych` command: its groups and commands, and what the user reads of a failure."""

from __future__ import annotations

import errno
import gc
import importlib
import sys
import tempfile
import traceback
from pathlib import Path

import click

from diptych import __version__
from diptych.cli.console import log_to_console, open_standard_streams
from diptych.errors import DiptychError, is_disk_full

_REGISTRY = "diptych.cli.registry"
COMMANDS = {
    "advise": ("diptych.cli.advise:advise", "Propose a params.yaml for the dataset, with reasons."),
    "champion": (f"{_REGISTRY}:champion", "Show the version in use; exit code 1 where there is none."),
    "compare": (f"{_REGISTRY}:compare", "Measure two versions (numbers or aliases) on the test split as it is now."),
    "data": ("diptych.cli.data:data", "Import images and captions into data/, the dataset version."),
    "deploy": ("diptych.cli.deploy:deploy", "Put the deployments of prefect.yaml on the Prefect server."),
    "doctor": ("diptych.cli.doctor:doctor", "Check everything that a run depends on."),
    "embed": ("diptych.cli.embed:embed", "Write a collection's embeddings for other search engines."),
    "evaluate": ("diptych.cli.evaluate:evaluate", "Measure retrieval by any model's embeddings."),
    "feedback": ("diptych.cli.feedback:feedback", "Use what users have said of search results."),
    "history": (f"{_REGISTRY}:history", "Show promotions, rollbacks and refusals."),
    "index": ("diptych.cli.index:index", "Index a collection of images, to search it with a version."),
    "promote": (f"{_REGISTRY}:promote", "Make VERSION the champion, if it passes the gate."),
    "register": ("diptych.cli.chain:register", "Make the trained model a version of the registered model."),
    "reproduce": ("diptych.cli.reproduce:reproduce", "Make VERSION again from its tags alone, and compare."),
    "rollback": (f"{_REGISTRY}:rollback", "Make the champion before the present one the champion again."),
    "run": ("diptych.cli.chain:run", "Run the whole chain, from the inbox to the gate."),
    "schedule": ("diptych.cli.deploy:schedule", "Show or change when the retrain flow runs by itself."),
    "serve": ("diptych.cli.serve:serve", "Serve the search page and its API."),
    "stage": ("diptych.cli.chain:stage", "Run one stage by itself; `dvc repro` calls this."),
    "weights": ("diptych.cli.weights:weights", "Fetch pretrained towers into weights/."),
}
"""Module and attribute of each command, and its line in `diptych --help`."""


class _LazyGroup(click.Group):
    """The commands of `COMMANDS`: each is imported when it is called, so that the others' imports cost nothing."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands as click does, but import none of them."""
        width = formatter.width - 6 - max(map(len, COMMANDS))
        rows = [
            (name, click.Command(name, help=COMMANDS[name][1]).get_short_help_str(width))
            for name in self.list_commands(ctx)
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show tracebacks and everything that is logged.")
@click.version_option(__version__)
def cli(debug: bool) -> None:
    """Turn captioned images into a registered, evaluated, reproducible retrieval model."""
    log_to_console(debug)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; every failure is one message on stderr and its own exit code."""
    # Imports make a million objects, and none of them ends: looking through them as often as Python does by default
    # takes a fifth of their time.
    gc.set_threshold(100_000, 20, 20)
    open_standard_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        sys.exit(cli.main(arguments, prog_name="diptych", standalone_mode=False) or 0)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        message, code = _explain(error)
        click.echo(message, err=True)
        sys.exit(code)


def _explain(error: Exception) -> tuple[str, int]:
    """Return what the user reads of an exception, and the exit code."""
    if isinstance(error, DiptychError):
        return f"error: {error}", 1
    if is_disk_full(error):
        # Libraries may keep the reason without the path. They write to the folder of temporary files first.
        path = getattr(error, "filename", None) or f"that of {Path.cwd()}, or of {tempfile.gettempdir()}"
        return f"error: the disk is full ({path}). Free some space and run again; nothing is lost.", 1
    if isinstance(error, OSError) and error.filename and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"error: {error.filename}: {error.strerror}. This user needs to read and write it; run again then.", 1
    name, text = type(error).__name__, " ".join(str(error).split())
    return f"unexpected error: {name}: {text}; run again with --debug for the traceback", 70

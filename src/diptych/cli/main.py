"""The `diptych` command. Nothing heavy is imported before a subcommand needs it."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import json
import sys
import tempfile
import traceback
from contextlib import chdir, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diptych import __version__
from diptych.cli.console import log_to_console, open_standard_streams
from diptych.cli.data import data
from diptych.cli.deploy import deploy, schedule
from diptych.cli.evaluate import evaluate
from diptych.cli.registry import COMMANDS as REGISTRY_COMMANDS
from diptych.cli.reproduce import reproduce
from diptych.cli.weights import weights
from diptych.errors import DiptychError
from diptych.project.environment import collect_as_usual, enter
from diptych.project.git import how_to_restore

if TYPE_CHECKING:
    from diptych.config import Params
    from diptych.project.workspace import Workspace

STAGES = ("validate", "preprocess", "baselines", "train", "controls", "evaluate")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show tracebacks and everything that is logged.")
@click.version_option(__version__)
def cli(debug: bool) -> None:
    """From captioned images to a registered, evaluated, reproducible retrieval model."""
    log_to_console(debug)


@cli.command()
@click.option("--preset", metavar="NAME", help="Put presets/NAME.yaml in force as params.yaml first.")
@click.option("--force", is_flag=True, help="Run every stage, changed or not.")
@click.option(
    "--promotion",
    type=click.Choice(["auto", "manual", "never"]),
    default="never",
    show_default=True,
    help="Of a new version: ask the gate and promote what passes (auto), ask it and leave that to `diptych promote` "
    "(manual), or do not ask (never).",
)
@click.option("--inbox", metavar="PLACE", help="Take new pairs from this folder or s3://bucket/prefix first.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def run(preset: str | None, force: bool, promotion: str, inbox: str | None, as_json: bool) -> None:
    """Run the whole chain: inbox, data, validate, preprocess, baselines, train, controls, evaluate, register, gate."""
    workspace = enter()
    from diptych.orchestration import server as prefect_server
    from diptych.project.presets import use_preset
    from diptych.project.processes import holding

    with holding(workspace, "diptych run"):
        if preset:
            use_preset(workspace, preset)
        _params(workspace)
        # Before the flow imports Prefect, which then reads its settings.
        prefect_server.load(workspace.root)
        retrain = _load_flow(workspace)
        prefect_server.ready(workspace.root)
        with prefect_server.explained("What the run had finished is kept: run again."):
            summary = retrain(force=force, promotion=promotion, inbox=inbox)
    from diptych.cli.summary import render

    click.echo(json.dumps(summary, indent=2) if as_json else render(summary, workspace))


@cli.command()
@click.argument("name", type=click.Choice(STAGES))
def stage(name: str) -> None:
    """Run one stage by itself; `dvc repro` calls this."""
    workspace = enter()
    from diptych.progress import is_first_process
    from diptych.project.processes import die_with_dvc, holding
    from diptych.training.launching import forget_foreign_rank, launch

    die_with_dvc()
    forget_foreign_rank()
    params = _params(workspace)
    if name == "train" and params.train.launch:
        launch(params.train.launch)
    hold = holding(workspace, f"diptych stage {name}") if is_first_process() else nullcontext()
    # DVC runs it there too: relative paths in params.yaml are the project's.
    with hold, chdir(workspace.root):
        module = importlib.import_module(f"diptych.stages.{name}")
        collect_as_usual()
        module.run(workspace, params)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print the version as JSON.")
def register(as_json: bool) -> None:
    """Make the trained model a version of the registered model, with the alias challenger."""
    workspace = enter()
    from diptych.project.processes import holding
    from diptych.registry.register import register as register_model

    with holding(workspace, "diptych register"):
        version = register_model(workspace, _params(workspace))
    click.echo(json.dumps(version.to_json(), indent=2) if as_json else version.describe())


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Look whether all that a run depends on is there, and say how to mend what is not."""
    workspace = enter()
    from diptych.cli.doctor import examine, render

    findings = examine(workspace)
    click.echo(json.dumps([one._asdict() for one in findings], indent=2) if as_json else render(findings))
    if any(one.state == "error" for one in findings):
        sys.exit(1)


for _command in (data, deploy, evaluate, *REGISTRY_COMMANDS, reproduce, schedule, weights):
    cli.add_command(_command)


def _params(workspace: Workspace) -> Params:
    from diptych.project.params import read_params

    return read_params(workspace)


def _load_flow(workspace: Workspace) -> Any:
    """The flow as it stands in the project's flows/: the project is what people edit, the package what they install."""
    path = workspace.root / "flows" / "retrain.py"
    if not path.is_file():
        raise DiptychError(f"{path} is missing; it is part of the project. {how_to_restore(path)}")
    spec = importlib.util.spec_from_file_location("flows.retrain", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.retrain


def main(arguments: list[str] | None = None) -> None:
    """The entry point: every failure is one message on stderr and its own exit code."""
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
    """What the user reads of an exception, and the exit code."""
    if isinstance(error, DiptychError):
        return f"error: {error}", 1
    if _is_disk_full(error):
        # Libraries may keep the reason alone, and what they write first goes to the folder of temporary files.
        path = getattr(error, "filename", None) or f"that of {Path.cwd()}, or of {tempfile.gettempdir()}"
        return f"error: the disk is full ({path}). Free some space and run again; nothing is lost.", 1
    if isinstance(error, OSError) and error.filename and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"error: {error.filename}: {error.strerror}. This user needs to read and write it; run again then.", 1
    name, text = type(error).__name__, " ".join(str(error).split())
    return f"unexpected error: {name}: {text}; run again with --debug for the traceback", 70


def _is_disk_full(error: BaseException) -> bool:
    """Libraries wrap the error, or keep only its words: safetensors, sqlite, and NumPy, which counts the bytes."""
    words = ("No space left on device", "database or disk is full", "Disk quota exceeded")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if any(word in str(error) for word in words) or (isinstance(error, OSError) and " requested and " in str(error)):
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and _is_disk_full(cause)


if __name__ == "__main__":
    main()

"""DVC's commands as this project uses them, and what their errors mean.

DVC has no public Python interface for `repro`, so each call is a process. It dies with its parent, and with it the
stage that it runs: a killed flow leaves no orphaned training behind.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any

import yaml

from diptych.errors import DiptychError, some
from diptych.project import pixels
from diptych.project.git import refuse_conflict
from diptych.project.processes import die_with_parent, stream
from diptych.project.record import dataset_version
from diptych.project.workspace import Workspace

STAGES = ("validate", "preprocess", "baselines", "train", "controls", "evaluate")
"""Names of the stages in their order; dvc.yaml says what depends on what."""

_log = logging.getLogger(__name__)
_MERGED = ("data.dvc", "dvc.lock", "dvc.yaml", "params.yaml")
"""Files that DVC reads and git merges."""
_ADVICE = {
    "Unable to acquire lock": "Wait for that process to end, or stop it; then try again.",
    "is not a git repository": "`git init`, then commit the project; or, without git, `dvc config core.no_scm true`.",
    "inside symlinked directories": "Make data/ a folder of the project. What it links to can be DVC's cache instead: "
    "`dvc cache dir FOLDER`.",
    "Permission denied": "`ls -l` shows whom it belongs to; work as that user, or `chown` it.",
}
"""Advice by words of DVC's messages."""
_KEPT_LINES = 200
"""Number of last lines of output that are kept for the error message; a list of settings has fewer."""
_CHATTER = re.compile(
    r"(To track the changes with git|\tgit add |To enable auto staging|\tdvc config core\.autostage|Use `dvc push`"
    r"|Generating lock file|Updating lock file|Having any troubles\?)"
)
"""Lines that DVC prints after every stage, whatever the outcome."""


def status(workspace: Workspace, *targets: str) -> dict[str, Any]:
    """Return the differences from dvc.lock and data.dvc by stage or .dvc file; empty when there are none.

    Pixels that stay in the remote are no difference.
    """
    changes = _object(call(workspace, "status", "--json", *targets))
    if not pixels.stay_remote():
        return changes
    changes = pixels.without_pixels(changes, {path: (workspace.root / path).exists() for path in pixels.PIXELS})
    readers = [stage for stage in pixels.READERS if not targets or stage in targets]
    for stage in readers if pixels.lacks_images(workspace) else ():
        # To DVC the images are absent, whichever version of them a stage has read.
        if _version_read(workspace, stage) not in (None, dataset_version(workspace)):
            changes.setdefault(stage, []).append({"changed deps": {"data": "modified"}})
    return changes


def reproduce(workspace: Workspace, stage: str, *, force: bool, on_line: Callable[[str], None]) -> bool:
    """Run one stage if one of its dependencies has changed; return whether it ran (else its result was reused).

    Raises:
        DiptychError: the stage failed; the message is the stage's own.
    """
    ran = False

    def listen(line: str) -> None:
        nonlocal ran
        ran = ran or line.startswith(f"Running stage '{stage}'")
        on_line(line)

    options = ["--force"] if force else []
    if pixels.lacks_images(workspace) and stage in pixels.READERS:
        command = _python("-m", "diptych.project.dvc_remote_stage", stage, *options)
    else:
        command = _command(
            "repro", "--single-item", *options, *(["--allow-missing"] if pixels.stay_remote() else []), stage
        )
    code, lines = _follow(command, workspace, listen)
    if code < 0:
        raise DiptychError(f"stage {stage} was killed (signal {-code}). Run again; what it had finished is kept.")
    if code:
        raise DiptychError(f"stage {stage} failed: {_last_error(lines)}")
    return ran


def repeat(workspace: Workspace, environment: Mapping[str, str], on_line: Callable[[str], None]) -> None:
    """Run every stage, without results of earlier runs, and keep the new results out of the cache.

    The stages run with `environment`; DVC itself runs with that of this process.

    Raises:
        DiptychError: a stage failed; the message is the stage's own.
    """
    # Only the stages that DVC starts are to import diptych from elsewhere.
    start = "import os, sys; os.environ['PYTHONPATH'] = sys.argv.pop(1); from diptych.project.dvc import main; main()"
    options = ("repro", "--force", "--no-run-cache", "--no-commit")
    command = _python("-c", start, environment.get("PYTHONPATH", ""), *options)
    dvc_environment = {**environment, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    code, lines = _follow(command, workspace, on_line, dvc_environment)
    if code:
        raise DiptychError(f"the chain failed again from its commit: {_last_error(lines)}")


def bring_into_cache(workspace: Workspace, folder: str) -> str:
    """Fetch what DVC's cache lacks of the recorded version of a folder; leave the folder as it is.

    Return the reason of a failure in DVC's words; empty where the cache has all of it.
    """
    if not (lacking := _lacking(workspace, folder)):
        return ""
    reason = failure(workspace, "fetch", f"{folder}.dvc")
    # Without a remote DVC calls it a success.
    return reason or (some(lacking) + " is not in the cache" if (lacking := _lacking(workspace, folder)) else "")


def fetch(workspace: Workspace, *targets: str) -> str:
    """Check out the targets (default: all) from the cache, else pull them from the remote.

    Return the reason of a failure in DVC's words; empty where all targets are there.
    """
    reason = failure(workspace, "checkout", *targets)
    return failure(workspace, "pull", *targets) if reason and remotes(workspace) else reason


def fetch_outputs(workspace: Workspace) -> list[str]:
    """Fetch the paths that dvc.lock and data.dvc name; return those that neither the cache nor a remote has."""
    fetch(workspace)
    return [path for path in ["data", *_outputs(workspace)] if not (workspace.root / path).exists()]


def fetch_without_pixels(workspace: Workspace) -> None:
    """Fetch the outputs that are missing, but no pixels; the stages of what cannot be had will run again.

    Raises:
        DiptychError: there is no remote that could have the pixels.
    """
    require_remote(workspace)
    outputs = [path for path in _outputs(workspace) if path not in pixels.PIXELS]
    missing = [path for path in outputs if not (workspace.root / path).exists()]
    if missing and (reason := fetch(workspace, *missing)):
        _log.warning("What is missing could not all be fetched, and its stages run again. DVC says: %s", reason)


def require_remote(workspace: Workspace) -> None:
    """Raise a DiptychError if images are to stay in a remote, and DVC has no default one."""
    if default_remote(workspace) is None:
        raise DiptychError(
            f"{pixels.VARIABLE} is `remote`, and DVC has no default remote. Name the one that has the images: "
            "`dvc remote add --default NAME URL`."
        )


def push(workspace: Workspace, on_line: Callable[[str], None]) -> None:
    """Send what data.dvc and dvc.lock name to the default remote, as far as it is not there."""
    call(workspace, "push", on_line=on_line)


def remotes(workspace: Workspace) -> dict[str, str]:
    """Return the addresses of the remotes by their names."""
    matches = ((re.fullmatch(r"remote\.(.+)\.url", name), url) for name, url in _settings(workspace).items())
    return {match[1]: url for match, url in matches if match}


def default_remote(workspace: Workspace) -> str | None:
    """Return the name of the default remote; None where there is none."""
    return _settings(workspace).get("core.remote")


def works_without_git(workspace: Workspace) -> bool:
    """Return whether DVC's settings say that the project is in no git repository."""
    return _settings(workspace).get("core.no_scm", "").lower() == "true"


def unreachable(workspace: Workspace, seconds: float) -> str:
    """Return why the default remote cannot be used; empty where it answers within `seconds`."""
    command = _command("status", "--cloud", "--json", "data.dvc")
    try:
        answer = subprocess.run(
            command, cwd=workspace.root, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return f"nothing came back within {seconds:g} s"
    return _last_error(answer.stderr.splitlines()) if answer.returncode else ""


def call(workspace: Workspace, *arguments: str, on_line: Callable[[str], object] = str) -> str:
    """Run a command of DVC and return its output.

    Raises:
        DiptychError: the command failed; the message has DVC's reason.
    """
    code, lines = _follow(_command(*arguments), workspace, on_line)
    if code:
        raise DiptychError(f"`dvc {' '.join(arguments)}` failed (exit code {code}): {_last_error(lines)}")
    return "\n".join(lines)


def failure(workspace: Workspace, *arguments: str) -> str:
    """Run a command of DVC and return the reason of its failure in DVC's words; empty where it succeeded."""
    code, lines = _follow(_command(*arguments), workspace, str)
    return (_last_error(lines) or f"exit code {code}") if code else ""


def refuse_conflicts(workspace: Workspace) -> None:
    """Refuse to work where a file that DVC reads has a merge conflict: DVC would overwrite some of them."""
    for name in _MERGED:
        refuse_conflict(workspace.root / name)


def _lacking(workspace: Workspace, folder: str) -> list[str]:
    """Return the files of the recorded version of a folder that DVC's cache lacks, or the folder where it lacks all."""
    absent = _object(call(workspace, "data", "status", "--json", "--granular")).get("not_in_cache", [])
    return [path for path in absent if path.startswith(f"{folder}/")]


def _object(output: str) -> dict[str, Any]:
    """Return the JSON object in the output of a command, before and after which warnings may stand; empty without."""
    start = output.find("{")
    return dict(json.JSONDecoder().raw_decode(output, start)[0]) if start >= 0 else {}


def _version_read(workspace: Workspace, stage: str) -> str | None:
    """Return the hash of the dataset that a stage has read."""
    dependencies = _lock(workspace).get(stage, {}).get("deps", [])
    return next((dependency.get("md5") for dependency in dependencies if dependency["path"] == "data"), None)


def _outputs(workspace: Workspace) -> list[str]:
    """Return the paths of the outputs in dvc.lock."""
    return [str(out["path"]) for stage in _lock(workspace).values() for out in stage.get("outs", [])]


def _lock(workspace: Workspace) -> dict[str, Any]:
    """Return what dvc.lock says of each stage."""
    path = workspace.root / "dvc.lock"
    lock = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    return dict(lock.get("stages", {}))


def _settings(workspace: Workspace) -> dict[str, str]:
    # `dvc remote list` is for people: it breaks long addresses.
    lines = call(workspace, "config", "--list").splitlines()
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def _command(*arguments: str) -> list[str]:
    return _python("-m", "diptych.project.dvc", *arguments)


def _python(*arguments: str) -> list[str]:
    # -P: a file in the workspace must not hide an installed package.
    return [sys.executable, "-P", *arguments]


def _follow(
    command: list[str],
    workspace: Workspace,
    on_line: Callable[[str], object],
    environment: Mapping[str, str] | None = None,
) -> tuple[int, list[str]]:
    """Run the command and return its exit code and its last lines of output."""
    refuse_conflicts(workspace)
    lines: list[str] = []

    def listen(line: str) -> None:
        if not _CHATTER.match(line):
            lines.append(line)
            del lines[:-_KEPT_LINES]
            on_line(line)

    return stream(command, workspace.root, listen, environment), lines


def _last_error(lines: list[str]) -> str:
    """Return the stage's own `error:` with the lines after it, else DVC's error with advice, else the last line."""
    for pattern in (r"(error|unexpected error): ", r"ERROR: ", r"'[^']+' is invalid"):
        for start in range(len(lines) - 1, -1, -1):
            if re.match(pattern, lines[start]):
                rest = takewhile(lambda line: not line.startswith("ERROR: "), lines[start + 1 :])
                reason = "\n".join([re.sub(r"^[a-zA-Z ]*rror: |^ERROR: ", "", lines[start]), *rest])
                return reason + next((f"\n{advice}" for words, advice in _ADVICE.items() if words in reason), "")
    return lines[-1] if lines else "no output"


def main() -> None:
    """Run `dvc` as a process that ends when its parent ends (`python -m diptych.project.dvc`)."""
    die_with_parent()
    from dvc.cli import main as dvc

    sys.exit(dvc(sys.argv[1:]))


if __name__ == "__main__":
    main()

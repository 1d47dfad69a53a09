"""DVC's commands as this project uses them.

There is no Python interface for `repro`, so each call is a process; it dies with its parent, and with it the stage it
runs, so that a killed flow leaves no orphaned training behind.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from diptych.errors import DiptychError
from diptych.files import atomic_path, remove
from diptych.project.git import how_to_restore, refuse_conflict
from diptych.project.processes import DYING, die_with_parent, stream
from diptych.project.workspace import Workspace

if TYPE_CHECKING:
    from diptych.data.captions import Dataset

STAGES = ("validate", "preprocess", "baselines", "train", "controls", "evaluate")
"""In their order; what depends on what stands in dvc.yaml."""

_MERGED = ("data.dvc", "dvc.lock", "dvc.yaml", "params.yaml")
"""Files that DVC reads and git merges."""
_ADVICE = {
    "Unable to acquire lock": "Wait for that process to end, or stop it; then try again.",
    "is not a git repository": "`git init`, then commit the project; or, without git, `dvc config core.no_scm true`.",
    "inside symlinked directories": "Make data/ a folder of the project. What it links to can be DVC's cache instead: "
    "`dvc cache dir FOLDER`.",
    "Permission denied": "`ls -l` shows whom it belongs to; work as that user, or `chown` it.",
}
"""What to do about words of DVC's."""
_REMEMBERED = 200
"""Lines of a command that are kept for its error; a list of settings has fewer."""
_CHATTER = re.compile(
    r"(To track the changes with git|\tgit add |To enable auto staging|\tdvc config core\.autostage|Use `dvc push`"
    r"|Generating lock file|Updating lock file|Having any troubles\?)"
)
"""What DVC says after every stage, whatever happened."""


def status(workspace: Workspace, *targets: str) -> dict[str, Any]:
    """What differs from dvc.lock and data.dvc, by stage or .dvc file; empty when nothing does."""
    output = _call(workspace, "status", "--json", *targets)
    start = output.find("{")
    # Warnings may stand before it, and after it.
    return dict(json.JSONDecoder().raw_decode(output, start)[0]) if start >= 0 else {}


def reproduce(workspace: Workspace, stage: str, *, force: bool, on_line: Callable[[str], None]) -> bool:
    """Runs one stage if anything that it depends on has changed; returns whether it ran (or its result was reused).

    Raises:
        DiptychError: the stage failed; the message is the stage's own.
    """
    ran = False

    def listen(line: str) -> None:
        nonlocal ran
        ran = ran or line.startswith(f"Running stage '{stage}'")
        on_line(line)

    options = ["--single-item", "--force"] if force else ["--single-item"]
    code, lines = _follow(_command("repro", *options, stage), workspace, listen)
    if code < 0:
        raise DiptychError(f"stage {stage} was killed (signal {-code}). Run again; what it had finished is kept.")
    if code:
        raise DiptychError(f"stage {stage} failed: {_last_error(lines)}")
    return ran


def repeat(workspace: Workspace, environment: Mapping[str, str], on_line: Callable[[str], None]) -> None:
    """Runs every stage, whatever is known of earlier runs, and keeps what they make out of the cache.

    DVC itself works as it does here; the stages have `environment`.

    Raises:
        DiptychError: a stage failed; the message is the stage's own.
    """
    # Only what DVC starts is to import diptych from elsewhere.
    start = "import os, sys; os.environ['PYTHONPATH'] = sys.argv.pop(1); from diptych.project.dvc import main; main()"
    options = ["repro", "--force", "--no-run-cache", "--no-commit"]
    command = [sys.executable, "-P", "-c", start, environment.get("PYTHONPATH", ""), *options]
    own = {**environment, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    code, lines = _follow(command, workspace, on_line, own)
    if code:
        raise DiptychError(f"the chain failed again from its commit: {_last_error(lines)}")


def bring_outputs(workspace: Workspace) -> list[str]:
    """Brings what dvc.lock and data.dvc name, from the cache or the remote; returns the paths that nothing here has."""
    _fetch(workspace)
    lock = yaml.safe_load((workspace.root / "dvc.lock").read_text(encoding="utf-8"))
    outputs = [str(out["path"]) for stage in lock["stages"].values() for out in stage.get("outs", [])]
    return [path for path in ["data", *outputs] if not (workspace.root / path).exists()]


def folder_md5(folder: Path) -> str:
    """The version that DVC gives to a folder of these files, computed from their bytes."""
    listed = []
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        if path.is_file():
            with path.open("rb") as file:
                md5 = hashlib.file_digest(file, "md5").hexdigest()
            listed.append({"md5": md5, "relpath": path.relative_to(folder).as_posix()})
    return hashlib.md5(json.dumps(listed).encode(), usedforsecurity=False).hexdigest() + ".dir"


def record_dataset(workspace: Workspace) -> None:
    """Makes data/ as it is now the dataset version: `dvc add`, and how to make it again, if it can be, in data.dvc."""
    if not uses_dvc(workspace):
        return
    # Before as well: where DVC stages for git what it adds, this is what is staged.
    if _recorded(workspace):
        _note_origin(workspace)
    _call(workspace, "add", "data")
    _note_origin(workspace)


def uses_dvc(workspace: Workspace) -> bool:
    """Return whether datasets are versioned here at all."""
    return (workspace.root / ".dvc").is_dir()


def keep_dataset(workspace: Workspace) -> None:
    """Make sure that DVC's cache has what is in data/ now, so that a change of it can be undone.

    Raises:
        DiptychError: DVC does not work here, data/ has changes that no version holds, or is a link.
    """
    if workspace.data.is_symlink():
        raise DiptychError(
            f"{workspace.data} is a link, and DVC versions no files behind links. Make it a folder of the project. "
            "What it links to can be DVC's cache instead: `dvc cache dir FOLDER`."
        )
    if not workspace.data.exists():
        status(workspace, *(["data.dvc"] if _recorded(workspace) else []))
    elif _recorded(workspace):
        bring_dataset(workspace)
    else:
        record_dataset(workspace)


def dataset_version(workspace: Workspace) -> str | None:
    """The hash that data.dvc records; None where there is none."""
    outputs = _recorded(workspace).get("outs") or [{}]
    return outputs[0].get("md5")


def remotes(workspace: Workspace) -> dict[str, str]:
    """Their addresses by name."""
    # `dvc remote list` is for people: it breaks long addresses.
    lines = _call(workspace, "config", "--list").splitlines()
    matches = (re.fullmatch(r"remote\.(.+)\.url=(.+)", line) for line in lines)
    return {found[1]: found[2] for found in matches if found}


def default_remote(workspace: Workspace) -> str | None:
    """Its name; None where there is none."""
    found = re.search(r"^core\.remote=(.+)$", _call(workspace, "config", "--list"), re.MULTILINE)
    return found[1] if found else None


def works_without_git(workspace: Workspace) -> bool:
    """Return whether DVC is told that the project is in no git repository."""
    return re.search(r"^core\.no_scm=true$", _call(workspace, "config", "--list"), re.M | re.I) is not None


def unreachable(workspace: Workspace, seconds: float) -> str:
    """What is wrong with the default remote; empty where it answers within so many seconds."""
    command = _command("status", "--cloud", "--json", "data.dvc")
    try:
        done = subprocess.run(
            command, cwd=workspace.root, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return f"nothing came back within {seconds:g} s"
    return _last_error(done.stderr.splitlines()) if done.returncode else ""


def push(workspace: Workspace, on_line: Callable[[str], None]) -> None:
    """Sends what data.dvc and dvc.lock name to the default remote, as far as it is not there.

    Raises:
        DiptychError: not all of it arrived.
    """
    _call(workspace, "push", on_line=on_line)


def bring_own_dataset(workspace: Workspace) -> None:
    """Brings a recorded dataset that is not here yet, lest an import begin a new one; scenes are not worth it.

    Raises:
        DiptychError: nothing here can bring it.
    """
    if not workspace.data.exists() and _recorded(workspace) and not _recorded_scenes(workspace):
        bring_dataset(workspace)


def bring_dataset(workspace: Workspace) -> str:
    """Sees to it that data/ is what data.dvc records; returns how, in a few words.

    A dataset that is missing comes from the cache, else from the remote, else, where it is made of the embedded
    scenes, it is drawn again and its hash compared.

    Raises:
        DiptychError: data/ has changes that no version holds, or nothing here can bring it.
    """
    if not _recorded(workspace):
        raise DiptychError("There is no dataset yet: run `diptych data import` or `diptych data scenes`.")
    missing = not workspace.data.exists()
    if not missing and (not status(workspace, "data.dvc") or _keep_if_recorded(workspace)):
        return "present"
    if not (said := _reason(workspace, "checkout", "data.dvc")):
        return "taken from DVC's cache"
    if not missing:
        raise DiptychError(
            "data/ is not the version that data.dvc records. Run `dvc add data` to make it the new version, or "
            f"`dvc checkout --force data.dvc` to go back to the recorded one. DVC says: {said}"
        )
    if remotes(workspace) and not (said := _reason(workspace, "pull", "data.dvc")):
        return "pulled from the DVC remote"
    return _draw_again(workspace, said)


def switch_dataset(workspace: Workspace, recorded: str) -> None:
    """Makes `recorded` the content of data.dvc, with the dataset that it names in data/; `changing` undoes a failure.

    Raises:
        DiptychError: neither the cache nor a remote has that version.
    """
    _restore(workspace.root / "data.dvc", recorded)
    if said := _fetch(workspace, "data.dvc"):
        raise DiptychError(
            f"Neither DVC's cache nor a remote has dataset version {dataset_version(workspace)} (whole); data/ stays "
            f"as it is. `dvc remote list` shows where it was looked for. DVC says: {said}"
        )


def go_back(workspace: Workspace, recorded: str | None, lock: str | None, *, present: bool) -> None:
    """Makes `recorded` the content of data.dvc again, with the dataset that it names in data/, if that was `present`,
    and `lock` that of dvc.lock, with what validate had made of that dataset. None: there was no such file.

    Raises:
        DiptychError: DVC's cache does not have that version, or DVC does not work here.
    """
    _restore(workspace.root / "data.dvc", recorded)
    _restore(workspace.root / "dvc.lock", lock)
    if not present:
        remove(workspace.data)
        return
    if said := _reason(workspace, "checkout", "--force", "data.dvc"):
        raise DiptychError(
            f"data/ cannot go back to version {dataset_version(workspace)}: {said}\nThe next command tries again; "
            "where DVC's cache does not have it (whole), bring it with `dvc pull --force data.dvc` first."
        )
    if lock and "validate" in (yaml.safe_load(lock).get("stages") or {}):
        # What the cache does not have is made again by the next run.
        _reason(workspace, "checkout", "--force", "validate")


def mend(workspace: Workspace) -> None:
    """Repair what a killed DVC left behind, and links of a project that was moved.

    The caller holds the workspace, so nothing here is in use by a run.
    """
    lock = workspace.root / "dvc.lock"
    _refuse_conflicts(workspace)
    if lock.exists() and not _is_whole(lock):
        # DVC writes it in place. Without it the run cache still knows every stage, so nothing is computed again.
        lock.unlink()
    users = workspace.root / ".dvc" / "tmp" / "rwlock"
    # A killed one ends a moment after its parent. One that lives on is somebody's, who is told so by DVC itself.
    last = time.monotonic() + DYING
    while users.exists() and _has_live_user(users) and time.monotonic() < last:
        time.sleep(0.05)
    if users.exists() and not _has_live_user(users):
        users.unlink()
    if _has_broken_links(workspace):
        # Links hold the cache's path. What the cache lacks is for the stages to make again.
        _reason(workspace, "checkout")


def _command(*arguments: str) -> list[str]:
    # -P: what lies in the workspace must not hide an installed package.
    return [sys.executable, "-P", "-m", "diptych.project.dvc", *arguments]


def _follow(
    command: list[str],
    workspace: Workspace,
    on_line: Callable[[str], object],
    environment: Mapping[str, str] | None = None,
) -> tuple[int, list[str]]:
    """The exit code, and the last lines of what was said."""
    _refuse_conflicts(workspace)
    lines: list[str] = []

    def listen(line: str) -> None:
        if not _CHATTER.match(line):
            lines.append(line)
            del lines[:-_REMEMBERED]
            on_line(line)

    return stream(command, workspace.root, listen, environment), lines


def _call(workspace: Workspace, *arguments: str, on_line: Callable[[str], object] = str) -> str:
    """What DVC says; where it fails, its reason is an error."""
    code, lines = _follow(_command(*arguments), workspace, on_line)
    if code:
        raise DiptychError(f"`dvc {' '.join(arguments)}` failed (exit code {code}): {_last_error(lines)}")
    return "\n".join(lines)


def _reason(workspace: Workspace, *arguments: str) -> str:
    """Why a command of DVC failed, in its own words; empty where it succeeded."""
    code, lines = _follow(_command(*arguments), workspace, str)
    return (_last_error(lines) or f"exit code {code}") if code else ""


def _fetch(workspace: Workspace, *targets: str) -> str:
    """Brings the targets (all, where none is named) from the cache or the remote; returns why not, or nothing."""
    said = _reason(workspace, "checkout", *targets)
    return _reason(workspace, "pull", *targets) if said and remotes(workspace) else said


def _refuse_conflicts(workspace: Workspace) -> None:
    for name in _MERGED:
        refuse_conflict(workspace.root / name)


def _last_error(lines: list[str]) -> str:
    """The stage's own `error:` with what follows it, else DVC's and what to do about it, else the last line."""
    for pattern in (r"(error|unexpected error): ", r"ERROR: ", r"'[^']+' is invalid"):
        for start in range(len(lines) - 1, -1, -1):
            if re.match(pattern, lines[start]):
                rest = takewhile(lambda line: not line.startswith("ERROR: "), lines[start + 1 :])
                said = "\n".join([re.sub(r"^[a-zA-Z ]*rror: |^ERROR: ", "", lines[start]), *rest])
                return said + next((f"\n{advice}" for words, advice in _ADVICE.items() if words in said), "")
    return lines[-1] if lines else "no output"


def _note_origin(workspace: Workspace) -> None:
    """Keeps data.dvc's `meta` true: `dvc add` carries the old one over to whatever data/ has become."""
    from diptych.data.captions import read_dataset

    path = workspace.root / "data.dvc"
    content = _recorded(workspace)
    meta = _origin(read_dataset(workspace.data))
    if content.pop("meta", None) != meta:
        with atomic_path(path) as temporary:
            temporary.write_text(
                yaml.safe_dump(content | ({"meta": meta} if meta else {}), sort_keys=False), encoding="utf-8"
            )


def _origin(dataset: Dataset) -> dict[str, Any] | None:
    """What scenes are drawn from; None for a dataset that came from elsewhere."""
    from diptych.data.scenes.drawing import holds_scenes

    if not holds_scenes(dataset) or not dataset.images:
        return None
    counts = Counter(image["split"] for image in dataset.images)
    return {"scenes": {**counts, "seed": dataset.info["seed"], "size": dataset.images[0]["width"]}}


def _recorded(workspace: Workspace) -> dict[str, Any]:
    """The content of data.dvc; empty where there is none."""
    path = workspace.root / "data.dvc"
    refuse_conflict(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return dict(content)
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise DiptychError(f"{path} is damaged ({error}). {how_to_restore(path)}") from None


def _recorded_scenes(workspace: Workspace) -> dict[str, Any] | None:
    """What the recorded dataset is drawn from, if it is."""
    return (_recorded(workspace).get("meta") or {}).get("scenes")


def _draw_again(workspace: Workspace, said: str) -> str:
    """Draws the scenes that data.dvc names, and keeps them only if they are the very bytes it records; `said` is why
    DVC could not bring them.
    """
    scenes = _recorded_scenes(workspace)
    if not scenes:
        raise DiptychError(
            "data/ is missing, and neither DVC's cache nor a remote has the version that data.dvc records. Bring the "
            "remote (`dvc remote list`), or begin a new dataset with `diptych data import --replace`. DVC says: " + said
        )
    from diptych.data.scenes.drawing import write_scenes

    write_scenes(workspace.data, **scenes)
    if not _keep_if_recorded(workspace):
        remove(workspace.data)
        raise DiptychError(
            "The scenes drawn here are not those that data.dvc records; another version of the project drew them. Make "
            "them the dataset version with `diptych data scenes`."
        )
    return "drawn: the embedded scenes"


def _keep_if_recorded(workspace: Workspace) -> bool:
    """Whether data/ is what data.dvc records; if so, the cache has it too afterwards.

    Where the cache lacks the version, DVC's status does not look at the files, so they are hashed by a commit.
    """
    path = workspace.root / "data.dvc"
    before = path.read_bytes()
    if status(workspace, "data.dvc")["data.dvc"] != [{"changed outs": {"data": "not in cache"}}]:
        return False
    version = dataset_version(workspace)
    _call(workspace, "commit", "--force", "data.dvc")
    same = dataset_version(workspace) == version
    if path.read_bytes() != before:
        path.write_bytes(before)
    return same


def _restore(path: Path, content: str | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def _is_whole(lock: Path) -> bool:
    """Whether DVC would take it; what is left of a file that was cut off may well be YAML."""
    from dvc.exceptions import DvcException
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.strictyaml import load

    try:
        load(str(lock), COMPILED_LOCKFILE_SCHEMA)
    except DvcException:
        return False
    return True


def _has_broken_links(workspace: Workspace) -> bool:
    """Tell whether data or results are links, as cache.type symlink makes them, that lead nowhere."""
    folders = (workspace.data, workspace.artifacts, workspace.reports)
    paths = (path for folder in folders for path in (folder, *folder.rglob("*")))
    return any(path.is_symlink() and not path.exists() for path in paths)


def _has_live_user(rwlock: Path) -> bool:
    """Whether a process of DVC that still runs has files of this workspace in use."""
    import psutil  # type: ignore[import-untyped]

    try:
        users = re.findall(r'"pid": (\d+)', rwlock.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        return False
    for pid in {int(user) for user in users}:
        try:
            if "dvc" in " ".join(psutil.Process(pid).cmdline()):
                return True
        except psutil.Error:
            continue
    return False


def main() -> None:
    """`python -m diptych.project.dvc` is `dvc`, but ends when the process that started it ends."""
    die_with_parent()
    from dvc.cli import main as dvc

    sys.exit(dvc(sys.argv[1:]))


if __name__ == "__main__":
    main()

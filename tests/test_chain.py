"""dvc.yaml, prefect.yaml and the Makefile say what the code does."""

import itertools
import subprocess
from functools import cache
from pathlib import Path

import grimp
import pytest
import yaml

from diptych.project import dvc

ROOT = Path(__file__).parents[1]
CHAIN = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# What carries a stage's work without having a part in its outputs.
PLUMBING = tuple(
    f"diptych.{name}" for name in ("errors", "files", "progress", "training.launching", "project", "registry")
)


@cache
def import_graph() -> grimp.ImportGraph:
    return grimp.build_graph("diptych")


def modules_of(stage: str) -> set[str]:
    """Return the modules that a stage imports, as paths in the repository; plumbing and tracking are not followed."""
    seen: set[str] = set()
    waiting = [f"diptych.stages.{stage}"]
    while waiting:
        module = waiting.pop()
        if module not in seen and module != "diptych" and not module.startswith(PLUMBING):
            seen.add(module)
            waiting += import_graph().find_modules_directly_imported_by(module)
    paths = [ROOT / "src" / module.replace(".", "/") for module in seen]
    return {str(path.with_suffix(".py").relative_to(ROOT)) for path in paths if path.with_suffix(".py").is_file()}


@pytest.mark.parametrize("stage", dvc.STAGES)
def test_a_stage_depends_on_the_modules_that_it_imports(stage):
    dependencies = [Path(one) for one in CHAIN[stage]["deps"]]

    imported = modules_of(stage)

    unlisted = {one for one in imported if not any(Path(one).is_relative_to(listed) for listed in dependencies)}
    idle = {str(one) for one in dependencies if one.suffix == ".py" and str(one) not in imported}
    assert (unlisted, idle) == (set(), set())


@pytest.mark.parametrize("preset", sorted(path.name for path in (ROOT / "presets").glob("*.yaml")))
def test_a_preset_has_every_key_that_dvc_demands(preset):
    settings = yaml.safe_load((ROOT / "presets" / preset).read_text())

    demanded = {key for stage in CHAIN.values() for key in stage["params"]}

    def lacks(key: str) -> bool:
        section, _, rest = key.partition(".")
        return section not in settings or (bool(rest) and rest not in settings[section])

    assert {key for key in demanded if lacks(key)} == set()


def test_the_stages_are_a_chain_in_their_order():
    graph = subprocess.run(
        ["dvc", "dag", "--dot"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()

    edges = {tuple(line.strip(" ;").replace('"', "").split(" -> ")) for line in graph if "->" in line}
    # Baselines stand beside the training and its controls: neither needs the other.
    for beside in (["baselines"], ["train", "controls"]):
        chain = [stage for stage in dvc.STAGES if stage not in beside]
        assert set(itertools.pairwise(chain)) <= edges
    assert not {("baselines", "train"), ("baselines", "controls")} & edges
    assert tuple(CHAIN) == dvc.STAGES


def test_every_output_is_cached_and_every_stage_described():
    outputs = [out for stage in CHAIN.values() for kind in ("outs", "metrics") for out in stage.get(kind, [])]

    assert all(isinstance(out, str) for out in outputs)
    assert all(stage["desc"] and stage["cmd"] == f"exec diptych stage {name}" for name, stage in CHAIN.items())


def test_the_deployment_runs_one_at_a_time_on_a_schedule():
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]

    assert all((ROOT / one["entrypoint"].partition(":")[0]).is_file() for one in deployments)
    deployment = deployments[0]
    assert deployment["concurrency_limit"]["limit"] == 1
    assert deployment["schedules"][0]["cron"]


def test_make_lists_its_targets():
    listed = subprocess.run(["make", "--silent", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert all(f"make {target}" in listed for target in ("setup", "run", "test", "lint", "lock"))


def test_what_checks_a_change_hides_nothing():
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and line[0] != "#"]

    assert commands[-1] == "exec make test"

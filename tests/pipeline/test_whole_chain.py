"""The whole chain on a tiny preset: it registers a model, repeats nothing, and survives being killed."""

from __future__ import annotations

import json
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
import yaml
from pipeline_clone import Clone
from waiting import dies

from diptych.model.package import weights_sha256
from diptych.project.processes import holding
from diptych.project.workspace import Workspace

pytestmark = pytest.mark.slow
STAGES = ["validate", "preprocess", "baselines", "train", "controls", "evaluate"]


def test_the_chain_ends_with_a_registered_challenger(chain: Clone) -> None:
    assert chain.summary["stages"] == dict.fromkeys(STAGES, "ran")
    version = chain.summary["version"]
    assert (version["name"], version["version"], version["aliases"]) == ("diptych-tiny", "1", ["challenger"])
    assert version["tags"]["weights_sha256"] == weights_sha256(chain.root / "artifacts" / "model")


def test_the_metrics_have_the_form_that_is_documented(chain: Clone) -> None:
    metrics = json.loads((chain.root / "reports" / "metrics.json").read_text())
    assert list(metrics) == ["towers", "qb_norm", "reranked"]
    for figures in metrics.values():
        recalls = [figures[direction][f"recall@{k}"] for direction in ("i2t", "t2i") for k in (1, 5, 10)]
        assert figures["rsum"] == pytest.approx(sum(recalls))
        assert figures["i2t"]["median_rank"] >= 1


def test_everything_is_in_the_lock(chain: Clone) -> None:
    assert "up to date" in chain.command("dvc", "status")
    assert set(chain.lock()["stages"]) == set(STAGES)


def test_a_second_run_repeats_no_stage(chain: Clone) -> None:
    before = (chain.root / "dvc.lock").read_bytes()
    summary = chain.run(alone=True)
    assert summary["stages"] == dict.fromkeys(STAGES, "reused")
    assert summary["version"]["version"] == "1"
    assert (chain.root / "dvc.lock").read_bytes() == before


def test_a_changed_parameter_runs_only_what_depends_on_it(chain: Clone, tmp_path: Path) -> None:
    copy = chain.copy(tmp_path / "copy")
    change(copy, "evaluate", report_queries=1)
    assert copy.run()["stages"] == {**dict.fromkeys(STAGES, "reused"), "evaluate": "ran"}


def change(clone: Clone, section: str, **values: object) -> None:
    params = yaml.safe_load((clone.root / "params.yaml").read_text())
    params[section] |= values
    (clone.root / "params.yaml").write_text(yaml.safe_dump(params))


def test_a_training_that_is_killed_and_run_again_has_the_weights_of_an_uninterrupted_one(
    chain: Clone, tmp_path: Path
) -> None:
    broken = chain.copy(tmp_path / "broken")
    change(broken, "train", epochs=3)
    whole = broken.copy(tmp_path / "whole")
    assert whole.diptych("stage", "train").returncode == 0

    done = broken.diptych("run", killed_at="another checkpoint")
    assert done.returncode == 1
    assert "error: stage train failed" in done.stderr
    assert "Traceback" not in done.stderr

    summary = broken.run()
    assert summary["stages"]["train"] == "ran"
    assert summary["version"]["tags"]["weights_sha256"] == weights_sha256(whole.root / "artifacts" / "model")


def test_of_two_runs_the_second_says_who_holds_the_workspace_and_a_killed_run_takes_its_stage_along(
    chain: Clone, tmp_path: Path
) -> None:
    copy = chain.copy(tmp_path / "copy")
    first = copy.start("run", "--force", alone=True)
    stage = wait_for_stage(first)

    second = copy.diptych("run")

    assert second.returncode == 1
    assert f"is in use by `diptych run` (process {first.pid}" in second.stderr
    assert "Traceback" not in second.stderr
    first.kill()
    assert dies(stage)
    # Ends the server that the killed run has left, lest it run on beside the other tests; it holds the run's pipes.
    with holding(Workspace(copy.root), "the end of the test"):
        pass
    first.wait()


def wait_for_stage(run: subprocess.Popen[str]) -> int:
    """Waits until `run` has started a stage, and returns its process."""
    process = psutil.Process(run.pid)
    while run.poll() is None:
        for child in process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "stage" in child.cmdline():
                    return int(child.pid)
        time.sleep(0.1)
    raise AssertionError(f"the run has ended: {run.communicate()}")

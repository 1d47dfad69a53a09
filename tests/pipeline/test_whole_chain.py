"""The whole chain on a tiny preset: it registers a model, repeats nothing, and survives being killed."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

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


@pytest.fixture(scope="module")
def longer(chain: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The chain with a training long enough to be killed in, not yet run."""
    clone = chain.copy(tmp_path_factory.mktemp("longer") / "copy")
    change(clone, "train", epochs=8)
    return clone


@pytest.fixture(scope="module")
def uninterrupted(longer: Clone, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of the weights of the longer training when nothing happens to it."""
    whole = longer.copy(tmp_path_factory.mktemp("whole") / "copy")
    assert whole.diptych("stage", "train").returncode == 0
    return weights_sha256(whole.root / "artifacts" / "model")


def test_a_training_killed_twice_and_run_again_has_the_weights_of_an_uninterrupted_one(
    longer: Clone, uninterrupted: str, tmp_path: Path
) -> None:
    broken = longer.copy(tmp_path / "broken")

    done = broken.diptych("run", killed_at="another checkpoint")
    assert done.returncode == 1
    assert "error: stage train failed" in done.stderr
    assert "Traceback" not in done.stderr

    process = broken.start("run")
    stage = wait_for_checkpoint(process, broken.root, since=time.time())
    process.kill()
    process.wait()
    assert dies(stage)

    summary = broken.run()
    assert summary["stages"]["train"] == "ran"
    assert summary["version"]["tags"]["weights_sha256"] == uninterrupted


def wait_for_checkpoint(run: subprocess.Popen[str], root: Path, since: float) -> int:
    """Waits until the training of `run` has written a checkpoint, and returns its process."""
    while run.poll() is None:
        if any(path.stat().st_mtime > since for path in (root / ".diptych" / "checkpoints").glob("*/state.pt")):
            found = subprocess.run(
                ["pgrep", "-f", "diptych stage train"], capture_output=True, text=True
            ).stdout.split()
            own = [int(pid) for pid in found if Path(f"/proc/{pid}/cwd").resolve() == root.resolve()]
            return max(own)
        time.sleep(0.1)
    raise AssertionError(f"the run has ended without a checkpoint: {run.communicate()}")


def test_two_runs_at_once_the_second_says_who_holds_the_workspace(chain: Clone, tmp_path: Path) -> None:
    copy = chain.copy(tmp_path / "copy")
    first = copy.start("run", "--force", alone=True)
    holder = copy.root / ".diptych" / "holder.json"
    while not holder.exists() and first.poll() is None:
        time.sleep(0.1)
    second = copy.diptych("run")
    first.kill()
    first.wait()
    # Ends the server that the killed run has left, lest it run on beside the other tests.
    with holding(Workspace(copy.root), "the end of the test"):
        pass
    assert second.returncode == 1
    assert f"is in use by `diptych run` (process {first.pid}" in second.stderr
    assert "Traceback" not in second.stderr

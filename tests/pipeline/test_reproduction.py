"""What the real chain has registered is made again to the bit, whatever the project has become."""

import json
from pathlib import Path

import pytest
from pipeline_clone import Clone

from diptych.project import dvc

COMPARED = ["data", "params", "dvc.lock", "package", "weights", "metrics"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_version_of_the_real_chain_is_made_again_to_the_bit(chain: Clone, tmp_path: Path) -> None:
    clone = chain.copy(tmp_path / "copy")
    clone.command("dvc", "remove", "data.dvc")
    clone.command("git", "checkout", "params.yaml", "dvc.lock")
    clone.command("rm", "-r", "data", "artifacts", "reports")

    done = clone.diptych("reproduce", "diptych-tiny/challenger", "--json")

    assert done.returncode == 0, done.stdout + done.stderr
    verdict = json.loads(done.stdout)
    assert {one["what"]: one["identical"] for one in verdict["findings"]} == dict.fromkeys(COMPARED, True)
    assert verdict["git_sha"] == clone.command("git", "rev-parse", "diptych/runs").strip()
    assert all(f"Running stage '{name}':" in done.stderr for name in dvc.STAGES)
    assert "0 of 1 shards before" in done.stderr
    assert clone.command("git", "worktree", "list").count("\n") == 1

"""A run as a job of Slurm whose training has two nodes: the daemons run here, where they are installed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import shell
import yaml
from pipeline_clone import Clone
from safetensors.numpy import load_file
from sharing import free_ports
from waiting import comes_true

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in PROGRAMS) or os.getuid() != 0,
        reason="Slurm is not installed, or this is not root: apt-get install slurmctld slurmd slurm-client munge",
    ),
]
NODES = ("n1", "n2")
CONFIGURATION = """\
ClusterName=diptych
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SlurmUser=root
ReturnToService=2
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=ALL Default=YES State=UP
"""


@pytest.fixture
def slurm() -> Iterator[dict[str, str]]:
    """The environment of a shell with a cluster of two nodes."""
    with TemporaryDirectory(prefix="slurm", dir="/tmp") as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "key").write_bytes(os.urandom(64))
        (folder / "key").chmod(0o400)
        (folder / "state").mkdir()
        configuration = CONFIGURATION.format(host=socket.gethostname(), folder=folder, ports=free_ports(3))
        (folder / "slurm.conf").write_text(configuration)
        environment = shell.environment(SLURM_CONF=str(folder / "slurm.conf"))
        environment["PATH"] += ":/usr/sbin"
        files = {"key-file": "key", "socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log"}
        munge = [f"--{option}={folder / file}" for option, file in (files | {"seed-file": "seed"}).items()]
        nodes = [["slurmd", "-D", "-N", node] for node in NODES]
        for daemon in (["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"], *nodes):
            process = subprocess.Popen(
                daemon, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            if daemon[0] == "munged":
                assert comes_true((folder / "munge.socket").exists)

        def are_idle() -> bool:
            command = ["sinfo", "--noheader", "--states=idle", "--format=%D"]
            done = subprocess.run(command, env=environment, text=True, capture_output=True)
            return done.stdout.strip() == "2"

        assert comes_true(are_idle)
        yield environment


def test_a_job_trains_on_two_nodes_and_registers_the_model(chain: Clone, slurm: dict[str, str], tmp_path: Path) -> None:
    copy = chain.copy(tmp_path / "project")
    params = yaml.safe_load((copy.root / "params.yaml").read_text())
    params["train"]["launch"] = ["deploy/slurm/launch.sh"]
    (copy.root / "params.yaml").write_text(yaml.safe_dump(params))

    job = ["sbatch", "--wait", "--nodes=2", "--output=job.log", "deploy/slurm/run.sbatch", "--json"]
    environment = slurm | {"PREFECT_API_URL": Clone.prefect()}
    done = subprocess.run(job, cwd=copy.root, env=environment, text=True, capture_output=True)
    log = (copy.root / "job.log").read_text()
    assert done.returncode == 0, log
    summary = json.loads(log[log.index("{\n") :])
    assert summary["stages"]["preprocess"] == "reused"
    assert summary["stages"]["train"] == "ran"
    assert summary["version"]["version"] == "2"
    # Two processes sum in another order than one, and each normalizes its half of a batch.
    alone, together = (load_file(clone.root / "artifacts/model/model.safetensors") for clone in (chain, copy))
    weights = [name for name in alone if alone[name].dtype == np.float32 and "running_" not in name]
    differences = [np.abs(together[name] - alone[name]).max() for name in weights]
    assert 0 < max(differences) < 24 * params["train"]["learning_rate"]

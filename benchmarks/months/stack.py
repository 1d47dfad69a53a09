"""The servers of docker/ as processes on this machine, started as in the tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from months.project import ROOT, Project, make_project, say
from months.scheduled import SCHEDULER

sys.path.append(str(ROOT / "tests"))
import services
from services import Service


class Stack(NamedTuple):
    """The servers, and their project."""

    mlflow: Service
    prefect: Service
    project: Project


@contextmanager
def stack(folder: Path) -> Iterator[Stack]:
    """Start PostgreSQL, S3, MLflow, Prefect, a deployed project and a worker."""
    if missing := services.postgres_missing():
        raise SystemExit(f"{missing}; install PostgreSQL.")
    logs = folder / "services"
    say("starting PostgreSQL, S3, MLflow and Prefect")
    with services.postgres(logs) as postgres, services.s3(logs) as s3:
        services.prepare(postgres, s3)
        with (
            services.mlflow_server(logs, postgres, s3) as mlflow,
            services.prefect_server(logs, postgres, **SCHEDULER) as prefect,
        ):
            say("making the project, and deploying it")
            home = str(folder / "prefect")
            project = make_project(folder, services.environment(mlflow, prefect, s3, PREFECT_HOME=home))
            project.diptych("deploy")
            # The worker inherits this variable: like commands in the clone, it runs the clone's code.
            os.environ["PYTHONPATH"] = str(project.root / "src")
            with services.worker(logs, project.root, prefect, mlflow, s3):
                yield Stack(mlflow, prefect, project)

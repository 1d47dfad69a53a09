"""docker/compose.yaml as compose reads it, and what belongs to it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE = DOCKER / "compose.yaml"
TEXT = COMPOSE.read_text(encoding="utf-8")
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")
NAMED = dict(re.findall(r"^(\w+)=(.*)$", (DOCKER / "example.env").read_text(encoding="utf-8"), re.M))
SECRETS = {name: f"a secret {name.lower()}" for name, kind, _ in VARIABLE.findall(TEXT) if kind == "?"}
SCRIPTS = sorted(str(path.relative_to(ROOT)) for path in (*DOCKER.glob("**/*.sh"), *ROOT.glob("deploy/slurm/*")))
OVERRIDE = "docker/testing/compose.override.yaml"
IN_THE_IMAGE = "/opt/diptych/"


def resolved(**variables: str) -> dict[str, Any]:
    """What compose makes of the file; an empty variable has its default, as an unset one.

    Raises:
        KeyError: a variable is empty without which compose refuses to go on.
    """

    def value(found: re.Match[str]) -> str:
        name, kind, other = found.groups()
        if kind == "?" and not variables.get(name):
            raise KeyError(name)
        return variables.get(name) or (other if kind == "-" else "")

    content: dict[str, Any] = yaml.safe_load(VARIABLE.sub(value, TEXT))
    return content


SERVICES: dict[str, Any] = resolved(**SECRETS)["services"]


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_nothing_starts_without_a_secret(name: str) -> None:
    with pytest.raises(KeyError, match=name):
        resolved(**SECRETS | {name: ""})


def test_the_example_names_every_secret_and_no_value() -> None:
    assert set(SECRETS) <= set(NAMED)
    assert set(NAMED.values()) == {""}


def test_the_example_names_nothing_that_compose_does_not_read() -> None:
    assert set(NAMED) <= {name for name, _, _ in VARIABLE.findall(TEXT)}


def test_no_secret_stands_in_the_file() -> None:
    secret = re.compile(r"(PASSWORD|SECRET|ACCESS_KEY)")
    for name, service in SERVICES.items():
        values = {key: value for key, value in service.get("environment", {}).items() if secret.search(key)}
        assert set(values.values()) <= set(SECRETS.values()), name


def test_the_secrets_are_told_apart() -> None:
    """Whoever has one of them has not the others."""
    assert SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD"] == SECRETS["POSTGRES_PASSWORD"]
    for name in ("worker", "worker-gpu"):
        assert not {"PGPASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"} & set(SERVICES[name]["environment"])


@pytest.mark.parametrize("bind", ["", "192.0.2.1"])
def test_ports_are_bound_to_this_machine_unless_a_variable_says_otherwise(bind: str) -> None:
    services = resolved(**SECRETS, DIPTYCH_BIND=bind)["services"]
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) == {"s3", "mlflow", "prefect", "search"}
    for ports in published.values():
        assert all(port.startswith(f"{bind or '127.0.0.1'}:") for port in ports)


def test_every_server_says_how_it_is_and_what_ends_by_itself_has_to_succeed() -> None:
    assert {name for name, service in SERVICES.items() if "healthcheck" not in service} == {"prepare"}
    waited = [
        service["depends_on"]["prepare"] for service in SERVICES.values() if "prepare" in service.get("depends_on", {})
    ]
    assert waited == [{"condition": "service_completed_successfully"}] * 2


def test_whoever_depends_on_a_server_waits_until_it_answers() -> None:
    for service in SERVICES.values():
        for other, how in service.get("depends_on", {}).items():
            healthy = "service_healthy" if "healthcheck" in SERVICES[other] else "service_completed_successfully"
            assert how == {"condition": healthy}


def test_every_named_volume_is_declared_and_used() -> None:
    mounts = [mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])]
    assert {mount for mount in mounts if not mount.startswith((".", "/"))} == set(resolved(**SECRETS)["volumes"])


def test_images_of_others_have_a_version() -> None:
    images = {service["image"] for service in SERVICES.values() if "build" not in service}
    assert images
    assert all(re.search(r":v?\d", image) for image in images)


def test_authentication_has_one_switch() -> None:
    """MLflow, Prefect, the workers and the search page all hear of it."""
    for value, heard in (("", "on"), ("off", "off")):
        services = resolved(**SECRETS, DIPTYCH_AUTHENTICATION=value)["services"]
        told = {
            name: service.get("environment", {}).get("DIPTYCH_AUTHENTICATION") for name, service in services.items()
        }
        heard_by = {name for name, word in told.items() if word}
        assert heard_by == {"mlflow", "prefect", "worker", "worker-gpu", "search"}
        assert {word for word in told.values() if word} == {heard}


def test_mlflow_may_be_called_by_the_names_that_reach_it() -> None:
    services = resolved(**SECRETS, DIPTYCH_HOST="models.example", MLFLOW_PORT="8000")["services"]
    allowed = services["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert allowed == ["mlflow:5000", "localhost:8000", "127.0.0.1:8000", "models.example:8000"]
    assert services["worker"]["environment"]["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"


def test_only_the_gpu_worker_waits_to_be_asked_for() -> None:
    assert {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service} == {
        "worker-gpu": ["gpu"]
    }
    (device,) = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_what_containers_run_is_in_the_image_and_can_be_run() -> None:
    commands = {name: service["command"] for name, service in SERVICES.items() if "build" in service}
    files = [word.removeprefix(IN_THE_IMAGE) for words in commands.values() for word in words if IN_THE_IMAGE in word]
    assert len(files) == len(commands)
    for name in files:
        assert (DOCKER / name).is_file()
        assert name.endswith(".py") or os.access(DOCKER / name, os.X_OK)


def test_the_image_is_built_of_files_that_are_there_and_not_ignored() -> None:
    dockerfile = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.M) for word in line.split()]
    assert len(copied) > 5
    for pattern in copied:
        assert list(ROOT.glob(pattern)), pattern
        for path in ROOT.glob(pattern):
            kept = [line[1:] for line in ignored if line.startswith("!")]
            assert any(path in ROOT.glob(line) for line in kept), path
    build = SERVICES["worker"]["build"]
    assert (DOCKER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()


def test_the_image_is_not_root() -> None:
    last = (DOCKER / "Dockerfile").read_text(encoding="utf-8").rsplit("FROM ", 1)[1]
    assert re.findall(r"^USER (.+)$", last, re.M) == ["1000:1000"]


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("check-jsonschema", ["--builtin-schema", "vendor.compose-spec", "docker/compose.yaml", OVERRIDE]),
        ("hadolint", ["docker/Dockerfile", *map(str, DOCKER.glob("testing/*.Dockerfile"))]),
        ("shellcheck", ["--external-sources", "--source-path=SCRIPTDIR", *SCRIPTS]),
    ],
)
def test_a_linter_finds_nothing(tool: str, arguments: list[str]) -> None:
    program = Path(sys.executable).with_name(tool)
    if not program.exists():
        pytest.skip(f"{tool} is not installed")
    done = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

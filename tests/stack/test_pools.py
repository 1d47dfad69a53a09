"""The templates of work pools, by Prefect's own rules and against its own templates of the same type."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import prefect
import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEMPLATES = {path.stem: json.loads(path.read_text()) for path in (ROOT / "docker" / "pools").glob("*.json")}
KNOWN = Path(prefect.__file__).parent / "server/api/collections_data/views/aggregate-worker-metadata.json"
LATER = {"container_create_kwargs"}
"""Keys of newer workers than those that this Prefect describes."""


@pytest.fixture(params=sorted(TEMPLATES))
def name(request: pytest.FixtureRequest) -> str:
    """The type of a pool, which is its file's name too."""
    return str(request.param)


def own(name: str) -> dict[str, Any]:
    """Prefect's own template of this type."""
    workers = json.loads(KNOWN.read_text())[f"prefect-{name}"]
    template: dict[str, Any] = workers[name]["default_base_job_configuration"]
    return template


def test_prefect_takes_it(name: str) -> None:
    # It takes two seconds to import, in each process of the tests.
    from prefect.server.schemas.actions import WorkPoolCreate

    WorkPoolCreate(name="x", type=name, base_job_template=TEMPLATES[name])


def test_the_worker_knows_every_key(name: str) -> None:
    known = own(name)["job_configuration"]
    assert set(TEMPLATES[name]["job_configuration"]) - LATER <= set(known)


def test_every_variable_is_used_and_described(name: str) -> None:
    template = TEMPLATES[name]
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])
    assert all({"title", "description", "type"} <= set(one) for one in template["variables"]["properties"].values())


def test_no_secret_stands_in_it(name: str) -> None:
    values = TEMPLATES[name]["variables"]["properties"]["env"]["default"]
    for key, value in values.items():
        if re.search(r"PASSWORD|SECRET|ACCESS_KEY", key):
            assert value.startswith("{{ prefect.blocks.secret."), key


def test_it_starts_the_image_of_the_stack_in_the_checkout(name: str) -> None:
    compose = (ROOT / "docker" / "compose.yaml").read_text()
    template = json.dumps(TEMPLATES[name])
    assert f"DIPTYCH_IMAGE:-{TEMPLATES[name]['variables']['properties']['image']['default']}}}" in compose
    assert template.count("/project") >= 2
    assert f"{yaml.safe_load(compose)['name']}_default" in template or name == "kubernetes"

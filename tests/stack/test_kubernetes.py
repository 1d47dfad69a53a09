"""The manifests of deploy/kubernetes: valid by Kubernetes' schemas, and in agreement with each other and the image."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
BASE = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))
RAY = yaml.safe_load((FOLDER / "ray/kustomization.yaml").read_text(encoding="utf-8"))
SCHEMA = "1.34"


def read(*names: str) -> list[dict[str, Any]]:
    return [one for name in names for one in yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))]


RESOURCES = read(*BASE["resources"])
(RAY_CLUSTER,) = read("ray/raycluster.yaml")
GROUPS = [RAY_CLUSTER["spec"]["headGroupSpec"], *RAY_CLUSTER["spec"]["workerGroupSpecs"]]
PODS = [
    one["spec"]["template"]["spec"]
    for one in [*RESOURCES, *({"spec": group} for group in GROUPS)]
    if "template" in one.get("spec", {})
]


def test_every_file_is_a_resource() -> None:
    files = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.yaml")}
    named = {*BASE["resources"], *(f"ray/{name}" for name in RAY["resources"] if name != "../")}
    assert files == named | {"kustomization.yaml", "ray/kustomization.yaml", "ray/worker.yaml"}


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda one: f"{one['kind']} {one['metadata']['name']}")
def test_a_resource_is_valid(resource: dict[str, Any]) -> None:
    kubernetes_validate.validate(resource, SCHEMA, strict=True)


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_is_valid_and_bounded(pod: dict[str, Any]) -> None:
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}, SCHEMA, strict=True
    )
    assert pod["securityContext"]["runAsNonRoot"]
    claims = {volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "emptyDir" not in volume}
    assert claims == {one["metadata"]["name"] for one in RESOURCES if one["kind"] == "PersistentVolumeClaim"}
    settings = {one["metadata"]["name"] for one in RESOURCES if one["kind"] == "ConfigMap"}
    for container in pod["containers"]:
        assert container["image"] == BASE["images"][0]["name"] == RAY["images"][0]["name"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}
        assert {
            one["configMapRef"]["name"] for one in container.get("envFrom", []) if "configMapRef" in one
        } <= settings
        for script in container.get("command", []):
            assert (ROOT / "docker" / Path(script).name).is_file()


def test_the_service_and_the_budget_find_the_pods() -> None:
    by_kind = {one["kind"]: one for one in read("search.yaml")}
    labels = by_kind["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert by_kind["Service"]["spec"]["selector"] == labels
    assert by_kind["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels


def test_many_nodes_may_write_the_project() -> None:
    (claim,) = (one for one in RESOURCES if one["kind"] == "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_worker_joins_the_ray_cluster_of_the_locked_version() -> None:
    (patch,) = read("ray/worker.yaml")
    (worker,) = read("worker.yaml")
    assert patch["metadata"]["name"] == worker["metadata"]["name"]
    (container,) = patch["spec"]["template"]["spec"]["containers"]
    assert container["name"] == worker["spec"]["template"]["spec"]["containers"][0]["name"]
    service = f"{RAY_CLUSTER['metadata']['name']}-head-svc"
    assert container["env"] == [{"name": "RAY_ADDRESS", "value": f"{service}:6379"}]
    assert RAY_CLUSTER["spec"]["rayVersion"] == version("ray")

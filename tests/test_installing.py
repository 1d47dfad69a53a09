"""What the Makefile installs, and when; programs that only write down their arguments stand in for uv and Python."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROGRAMS = ("python", "diptych", "ruff", "mypy", "lint-imports", "pytest")
RUN, CODE, DEV, GPU, TRIED = "a run", "the code", "development", "a GPU", "nothing yet"
SETS = {"--exact": RUN, "--group dev": DEV, "--dry-run": TRIED, "": GPU}


def locked() -> dict[str, set[str]]:
    """The versions of each package in the lock."""
    versions: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.M):
        versions.setdefault(name, set()).add(version)
    return versions


class Checkout:
    """A checkout with stand-ins in its virtual environment, and what was installed there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls = root / "calls"
        self.calls.touch()
        for name in ("Makefile", "requirements.lock", "pyproject.toml"):
            shutil.copy(ROOT / name, root)
        for name in PROGRAMS:
            self._program(f"bin/{name}", "")
        self._program(
            "uv/bin/uv", f'echo "$*" >>{self.calls}; case "$*" in *--excludes*) cat >left-out;; esac; [ ! -e broken ]'
        )

    def _program(self, path: str, line: str) -> None:
        program = self.root / ".venv" / path
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)

    def make(self, *arguments: str) -> list[str]:
        """The installations that a call of make has done, in order."""
        self.calls.write_text("")
        subprocess.run(["make", "--silent", "GPU=", *arguments], cwd=self.root, capture_output=True, check=False)
        return [self._kind(call) for call in self.calls.read_text().splitlines()]

    @staticmethod
    def _kind(call: str) -> str:
        if "--editable" in call:
            return CODE
        assert "--constraint requirements.lock" in call
        return SETS[call.partition("--excludes -")[2].strip()]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_a_run_needs_no_tools_of_development(checkout: Checkout) -> None:
    assert checkout.make("run") == [RUN, CODE]
    assert checkout.make("run") == []
    assert checkout.make("test") == [DEV]
    assert checkout.make("test") == checkout.make("run") == []


def test_the_tests_may_come_first(checkout: Checkout) -> None:
    assert checkout.make("test") == [RUN, CODE, DEV]
    assert checkout.make("run") == checkout.make("test") == []


@pytest.mark.parametrize("target", ["lint", "benchmarks"])
def test_what_runs_tools_of_development_installs_them(checkout: Checkout, target: str) -> None:
    assert checkout.make("--ignore-errors", target)[:3] == [RUN, CODE, DEV]


def test_a_gpu_needs_more_packages(checkout: Checkout) -> None:
    assert checkout.make("run") == [RUN, CODE]
    assert checkout.make("run", "GPU=1") == [GPU]
    assert checkout.make("run", "GPU=1") == checkout.make("run") == []


def test_an_installation_that_was_broken_off_is_done_afresh(checkout: Checkout) -> None:
    broken, package = checkout.root / "broken", checkout.root / ".venv/lib/python3.11/site-packages/half.py"
    package.parent.mkdir(parents=True)
    package.touch()
    broken.touch()
    assert checkout.make("test") == [RUN]
    broken.unlink()
    assert checkout.make("run") == [TRIED, RUN, CODE]
    assert not package.exists()
    broken.touch()
    assert checkout.make("test") == [DEV]
    broken.unlink()
    assert checkout.make("test") == [TRIED, RUN, CODE, DEV]
    assert checkout.make("test") == []


def test_what_cannot_be_resolved_leaves_the_packages_as_they_are(checkout: Checkout) -> None:
    package = checkout.root / ".venv/lib/python3.11/site-packages/half.py"
    package.parent.mkdir(parents=True)
    package.touch()
    (checkout.root / "broken").touch()
    assert checkout.make("run") == [RUN]
    assert checkout.make("run") == [TRIED]
    assert package.exists()


def test_another_lock_is_installed_for_both(checkout: Checkout) -> None:
    checkout.make("test")
    shutil.copy(ROOT / "requirements.lock", checkout.root)
    assert checkout.make("run") == [RUN, CODE]
    assert checkout.make("test") == [DEV]


def test_every_package_that_is_left_out_without_a_gpu_is_locked(checkout: Checkout) -> None:
    checkout.make("setup")
    names = (checkout.root / "left-out").read_text().split()
    assert "triton" in names
    assert set(names) <= set(locked())
    checkout.make("setup", "GPU=1")
    assert (checkout.root / "left-out").read_text().split() == []


def test_the_lock_has_a_version_for_every_requirement() -> None:
    """Else the newest version would be installed, with no hash."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = told["project"]
    texts = [*project["dependencies"], *project["optional-dependencies"]["stack"], *told["dependency-groups"]["dev"]]
    versions = locked()
    for requirement in map(Requirement, texts):
        found = versions.get(canonicalize_name(requirement.name), set())
        assert found, f"{requirement} is not in requirements.lock: run `make lock`"
        assert all(version in requirement.specifier for version in found), requirement

"""Whose code runs, and which packages, beside what the project says."""

import shutil
from pathlib import Path

import diptych
from diptych.project.packages import foreign_code


def test_a_copied_project_whose_code_was_changed_is_told_from_the_one_that_runs(tmp_path: Path) -> None:
    running = Path(diptych.__file__).parent
    assert foreign_code(tmp_path) is None

    own = shutil.copytree(running, tmp_path / "src" / "diptych", ignore=shutil.ignore_patterns("__pycache__"))
    assert foreign_code(tmp_path) is None
    (own / ".#config.py").symlink_to("the lock of an editor")
    assert foreign_code(tmp_path) is None
    (own / "new.py").touch()
    assert foreign_code(tmp_path) == running

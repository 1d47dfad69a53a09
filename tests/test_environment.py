import subprocess
import sys
from pathlib import Path

SEEN = """
import atexit, gc, sys
from pathlib import Path
from diptych.environment import collect_as_usual, prepare

usual = gc.get_threshold()
atexit.register(lambda: print("frozen", gc.get_freeze_count() > 0))
prepare(Path(sys.argv[1]))
prepare(Path(sys.argv[1]))
print("rare", gc.get_threshold() > usual, gc.get_freeze_count())
if "computes" in sys.argv:
    collect_as_usual()
    print("usual", gc.get_threshold() == usual, gc.get_freeze_count() > 0)
"""


def seen(*arguments: str) -> list[str]:
    """What a process sees of its garbage collector; its last line is printed at exit."""
    return subprocess.run(
        [sys.executable, "-c", SEEN, *arguments], capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_imports_are_not_looked_through_for_garbage_again_and_again(tmp_path: Path) -> None:
    assert seen(str(tmp_path)) == ["rare True 0", "frozen True"]


def test_what_computes_collects_garbage_as_usual(tmp_path: Path) -> None:
    assert seen(str(tmp_path), "computes") == ["rare True 0", "usual True True", "frozen True"]

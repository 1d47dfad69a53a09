from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from diptych.model import stand_ins
from diptych.model.stand_ins import standing_in_for

FILES = {
    "heavy/__init__.py": "loaded = True\n\nclass Thing:\n    pass\n\ndef make():\n    return Thing()\n",
    "heavy/part.py": "class Piece:\n    name = 'piece'\n",
    "user.py": """
        from heavy import Thing, make
        from heavy.part import Piece

        def is_thing(value: object) -> bool: return isinstance(value, Thing)
        def annotated(value: Thing | None) -> Piece | None: ...
    """,
    "eager.py": "from heavy import make\n\nmade = make()\n",
    "packed/__init__.py": "from packed import inner\n\nranks = 'ran'\nvalue = inner.value + 1\n",
    "packed/inner.py": "value = 1\n",
    "packed/other.py": "from . import inner\n\nvalue = inner.value + 2\n",
}


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, source in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(line.removeprefix("        ") for line in source.splitlines()))
    monkeypatch.syspath_prepend(str(tmp_path))
    finders = list(sys.meta_path)
    yield
    assert sys.meta_path == finders
    for name in list(sys.modules):
        if name.split(".")[0] in ("heavy", "user", "eager", "packed"):
            del sys.modules[name]


def imported(name: str, *names: str, without_init: tuple[str, ...] = ()) -> ModuleType:
    with standing_in_for(*names, without_init=without_init):
        return importlib.import_module(name)


def test_a_module_is_imported_when_something_of_it_is_called() -> None:
    user = imported("user", "heavy")
    assert not {"heavy", "heavy.part"} & set(sys.modules)
    thing = user.make()
    assert sys.modules["heavy"].loaded
    assert type(thing) is sys.modules["heavy"].Thing
    assert user.is_thing(thing)


def test_a_look_into_a_name_imports_it_too() -> None:
    assert imported("user", "heavy").Piece.name == "piece"


def test_nothing_is_an_instance_of_a_class_that_was_not_imported() -> None:
    user = imported("user", "heavy")
    assert not user.is_thing(1)
    assert "heavy" not in sys.modules


def test_a_call_during_the_import_gets_the_real_module() -> None:
    """A later version of the library that uses what it did not use before costs time, and nothing else."""
    eager = imported("eager", "heavy")
    assert type(eager.made) is sys.modules["heavy"].Thing


def test_what_was_imported_before_stays() -> None:
    heavy = importlib.import_module("heavy")
    assert imported("user", "heavy").Thing is heavy.Thing


def test_an_import_after_the_block_gets_the_real_module() -> None:
    imported("user", "heavy")
    assert importlib.import_module("heavy").loaded


def test_an_error_in_the_block_leaves_no_stand_in() -> None:
    with pytest.raises(ValueError, match="stop"), standing_in_for("heavy"):
        importlib.import_module("user")
        raise ValueError("stop")
    assert "heavy" not in sys.modules


def test_a_name_that_a_package_has_given_to_a_function_stays(tmp_path: Path) -> None:
    """As `transformers.utils` does: its `auto_docstring` is the function of its module `auto_docstring`."""
    (tmp_path / "heavy" / "__init__.py").write_text("from .part import Piece\npart = Piece\n")
    package = imported("heavy", "heavy.part")
    assert package.part.name == "piece"


def test_submodules_of_a_package_without_its_init() -> None:
    other = imported("packed.other", without_init=("packed",))
    assert other.value == 3
    assert "ranks" not in vars(sys.modules["packed"])


def test_the_init_runs_for_the_first_other_name() -> None:
    imported("packed.other", without_init=("packed",))
    packed = sys.modules["packed"]
    assert (packed.inner.value, packed.ranks, packed.value) == (1, "ran", 2)
    assert importlib.import_module("packed").ranks == "ran"
    # Whoever holds the package from before the init has its names too.
    assert packed.ranks == "ran"
    with pytest.raises(AttributeError):
        packed.nothing  # noqa: B018


def test_decorators_of_dynamo_do_without_it_and_reach_it_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_ins, "_allowed", [])
    ready = stand_ins.READY["torch._dynamo"]()

    def function() -> int:
        return 1

    assert ready["allow_in_graph"](function) is function
    assert ready["assume_constant_result"](function) is function
    allowed: list[object] = []
    dynamo = ModuleType("torch._dynamo")
    vars(dynamo)["allow_in_graph"] = allowed.append
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    monkeypatch.setitem(sys.modules, "torch._dynamo", dynamo)
    vars(sys.modules["torch"])["_dynamo"] = dynamo
    stand_ins.register_with_dynamo()
    assert allowed == [function]

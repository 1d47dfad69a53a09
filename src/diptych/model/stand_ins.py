"""Imports without what is imported along and hardly ever used.

`transformers.modeling_utils` imports generation, losses, quantization and distribution together with the base class of
all models, and the `__init__` of two of its packages reads every source file of every architecture: together more than
importing PyTorch takes, and no backbone here uses any of it. Within `standing_in_for` such modules are stand-ins, and
such packages lack their `__init__`, until something does use them.
"""

from __future__ import annotations

import importlib
import sys
import threading
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import version
from types import ModuleType
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


class _StandIn(type):
    """Metaclass of the classes that stand for one name of a module; any use imports the real object.

    A class, because what it stands for is used as a type: in annotations, with `|`, and by `isinstance`.
    """

    def _real(cls) -> Any:
        if isinstance(sys.modules.get(cls.__module__), _Module):
            _retire()
        return getattr(importlib.import_module(cls.__module__), cls.__name__)

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        return cls._real()(*arguments, **named)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(cls._real(), name)

    def __instancecheck__(cls, instance: object) -> bool:
        """Return False as long as the real module is not imported: it has no instances then."""
        module = sys.modules.get(cls.__module__)
        return module is not None and not isinstance(module, _Module) and isinstance(instance, cls._real())


class _Module(ModuleType):
    """Module of stand-ins."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandIn(name, (), {"__module__": self.__name__})


class _Package(ModuleType):
    """Package whose `__init__` runs as soon as anything but its submodules is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(name)
        if PathFinder.find_spec(f"{self.__name__}.{name}", self.__path__):
            return importlib.import_module(f"{self.__name__}.{name}")
        if sys.modules.get(self.__name__) is self:
            _retire()
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


class _Finder(MetaPathFinder, Loader):
    """Finder of stand-ins for the modules `names` and those below them, and of `packages` without their `__init__`.

    What other threads import meanwhile is none of its business.
    """

    def __init__(self, names: Sequence[str], packages: Sequence[str]) -> None:
        self.names = names
        self.packages = packages
        self.thread = threading.get_ident()

    def find_spec(self, fullname: str, path: Sequence[str] | None, _target: object = None) -> ModuleSpec | None:
        if threading.get_ident() != self.thread:
            return None
        if any(f"{fullname}.".startswith(f"{name}.") for name in self.names):
            return ModuleSpec(fullname, self, is_package=True)
        if fullname in self.packages and (real := PathFinder.find_spec(fullname, path)):
            spec = ModuleSpec(fullname, self, origin=real.origin, is_package=True)
            spec.submodule_search_locations = real.submodule_search_locations
            return spec
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Package(spec.name) if spec.name in self.packages else _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(READY.get(module.__name__, dict)())


@contextmanager
def standing_in_for(*names: str, without_init: Sequence[str] = ()) -> Iterator[None]:
    """Let imports within the block get stand-ins for the modules `names` and for those below them.

    What is imported already stays. After the block an import gets the real module, and so does each stand-in when it
    is called or looked into.

    Args:
        names: modules.
        without_init: packages whose `__init__` does not run before something asks for one of its names.
    """
    missing = [[name for name in some if name not in sys.modules] for some in (names, without_init)]
    sys.meta_path.insert(0, _Finder(*missing))
    try:
        yield
    finally:
        _retire()


def _retire() -> None:
    """Let imports get the real modules from now on."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
    for name, module in list(sys.modules.items()):
        if isinstance(module, _Module):
            del sys.modules[name]
            parent, _, attribute = name.rpartition(".")
            names = vars(sys.modules.get(parent, module))
            # A package may have given the name of its module to one of that module's functions.
            if names.get(attribute) is module:
                del names[attribute]


_allowed: list[Callable[..., Any]] = []


def register_with_dynamo() -> None:
    """Tell the real `torch._dynamo` what its stand-in was told; to be called before anything is compiled."""
    import torch._dynamo

    for function in _allowed:
        torch._dynamo.allow_in_graph(function)  # noqa: SLF001


def _allow_in_graph(function: Function) -> Function:
    _allowed.append(function)
    return function


def _assume_constant_result(function: Function) -> Function:
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]  # noqa: SLF001
    return function


def _disable(function: Any = None, recursive: bool = True, **_named: Any) -> Any:
    """Return what `torch._dynamo.disable` returns, but import the real module at the first call, as PyTorch does."""
    from torch._compile import _disable_dynamo

    return _disable_dynamo(function, recursive)


def _undocumented(decorated: Any = None, **_named: Any) -> Any:
    """Return a class or function without the docstring that transformers makes up at every start."""
    return decorated or _undocumented


READY: dict[str, Callable[[], dict[str, Any]]] = {
    "torch._dynamo": lambda: {
        "allow_in_graph": _allow_in_graph,
        "assume_constant_result": _assume_constant_result,
        "disable": _disable,
    },
    "transformers": lambda: {"__version__": version("transformers")},
    "transformers.processing_utils": lambda: {"Unpack": typing.Unpack},
    "transformers.utils.auto_docstring": lambda: {"auto_docstring": _undocumented},
}
"""Ready names by module: other modules use them while they are imported, so no stand-in will do."""

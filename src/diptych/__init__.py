"""diptych: from captioned images to a registered, evaluated, reproducible retrieval model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych.retriever import Encoded, PairScores, Ranking, Retriever

__version__ = "0.2.0"

__all__ = ["Encoded", "PairScores", "Ranking", "Retriever", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the public classes when they are first asked for: each command imports this package."""
    if name in __all__:
        from diptych import retriever

        return getattr(retriever, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""The towers that all systems train, in the workspace."""

from __future__ import annotations

from pathlib import Path

from torch import nn

IMAGE_TOWER = Path("weights/efficientnet-lite0")
TEXT_TOWER = Path("weights/all-minilm-l6-v2")


def keep_in_evaluation(module: nn.Module) -> None:
    """Make `module` ignore train(), so that its batch norms keep their statistics, in torch's fastest form."""
    module.eval()
    module.train = lambda *_: module  # type: ignore[method-assign]

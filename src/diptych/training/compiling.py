"""Compilation of the towers, where a training is long enough for it to pay."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from diptych.config import Train
from diptych.model.dual_encoder import DualEncoder
from diptych.model.stand_ins import register_with_dynamo

COMPILED_FROM = 3000
"""Number of steps from which compiling pays on a GPU: for ResNet-50 and BERT-base it takes 75 s on an H100, and saves
29 ms a step."""


class Compilation:
    """Compilation of the towers of `model`, if a training with epochs of `epoch_steps` is long enough for it to pay."""

    def __init__(self, model: DualEncoder, settings: Train, device: torch.device, epoch_steps: int) -> None:
        self.model = model
        self.active = settings.compile == "always"
        if settings.compile == "auto":
            self.active = device.type == "cuda" and epoch_steps * settings.all_epochs >= COMPILED_FROM

    def compile_towers(self) -> None:
        """Compile what is computed in every step of each tower."""
        if self.active:
            register_with_dynamo()
            for tower, dynamic in ((self.model.image_tower, False), (self.model.text_tower, True)):
                computed = tower.upper.model if tower.upper else tower.backbone
                if computed._compiled_call_impl is None:  # noqa: SLF001
                    computed.compile(dynamic=dynamic)

    def paused(self, when: bool = True) -> AbstractContextManager[None]:
        """Return a context without compiled code, for sizes that come too seldom to compile for them."""
        return torch.compiler.set_stance("force_eager") if when and self.active else nullcontext()

    def undo(self) -> None:
        """Remove the compiled code: later inputs have other sizes, and each would be compiled anew."""
        for module in self.model.modules():
            module._compiled_call_impl = None  # noqa: SLF001

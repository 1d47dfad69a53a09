"""The parts of transformers that diptych uses, imported without the rest.

Every other module imports it from here: whichever of them comes first, the rest is not imported.
"""

from __future__ import annotations

from diptych.model.stand_ins import standing_in_for

__all__ = [
    "MODEL_MAPPING",
    "AutoConfig",
    "AutoModel",
    "PreTrainedModel",
    "PreTrainedTokenizerBase",
    "PreTrainedTokenizerFast",
    "PretrainedConfig",
    "transformers_logging",
]

_UNUSED = (
    "accelerate",
    "scipy",
    "torch._dynamo",
    "torch.distributed._composable",
    "torch.distributed._functional_collectives",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.nn.attention.flex_attention",
    "transformers.distributed.expert_parallel",
    "transformers.distributed.tensor_parallel",
    "transformers.image_processing_utils",
    "transformers.image_transforms",
    "transformers.processing_utils",
    "transformers.utils.auto_docstring",
)
"""Modules that transformers imports with a backbone and no backbone uses; they take longer to import than PyTorch."""

with standing_in_for(*_UNUSED, without_init=("transformers", "transformers.models")):
    # The towers of most presets; other architectures are imported when they are built.
    import transformers.models.bert.modeling_bert
    import transformers.models.resnet.modeling_resnet  # noqa: F401
    from transformers.configuration_utils import PretrainedConfig
    from transformers.modeling_utils import PreTrainedModel
    from transformers.models.auto.configuration_auto import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_MAPPING, AutoModel
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast
    from transformers.utils import logging as transformers_logging

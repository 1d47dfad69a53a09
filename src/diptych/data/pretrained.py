"""Search for the files of a pretrained tower, without a network: in a local folder or in the Hugging Face cache."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from diptych.config import Model, Tower
from diptych.errors import DiptychError

FILES = ("*.json", "*.safetensors", "*.txt")
"""Patterns of the files from which a tower is loaded: configuration, weights without pickle, vocabulary."""


def locate_towers(model: Model) -> None:
    """Check that the files of each pretrained tower are available, before anything is computed for it.

    Raises:
        DiptychError: `locate` fails, or a tower has no safetensors; one message covers both towers.
    """
    problems = []
    for key, tower in (("image_tower", model.image_tower), ("text_tower", model.text_tower)):
        try:
            if tower.pretrained is not None and not any(locate(tower).glob("*.safetensors")):
                raise DiptychError(
                    f"{tower.pretrained} holds no safetensors, and weights in other formats are never read. If you "
                    "trust the model, load it with transformers and save it there with save_pretrained."
                )
        except DiptychError as error:
            problems.append(f"params.yaml: model.{key}.pretrained: {error}")
    if problems:
        raise DiptychError("\n".join(problems))


def locate(tower: Tower) -> Path:
    """Return the local folder with the configuration, weights and tokenizer of `tower`, whose `pretrained` is given.

    Raises:
        DiptychError: the folder, or the cached revision, is missing or incomplete; the message says how to fill it.
    """
    assert tower.pretrained is not None
    if not tower.is_folder:
        return _cached(tower.pretrained, tower.revision)
    folder = Path(tower.pretrained)
    if not (folder / "config.json").is_file():
        raise DiptychError(
            f"The pretrained tower's folder {folder.resolve()} holds no config.json. Put the model there, as "
            f"`diptych weights offline`, `hf download ID --local-dir {folder}` or save_pretrained writes it."
        )
    return folder


def _cached(repository: str, revision: str | None) -> Path:
    try:
        folder = Path(
            snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=list(FILES))
        )
        if (folder / "config.json").is_file():
            return folder
    except HFValidationError as error:
        raise DiptychError(f"{repository!r} is not a hub id ({error}). Correct it in params.yaml.") from None
    except LocalEntryNotFoundError:
        pass
    includes = " ".join(f"--include '{pattern}'" for pattern in FILES)
    raise DiptychError(
        f"{repository} at revision {revision} is missing or incomplete in the cache {constants.HF_HUB_CACHE}. "
        f"Fetch it where there is a network (then copy the cache here, or set HF_HOME to it):\n"
        f"  hf download {repository} --revision {revision} {includes}\n"
        "or name a local folder in params.yaml."
    )

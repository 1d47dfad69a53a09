"""Finding a pretrained tower's files without a network: in a local folder, or in the Hugging Face cache."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from diptych.config import Tower
from diptych.errors import DiptychError

FILES = ("*.json", "*.safetensors", "*.txt")
"""What a tower is loaded from: configuration, weights without pickle, vocabulary."""


def locate(tower: Tower) -> Path:
    """The local folder that holds the configuration, weights and tokenizer of `tower`, whose `pretrained` is given.

    Raises:
        DiptychError: the folder, or the cached revision, is missing or incomplete; the message says how to fill it.
    """
    assert tower.pretrained is not None
    if not tower.is_folder:
        return _cached(tower.pretrained, tower.revision)
    folder = Path(tower.pretrained)
    if not (folder / "config.json").is_file():
        raise DiptychError(
            f"The pretrained tower's folder {folder.resolve()} holds no config.json. "
            f"Put the model there, as save_pretrained or `hf download ID --local-dir {folder}` writes it."
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
        f"{repository} at revision {revision} is not, or not completely, in the cache {constants.HF_HUB_CACHE}. "
        f"Fill it where there is a network (then copy the cache here, or let HF_HOME point to it):\n"
        f"  hf download {repository} --revision {revision} {includes}\n"
        "or name a local folder in params.yaml."
    )

"""Finding a pretrained tower's files without a network: in a local folder, or in the Hugging Face cache."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from diptych.config import Model, Tower
from diptych.errors import DiptychError

FILES = ("*.json", "*.safetensors", "*.txt")
"""What a tower is loaded from: configuration, weights without pickle, vocabulary."""


def locate_towers(model: Model) -> None:
    """Has both towers, where they are pretrained, looked for before anything is computed for them.

    Raises:
        DiptychError: as `locate`, of both towers at once; or there are no weights that are read.
    """
    said = []
    for key, tower in (("image_tower", model.image_tower), ("text_tower", model.text_tower)):
        try:
            if tower.pretrained is not None and not any(locate(tower).glob("*.safetensors")):
                raise DiptychError(
                    f"{tower.pretrained} holds no safetensors, and other weights are never read. Load the model with "
                    "transformers where you trust it, and write it there with save_pretrained."
                )
        except DiptychError as error:
            said.append(f"params.yaml: model.{key}.pretrained: {error}")
    if said:
        raise DiptychError("\n".join(said))


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
        f"{repository} at revision {revision} is not, or not completely, in the cache {constants.HF_HUB_CACHE}. "
        f"Fill it where there is a network (then copy the cache here, or let HF_HOME point to it):\n"
        f"  hf download {repository} --revision {revision} {includes}\n"
        "or name a local folder in params.yaml."
    )

"""Published datasets: where their archives are, what may be done with them, and how they are fetched."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from diptych.data.downloading import bytes_at, download, part_of
from diptych.data.unpacking import unpack
from diptych.errors import DiptychError
from diptych.files import file_sha256


class Archive(NamedTuple):
    """Zip archive, and the one file or folder in it that is needed.

    Attributes:
        url: address of the archive.
        publisher: person or organization that publishes it.
        bytes: size of the archive.
        sha256: SHA-256 of the archive, in hexadecimal.
        member: name of the needed file or folder, in the archive and here.
        unpacked_bytes: upper bound for the size of that file or folder.
    """

    url: str
    publisher: str
    bytes: int
    sha256: str
    member: str
    unpacked_bytes: int

    @property
    def name(self) -> str:
        """File name of the archive."""
        return self.url.rpartition("/")[2]


class PublishedDataset(NamedTuple):
    """Dataset of one or several archives.

    Attributes:
        summary: what the dataset is.
        archives: archives to download.
        licence: what may be done with the dataset, and where that is stated.
        next_steps: what to do with the dataset in `{folder}`.
    """

    summary: str
    archives: tuple[Archive, ...]
    licence: str
    next_steps: str

    def missing(self, folder: Path) -> list[Archive]:
        """Return the archives that are not unpacked in `folder`."""
        return [archive for archive in self.archives if not _is_there(folder / archive.member)]


def needed_bytes(archives: Sequence[Archive], folder: Path) -> int:
    """Return the bytes that must be free to fetch the archives, each of which is removed before the next one."""
    most = used = 0
    for archive in archives:
        path, member = folder / archive.name, folder / archive.member
        received = bytes_at(path) + bytes_at(part_of(path))
        unpacked = archive.unpacked_bytes - bytes_at(part_of(member))
        most = max(most, used + archive.bytes - received + unpacked)
        used += unpacked - received
    return most


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk that `folder` is on, or will be on."""
    absolute = folder.absolute()
    return shutil.disk_usage(next(path for path in (absolute, *absolute.parents) if path.exists())).free


def fetch(archives: Sequence[Archive], folder: Path) -> None:
    """Download, verify and unpack the archives into `folder`, and remove each one once it is unpacked.

    Raises:
        DiptychError: an archive cannot be downloaded, is not the published one, or cannot be unpacked; or another
            process downloads into the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            for archive in archives:
                _fetch(archive, folder)
    except Timeout:
        raise DiptychError(f"Another process downloads into {folder}. Wait for it, or stop it.") from None


def _is_there(member: Path) -> bool:
    """Return whether a file or folder was unpacked; an empty folder was not.

    Raises:
        DiptychError: it is a link to something that is not there.
    """
    if member.is_symlink() and not member.exists():
        raise DiptychError(f"{member} links to {member.readlink()}, which is missing. Mount it, or remove the link.")
    return any(member.iterdir()) if member.is_dir() else member.exists()


def _fetch(archive: Archive, folder: Path) -> None:
    # Another process may have fetched it since the list was made.
    if _is_there(folder / archive.member):
        return
    path = folder / archive.name
    if not path.exists():
        download(archive.url, path, archive.bytes, archive.sha256)
    elif file_sha256(path) != archive.sha256:
        raise DiptychError(f"{path} is not the archive of {archive.publisher}. Remove it, and run the command again.")
    unpack(path, archive.member, folder / archive.member, archive.unpacked_bytes)
    path.unlink()


# The publishers state no checksums. Those of COCO's archives are in tensorflow/datasets (url_checksums/coco.txt, with
# the sizes) and in pytorch/vision (prototype/datasets/_builtin/coco.py). Unpacked, train2014 takes 13,341,920 KiB.
# https://images.cocodataset.org has S3's certificate; S3's own address has the same files (mlcommons/inference#2572).
_COCO = "https://s3.amazonaws.com/images.cocodataset.org/zips"
_TRAIN = Archive(
    f"{_COCO}/train2014.zip",
    "COCO Consortium",
    13_510_573_713,
    "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
    "train2014",
    14_000_000_000,
)
_VAL = Archive(
    f"{_COCO}/val2014.zip",
    "COCO Consortium",
    6_645_013_297,
    "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
    "val2014",
    7_000_000_000,
)
# Five independent repositories on GitHub record this SHA-256, three of them with this size.
_SPLITS = Archive(
    "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
    "Andrej Karpathy, Stanford University",
    36_745_453,
    "4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
    "dataset_coco.json",
    144_186_139,
)
PUBLISHED = {
    "coco-karpathy": PublishedDataset(
        "123,287 images of COCO 2014 with captions, in Karpathy's split (113,287 train, 5,000 val, 5,000 test)",
        (_SPLITS, _TRAIN, _VAL),
        "The captions are licensed under Creative Commons Attribution 4.0. The images belong to users of Flickr, and "
        "their use must abide by Flickr's terms of use: https://cocodataset.org/#termsofuse. No licence of the split "
        "itself is known.",
        "Import it, over the embedded scenes with --replace:\n"
        "  diptych data import --karpathy {folder}/dataset_coco.json --images {folder}\n"
        "Then {folder} is no longer needed.",
    ),
    "flickr30k": PublishedDataset(
        "captions of Flickr30k's 31,014 images, five each, in Karpathy's split; without the images",
        (_SPLITS._replace(member="dataset_flickr30k.json", unpacked_bytes=38_318_553),),
        "The images belong to users of Flickr, whose terms of use apply; they are for non-commercial research and "
        "education only: https://github.com/BryanPlummer/flickr30k_entities. No licence of the split itself is known.",
        "The University of Illinois gives the images on request: https://forms.illinois.edu/sec/229675\n"
        "When you have them in a folder, here flickr30k-images, import them, over the embedded scenes with --replace:\n"
        "  diptych data import --karpathy {folder}/dataset_flickr30k.json --images flickr30k-images",
    ),
}

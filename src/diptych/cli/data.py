"""`diptych data`: the commands that change or show data/, the dataset version."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import click

from diptych.cli.console import print_result
from diptych.cli.download import download
from diptych.data import importing
from diptych.data.cores import worker_count
from diptych.data.growth import DEFAULT_RULES, OntoScenes, Rules
from diptych.data.images_folder import ImagesFolder
from diptych.data.importing import CocoSource, ImportSummary
from diptych.data.scenes.drawing import write_scenes
from diptych.errors import DiptychError, printable, some
from diptych.files import atomic_path, remove
from diptych.project.changing import changing, recover
from diptych.project.dataset import fetch_before_import, record_dataset
from diptych.project.dataset_status import dataset_status
from diptych.project.environment import enter
from diptych.project.growing import growing
from diptych.project.params import read_params
from diptych.project.processes import holding
from diptych.project.record import dataset_version
from diptych.project.workspace import Workspace
from diptych.registry import reverting

T = TypeVar("T")

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_SIZE = click.IntRange(min=1)


@click.group()
def data() -> None:
    """Import images and captions into data/, the dataset version."""


data.add_command(download)


@data.command()
@click.option("--train", default=3000, show_default=True, type=_SIZE, help="Pictures in train.")
@click.option("--val", default=500, show_default=True, type=_SIZE, help="Pictures in val.")
@click.option("--test", default=500, show_default=True, type=_SIZE, help="Pictures in test.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Another seed, other pictures.")
@click.option("--size", default=96, show_default=True, type=click.IntRange(min=32), help="Width and height in pixels.")
@click.option("--replace", is_flag=True, help="Replace a dataset other than scenes.")
def scenes(train: int, val: int, test: int, seed: int, size: int, replace: bool) -> None:
    """Draw the embedded synthetic dataset."""
    workspace = enter()
    with holding(workspace, "diptych data scenes"), changing(workspace):
        if not replace:
            fetch_before_import(workspace)
        before = dataset_version(workspace) if workspace.data.exists() else None
        write_scenes(workspace.data, train=train, val=val, test=test, seed=seed, size=size, replace=replace)
        record_dataset(workspace)
        same = before is not None and dataset_version(workspace) == before
    click.echo("data/ had exactly these scenes already." if same else f"{train + val + test:,} scenes are in data/.")


@data.command("import")
@click.option("--coco", multiple=True, type=_FILE, help="COCO captions JSON; may be repeated.")
@click.option("--karpathy", type=_FILE, help="Karpathy split JSON, such as dataset_coco.json.")
@click.option(
    "--table", type=_FILE, help="CSV or TSV with the columns file, caption (or several) and, optionally, split."
)
@click.option(
    "--webdataset",
    multiple=True,
    metavar="PATTERN",
    help="Tar archives of a webdataset, such as 'shards/{00000..00099}.tar'; @FILE reads their names from a file.",
)
@click.option("--hf", metavar="NAME|FOLDER", help="Dataset of the Hugging Face hub, or a folder in one of its forms.")
@click.option("--image-column", help="Column of --hf with the images; default: the first one of images.")
@click.option(
    "--caption-column", help="Column of --hf with the captions; default: caption, captions, text, sentences or txt."
)
@click.option("--split-column", help="Column of --hf with the splits; default: the splits of the dataset.")
@click.option(
    "--images",
    multiple=True,
    type=_FOLDER,
    help="Images folder of --coco, --karpathy or --table: one, or one for each --coco.",
)
@click.option(
    "--instances",
    multiple=True,
    type=_FILE,
    help="COCO instances JSON, the objects in the images: one, or one for each --coco.",
)
@click.option("--split", multiple=True, help="Split of all images of a file: one, or one for each --coco.")
@click.option("--deal", metavar="T/V/T", help="Deal images to train, val and test in these parts, such as 80/10/10.")
@click.option("--links-within", type=_FOLDER, help="Folder that links among the images may lead into.")
@click.option("--keep-split", is_flag=True, help="Keep images that are already in another split there.")
@click.option(
    "--replace", "onto_scenes", flag_value="replace", help="Replace scenes, or begin a dataset that is missing."
)
@click.option("--add", "onto_scenes", flag_value="add", help="Add to the generated scenes.")
def import_(deal: str | None, keep_split: bool, onto_scenes: str | None, **source: Any) -> None:
    """Add captioned images to data/; images that are there already are not stored twice.

    Give one of --coco, --karpathy, --table, --webdataset and --hf. Several --coco take their --images, --instances and
    --split in the same order.
    """
    options = _Options(**source)
    options.check()
    if deal and (options.split or options.split_column):
        raise click.UsageError("Either give the images their split, or have splits dealt.")
    workspace = enter()
    rules = Rules(_shares(deal), keep_split, cast(OntoScenes, onto_scenes or DEFAULT_RULES.onto_scenes))
    import_all, damaged = _import(workspace, options, rules)
    anew = onto_scenes == "replace"
    with holding(workspace, "diptych data import"), changing(workspace), growing(workspace, anew=anew) as record:
        summary = import_all()
        record()
    click.echo(_describe(summary))
    if options.webdataset:
        kept = [f"--split {name}" for name in options.split] + [f"--deal {deal}"] * bool(deal)
        _report(workspace, damaged, " ".join(kept + ["--keep-split"] * keep_split))


class _Options(NamedTuple):
    """Options that name the source of an import."""

    coco: tuple[Path, ...]
    karpathy: Path | None
    table: Path | None
    webdataset: tuple[str, ...]
    hf: str | None
    image_column: str | None
    caption_column: str | None
    split_column: str | None
    images: tuple[Path, ...]
    instances: tuple[Path, ...]
    split: tuple[str, ...]
    links_within: Path | None

    def check(self) -> None:
        """Raise a UsageError if options are missing, or do not belong together."""
        with_files = (self.coco, self.karpathy, self.table)
        if sum(map(bool, (*with_files, self.webdataset, self.hf))) != 1:
            raise click.UsageError("Give one of --coco, --karpathy, --table, --webdataset and --hf.")
        if bool(self.images) != any(with_files):
            raise click.UsageError("--coco, --karpathy and --table need --images; the other sources bring theirs.")
        if self.instances and not self.coco:
            raise click.UsageError("--instances belong to --coco.")
        if self.links_within and not self.images:
            raise click.UsageError("--links-within belongs to --images.")
        if (self.image_column or self.caption_column or self.split_column) and not self.hf:
            raise click.UsageError("--image-column, --caption-column and --split-column belong to --hf.")
        if self.split_column and self.split:
            raise click.UsageError("Give --split for all images, or --split-column.")
        if self.karpathy and self.split:
            raise click.UsageError("A Karpathy split brings its own splits; leave --split out.")

    def folder(self) -> ImagesFolder:
        """Return the only images folder."""
        return ImagesFolder(_only(self.images, "--images"), self.links_within)


def _import(
    workspace: Workspace, options: _Options, rules: Rules
) -> tuple[Callable[[], ImportSummary], list[tuple[Path, str]]]:
    """Return what imports the source, and the archives that cannot be read with the reasons."""
    data = workspace.data
    if options.coco:
        return partial(importing.import_coco, data, _coco_sources(options), rules), []
    if options.karpathy:
        return partial(importing.import_karpathy, data, options.karpathy, options.folder(), rules), []
    split = _only(options.split, "--split") if options.split else None
    if options.table:
        return partial(importing.import_table, data, options.table, options.folder(), split, rules), []
    if options.webdataset:
        return _import_webdataset(data, options.webdataset, split, rules)
    return partial(_import_hub, workspace, options, split, rules), []


def _import_webdataset(
    data: Path, patterns: tuple[str, ...], split: str | None, rules: Rules
) -> tuple[Callable[[], ImportSummary], list[tuple[Path, str]]]:
    from diptych.data.webdataset import webdataset_source

    found = webdataset_source(patterns, split, worker_count(None))
    return partial(importing.import_source, data, found.source, split, rules), found.damaged


def _import_hub(workspace: Workspace, options: _Options, split: str | None, rules: Rules) -> ImportSummary:
    from diptych.data.hub import Columns, hub_source

    assert options.hf is not None
    columns = Columns(options.image_column, options.caption_column, options.split_column)
    cache = workspace.local / "cache" / "importing"
    remove(cache)  # what a killed import left
    try:
        return importing.import_source(workspace.data, hub_source(options.hf, columns, split, cache), split, rules)
    finally:
        remove(cache)


def _report(workspace: Workspace, damaged: list[tuple[Path, str]], options: str) -> None:
    """Write the names of damaged archives into a file, and raise an error that says how to import them."""
    path = workspace.local / "import-failed.txt"
    path.unlink(missing_ok=True)
    if not damaged:
        return
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"".join(os.fsencode(archive) + b"\n" for archive, _ in damaged))
    command = f"diptych data import --webdataset @{os.path.relpath(path)} {options}".strip()
    reasons = some([printable(f"{archive} {reason}") for archive, reason in damaged])
    raise DiptychError(
        f"{len(damaged)} archive(s) could not be read, and the others are imported: {reasons}. Repair or fetch them, "
        f"then run `{command}`."
    )


@data.command()
@click.argument("version", required=False)
@click.option("--to", "commit", metavar="COMMIT", help="Go back to the dataset that this commit of git records.")
@click.option("--json", "as_json", is_flag=True, help="Print what changed as JSON.")
def revert(version: str | None, commit: str | None, as_json: bool) -> None:
    """Go back to the dataset that VERSION of the model was trained on, or that a commit records.

    VERSION is a number or an alias (champion, challenger, previous-champion). Results and the registry stay as they
    are; the next run trains on the dataset that is there then.
    """
    if (version is None) == (commit is None):
        raise click.UsageError("Give a VERSION or --to COMMIT.")
    workspace = enter()
    trained = None
    if version is not None:
        trained, commit = reverting.find_commit(workspace, read_params(workspace), version)
    assert commit is not None
    with holding(workspace, "diptych data revert"):
        recover(workspace)
        reverted = reverting.revert_dataset(workspace, commit)
    whose = f"which {trained.title} was trained on" if trained else f"which commit {reverted.commit[:10]} records"
    before = "as before" if reverted.before == reverted.after else f"no longer {(reverted.before or 'missing')[:12]}"
    text = f"data/ is version {reverted.after[:12]}, {whose} ({before}). Train on it with `diptych run`."
    print_result(reverted._asdict(), text, as_json)


@data.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def status(as_json: bool) -> None:
    """Show counts per split, shards, bytes and the version."""
    counts = dataset_status(enter())
    print_result(counts.to_json(), "\n".join(counts.render()), as_json)


def _coco_sources(options: _Options) -> list[CocoSource]:
    count = len(options.coco)
    none = [None] * count
    folders = _one_each(options.images, count, "--images")
    splits = _one_each(options.split, count, "--split") if options.split else none
    objects = _one_each(options.instances, count, "--instances") if options.instances else none
    files = [ImagesFolder(folder, options.links_within) for folder in folders]
    return [CocoSource(*source) for source in zip(options.coco, files, splits, objects, strict=True)]


def _one_each(values: tuple[T, ...], count: int, option: str) -> list[T]:
    """Return a value for each --coco: the one given for all, or those given."""
    if len(values) == 1:
        return list(values) * count
    if len(values) != count:
        raise click.UsageError(f"Give {option} once, or once for each of the {count} --coco, in their order.")
    return list(values)


def _only(values: tuple[T, ...], option: str) -> T:
    if len(values) != 1:
        raise click.UsageError(f"Give {option} once.")
    return values[0]


def _shares(deal: str | None) -> tuple[int, int, int] | None:
    """Return the parts of train, val and test; None where images are not dealt."""
    if deal is None:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})/(\d{1,6})", deal)
    if match is None or int(match[1]) == 0:
        raise click.BadParameter("three whole numbers are needed, the first above 0: 80/10/10", param_hint="--deal")
    return int(match[1]), int(match[2]), int(match[3])


def _describe(summary: ImportSummary) -> str:
    added = f"{summary.images_added:,} images and {summary.captions_added:,} captions added"
    known = f"{summary.images_known:,} images and {summary.captions_known:,} captions were there already"
    size = f"{summary.bytes / 1e6:,.1f} MB in {summary.shards} new shard(s)"
    objects = f"; {summary.objects_changed:,} images have new lists of objects" if summary.objects_changed else ""
    return f"{added} ({size}), {known}{objects}; {summary.seconds:.1f} s. Train on data/ with `diptych run`."

"""`diptych data download`: published datasets, whose licences and sizes are shown before anything is fetched."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from diptych.data.published import PUBLISHED, Archive, PublishedDataset, fetch, free_bytes, needed_bytes
from diptych.errors import DiptychError


@click.command()
@click.argument("name", type=click.Choice(list(PUBLISHED)))
@click.option("--to", "folder", type=click.Path(file_okay=False, path_type=Path), help="Default: downloads/NAME.")
@click.option("--yes", is_flag=True, help="Do not ask; needed where no terminal is attached.")
def download(name: str, folder: Path | None, yes: bool) -> None:
    """Download a published dataset, and say how to import it.

    Shows sizes, publishers and licence first, and asks. A download that was interrupted continues. Archives are checked
    by SHA-256, unpacked and then removed.
    """
    dataset, folder = PUBLISHED[name], folder or Path("downloads", name)
    archives = dataset.missing(folder)
    click.echo("\n".join(_describe(name, dataset, archives)))
    if archives:
        needed, free = needed_bytes(archives, folder), free_bytes(folder)
        click.echo(f"disk     {_size(needed)} needed for archives and files, {_size(free)} free in {folder}")
        if needed > free:
            raise DiptychError(f"{_size(needed - free)} more must be free for {folder}. Free them, or use --to.")
        _ask(yes)
        fetch(archives, folder)
    click.echo(dataset.next_steps.format(folder=shlex.quote(str(folder))))


def _describe(name: str, dataset: PublishedDataset, archives: list[Archive]) -> list[str]:
    lines = [f"{name}: {dataset.summary}"]
    for archive in dataset.archives:
        state = f"{_size(archive.bytes)}, from {archive.url}" if archive in archives else "is there already"
        lines.append(f"archive  {archive.name} of {archive.publisher} ({archive.member}): {state}")
    return [*lines, f"licence  {dataset.licence}"]


def _ask(yes: bool) -> None:
    """Ask for consent, and end the command with exit code 1 without it."""
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("No terminal is attached to ask on. If you accept the licence, add --yes.")
    if not yes and not click.confirm("Download?"):
        click.echo("Nothing was downloaded.")
        click.get_current_context().exit(1)


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"

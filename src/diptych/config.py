"""Every knob, typed: params.yaml read once into strict, frozen models.

An unknown key, a wrong type or an impossible combination is one error that names the key. What a knob does stands
below it, where its name does not tell.
"""

from __future__ import annotations

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


_RENAMED = {
    **{
        f"train.{tower}_{old}": f"train.{tower}.{new}"
        for tower in ("image_tower", "text_tower")
        for old, new in {
            "factor": "lr_multiplier",
            "frozen_epochs": "frozen_epochs",
            "top_layers": "top_layers",
        }.items()
    },
    "train.objectives.matching": "train.objectives.itm",
    "train.objectives.matching_share": "train.objectives.itm_share",
}
"""Keys of diptych 0.1, and their names since 0.2."""

_PASSWORD = re.compile(r"https?://[^/\s]*@|://[^/\s@]*:[^/\s]*@")


def _without_password(address: str) -> str:
    """params.yaml is recorded with every run, in MLflow and in git."""
    if _PASSWORD.search(address):
        raise ValueError(
            "no user and password in an address here: git has credential helpers, MLflow the environment variables "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or the whole address in MLFLOW_TRACKING_URI"
        )
    return address


Address = Annotated[str, AfterValidator(_without_password)]


class Section(BaseModel):
    """A part of params.yaml: refuses what it does not know, converts nothing silently, never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Splits(Section):
    """Which split of the dataset plays which role.

    A dataset of train and val alone has `test: val` for the report, and either `val: null`, so that what training
    chooses is chosen on images that are held out of train, or `val: val` too, where the figures need not be honest.
    """

    train: str = "train"
    val: str | None = "val"
    test: str = "test"
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Where val is null: the share of train that plays val. Which images these are is decided by the content of each,
    so they stay so when the dataset grows."""

    @model_validator(mode="after")
    def _train_apart(self) -> Splits:
        if self.train in (self.val, self.test):
            raise ValueError("train must be another split than val and test: splits never mix")
        return self

    def names(self) -> list[str]:
        """The splits of the dataset that play a role, each once."""
        return list(dict.fromkeys(name for name in (self.train, self.val, self.test) if name is not None))

    def is_held_out(self, sha256: str) -> bool:
        """Whether an image of train, by the SHA-256 of its file, plays val."""
        return self.val is None and int(sha256[:8], 16) < self.held_out * 2**32


class Data(Section):
    """What the dataset is read as."""

    splits: Splits = Splits()


class Validate(Section):
    """What a dataset must keep to; see docs/data.md."""

    min_side: Positive = 32
    """Pixels of the shorter side."""
    max_pixels: Positive = 100_000_000
    """Width × height; anything larger is refused by its header, before it is decoded."""
    max_aspect_ratio: Annotated[float, Field(ge=1)] = 5.0
    """Longer side over shorter side."""
    max_caption_characters: Positive = 1_000
    max_quarantined_share: Share = 0.02
    """Of images, and of captions: more bad rows than this stop the pipeline."""
    near_duplicate_distance: Annotated[int, Field(ge=0, le=63)] = 4
    """Bits that two 64-bit perceptual hashes may differ in to be reported as near-duplicates."""


class Preprocess(Section):
    """What the towers are fed with."""

    image_size: Annotated[int, Field(ge=32)] = 64
    """Pixels of both sides."""
    resize: Literal["stretch", "crop"] = "stretch"
    """stretch: both sides at once; crop: the shorter side, then the centre."""
    max_tokens: Annotated[int, Field(ge=4, le=512)] = 32
    """Of a caption, with its first and last token; longer ones are cut."""
    vocabulary_size: Annotated[int, Field(ge=100)] = 2_000
    """Of the WordPiece vocabulary learned from the train captions, when the text tower starts from scratch."""


class Tower(Section):
    """Where a tower comes from: a hub id with its revision, a local folder, or `config` from scratch."""

    pretrained: str | None = None
    revision: str | None = None
    """Commit of the hub repository, all 40 digits."""
    config: dict[str, Any] = {}
    """Fields of the transformers configuration of a tower from scratch."""
    pooling: Pooling = "mean"
    """How the vectors of the tokens become one; generalized: in a way that is learned (GPO)."""
    channel_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the backbone's channels that are left out, of all tokens of an image or caption, at random, where the
    projection learns from them."""
    dropout: bool = True
    """Whether the backbone, while it learns, drops out what its transformers configuration says."""

    @property
    def is_folder(self) -> bool:
        """Whether `pretrained` is a local folder; a hub id has neither a leading dot nor a leading slash."""
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
    """Of a tower from scratch, in RGB of 0..1; a pretrained tower brings its own (preprocessor_config.json)."""


class TextTower(Tower):
    """A BERT-family encoder."""

    layers: Positive = 1
    """How many of its last layers are mixed, by learned weights."""


class Fusion(Section):
    """Cross-attention between text tokens and grid tokens."""

    direction: Literal["both", "text_to_image", "image_to_text"] = "both"
    """Who looks at whom: the text at the image, the image at the text, or each at the other."""
    layers: Positive = 2
    """Of cross-attention, one after the other."""
    heads: Positive = 4
    """Of attention in each layer; they divide `dim`."""
    attention: bool = True
    """False: the control, an MLP of as many weights that sees each side's mean and nothing of its parts."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Behind attention and feed-forward layers, and in the joint vector's MLP."""


class Model(Section):
    """The dual encoder."""

    dim: Positive = 128
    """Of the shared space, of the fusion and of the joint vector."""
    image_tower: ImageTower = ImageTower()
    text_tower: TextTower = TextTower()
    fusion: Fusion = Fusion()

    @model_validator(mode="after")
    def _heads_divide(self) -> Model:
        if self.dim % self.fusion.heads:
            raise ValueError(f"fusion.heads ({self.fusion.heads}) must divide dim ({self.dim})")
        return self


class Objectives(Section):
    """Weights of the losses; 0 leaves one out."""

    contrastive: Annotated[float, Field(gt=0)] = 1.0
    """InfoNCE between images and captions."""
    itm: Annotated[float, Field(ge=0)] = 1.0
    """Weight of image-text matching, which alone trains the fusion: its ITM logit and its token alignment."""
    itm_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of a batch's images whose pairs the ITM logit is trained on; token alignment is trained on all."""
    simclr_image: Annotated[float, Field(ge=0)] = 0.0
    """NT-Xent between an image and a random view of it, which `train.views` describes."""
    simclr_text: Annotated[float, Field(ge=0)] = 0.0
    """NT-Xent between a caption and itself under other dropout."""
    simclr_temperature: Annotated[float, Field(gt=0)] = 0.1
    """Of both NT-Xent losses; it is not learned."""


class Augmentation(Section):
    """Random views of an image; the defaults are SimCLR's (Chen et al. 2020, appendix A).

    A milder one for training images: crop_scale 0.6, flip 0.5, and 0 for the rest.
    """

    crop_scale: Annotated[float, Field(gt=0, le=1)] = 0.08
    """Smallest share of its area that a random crop keeps; 1: no crop."""
    flip: Share = 0.5
    """Probability of the mirror image; captions that say left or right do not fit it."""
    jitter: Share = 1.0
    """Strength of the changes of brightness, contrast, saturation and hue, in random order; 0: none."""
    grayscale: Share = 0.2
    """Probability of a view without colours."""
    blur: Share = 0.5
    """Probability of a Gaussian blur."""

    @property
    def only_mirrors(self) -> bool:
        """Whether an image has but two views, itself and its mirror image."""
        return self.crop_scale == 1 and not (self.jitter or self.grayscale or self.blur)


class TowerTraining(Section):
    """How the weights of a tower's backbone are trained."""

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
        """Whether the backbone is frozen in the first epoch."""
        return not self.lr_multiplier or self.frozen_epochs > 0

    @property
    def has_frozen_layers(self) -> bool:
        """Whether some layers of the backbone are frozen, in the first epoch or for good."""
        return self.is_frozen_at_first or self.top_layers is not None


class Train(Section):
    """The training loop."""

    epochs: Positive = 10
    fusion_epochs: Positive | None = None
    """Epochs after these in which the fusion learns, and it alone, to read the towers at their best; null: it learns
    with them, and they by it."""
    batch_size: Annotated[int, Field(ge=2)] = 32
    """Distinct images a step, over all processes."""
    captions_per_image: Positive = 5
    """Captions an image brings to a batch at the most; which ones is drawn anew every epoch."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    """The highest, of AdamW, for all that is not a tower's own."""
    image_tower: TowerTraining = TowerTraining()
    text_tower: TowerTraining = TowerTraining()
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Of matrices and kernels; biases, norms and other vectors have none."""
    warmup: Share = 0.1
    """Share of the steps in which the learning rate rises: of all, or up to a tower's release, after it, and of those
    of fusion_epochs."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Of all gradients together."""
    temperature: Annotated[float, Field(ge=0.01, le=1)] = 0.07
    """Where the learnable temperature starts; it never falls below 0.01."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "no"
    """Of matrix products and convolutions; auto: bf16 where the device has units for it, else no."""
    compile: Literal["auto", "always", "never"] = "auto"
    """torch.compile of the towers; auto: on CUDA, in long trainings."""
    chunk_size: Positive | None = None
    """Images that the towers encode at once, while gradient caching gives the gradients of the whole batch; null: a
    process's whole share, or what fits where the memory of a GPU runs out."""
    keep_features: Literal["auto", "always", "never"] = "auto"
    """Compute the features of a frozen tower, or of the layers below those that learn, once and keep them across runs;
    auto: where there are any and the input is not augmented, or only mirrored."""
    features_gib: Annotated[float, Field(gt=0)] = 50.0
    """What .diptych/cache/features may hold."""
    augmentation: Augmentation | None = None
    """Of the training images; null: they are as prepared."""
    views: Augmentation = Augmentation()
    """For objectives.simclr_image."""
    launch: list[Annotated[str, Field(min_length=1)]] = []
    """Command that starts the processes of the training, such as [torchrun, --standalone, --nproc-per-node=8]."""
    patience: Positive | None = None
    """Epochs without better ranks on val after which training stops, but for fusion_epochs; null: never."""
    checkpoint_every: Positive = 100
    """Steps between two checkpoints; there is one after each epoch anyway."""
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
        """With those of the fusion, which come last."""
        return self.epochs + (self.fusion_epochs or 0)

    @model_validator(mode="after")
    def _features_can_be_kept(self) -> Train:
        image_stays, text_stays = self.image_tower.has_frozen_layers, self.text_tower.has_frozen_layers
        if self.keep_features == "always" and not (image_stays or text_stays or self.fusion_epochs):
            raise ValueError(
                "keep_features is always, but no tower is frozen: what learns has other features in each step"
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
        """Whether the image tower sees more than the images as prepared and their mirror images."""
        augments = self.augmentation is not None and not self.augmentation.only_mirrors
        return augments or self.objectives.simclr_image > 0


class Evaluate(Section):
    """Retrieval evaluation on the test split."""

    top_k: Positive = 32
    """How many candidates a query has re-ranked by the fusion."""
    batch_size: Positive = 128
    report_queries: Positive = 8
    """Queries of each direction shown in the report."""


class Register(Section):
    """Where runs and versions are kept; the environment variable MLFLOW_TRACKING_URI goes first."""

    tracking_uri: Address | None = None
    """null: the workspace's own store, .diptych/mlflow.db."""
    experiment: Annotated[str, Field(min_length=1)] = "diptych"
    model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = "diptych"


class Gate(Section):
    """What a challenger has to show before it becomes champion; both are measured on the same test split."""

    rsum_margin: Annotated[float, Field(ge=0)] = 10.0
    """RSUM that it may be worse by: the lower end of the interval of its gain must not be below minus this."""
    slice_margin: Annotated[float, Field(ge=0, le=100)] = 10.0
    """Recall@10 in percent that it may lose in a part of the queries; refused is a loss that is surely greater."""
    guarded: list[str] | None = None
    """Names of the attributes by which the queries are parted for this; null: all that the report has."""
    better_than_chance: bool = True
    """Whether even the lower end of the interval of its RSUM must be above that of chance."""
    floors: dict[Floor, Annotated[float, Field(ge=0)]] = {}
    """Figures that a champion must at least have."""
    latency_ms: Annotated[float, Field(gt=0)] = 2000.0
    """For one pair, once it is loaded."""


class Retrain(Section):
    """When a scheduled run has a reason to train."""

    inbox: Annotated[str, Field(min_length=1)] | None = None
    """A folder, or s3://bucket/prefix, into which new pairs are dropped; null: none is looked at."""
    new_share: Share = 0.0
    """New images that are a reason to train, as a share of those that the champion was trained on; 0: any."""
    drift: Share = 0.2
    """How far the distribution of incoming pairs may be from that of the champion's (the largest distance between
    cumulative shares) before it is drift, which is a reason to train."""
    git_remote: Address | None = None
    """Where the branch that records the runs is pushed to; null: it stays here."""


Baseline = Literal["prior", "image_only", "words_bm25", "words_text_tower", "ridge", "cca", "linear_heads", "mlp_heads"]
Control = Literal["shuffled_images", "mlp_fusion"]


class Baselines(Section):
    """What the model is compared with on the same test split."""

    methods: list[Baseline] = list(get_args(Baseline))
    """Single modalities, and frozen towers joined in closed form or by learned heads; []: none."""
    controls: list[Control] = list(get_args(Control))
    """Of the fusion: shown another image than the pair's, or an MLP of as many weights in its place; []: none."""


class Params(Section):
    """All of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of all that is drawn: first weights, batches, captions, views, dropout, negatives, the querybank."""
    threads: Positive | None = None
    """Processes and CPU threads to use; null: one a core. The bits of a CPU run depend on it."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: a GPU where there is one."""
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
                f"preprocess.max_tokens ({self.preprocess.max_tokens}) is more than the places that the text tower has "
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
    """Reads params.yaml.

    Raises:
        DiptychError: the file is missing or not YAML, or a key is unknown, repeated, of the wrong type or
            out of range; the message names each such key.
    """
    try:
        # DVC reads the file by the same parser. It refuses repeated keys.
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DiptychError(f"{path} is missing; copy one of presets/ there.") from None
    except OSError as error:
        raise DiptychError(f"{path} cannot be read: {error.strerror}.") from None
    # The parser lets errors of Python through: of an impossible date, number, key or depth.
    except (YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DiptychError(f"{path} is not valid YAML: {error}") from None
    if content is not None and not isinstance(content, dict):
        raise DiptychError(f"{path} must hold keys and values, not {type(content).__name__}.")
    content = content or {}
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(problem)}" for problem in error.errors())
        raise DiptychError(f"{path} is not a valid configuration:\n{problems}") from None
    _require_sections(path, content)
    return params


def _require_sections(path: Path, content: dict[str, Any]) -> None:
    """DVC records the sections that a stage depends on, so all of them stand in the file, if only as `{}`."""
    names = [info.alias or name for name, info in Params.model_fields.items()]
    if missing := [name for name in names if name not in content]:
        raise DiptychError(f"{path} lacks {', '.join(missing)}; every preset in presets/ has them.")


def _explain(problem: Any) -> str:
    """One line of a pydantic error in the words of someone who edits params.yaml."""
    key = ".".join(str(part) for part in problem["loc"]) or "(whole file)"
    if problem["type"] == "extra_forbidden":
        return f"{key}: renamed, write {_RENAMED[key]}" if key in _RENAMED else f"{key}: unknown key"
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

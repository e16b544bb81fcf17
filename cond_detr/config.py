"""Settings: frozen dataclasses, and the presets as a table. Modules take the fields they need, never a whole config."""

import sys
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from cond_detr.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class ModelConfig:
    """Architecture; the defaults are Conditional DETR with ResNet-50.

    Attributes:
        kind: "conditional-detr", or "detr" as its baseline, where content and position are added.
        backbone: a name in :data:`cond_detr.models.resnet.LAYOUTS`.
        dilation: dilate the backbone's last stage (DC5).
        d_model: width of the transformer.
        num_heads: attention heads.
        encoder_layers, decoder_layers: depth.
        ffn_dim: width of the feed-forward networks.
        dropout: in the transformer, attention weights included.
        num_queries: object queries, the most objects that can be found in an image.
        reference_point: of each object query: "predicted" from it, "learned" as a parameter, or fixed at the "origin",
            the centre of the image (section 4.3).
        offset_regression: box centres are predicted as offsets from the reference points (Table 4).
        spatial_query: how it is formed (Table 3), see :class:`cond_detr.models.spatial_query.SpatialQuery`.
        projection: form of the transformation in it (Figure 5), likewise.
        fused_attn: cross-attention by :func:`cond_detr_kernels.conditional_attention`.
    """

    kind: Literal["conditional-detr", "detr"] = "conditional-detr"
    backbone: str = "resnet50"
    dilation: bool = False
    d_model: int = 256
    num_heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    ffn_dim: int = 2048
    dropout: float = 0.1
    num_queries: int = 300
    reference_point: Literal["predicted", "learned", "origin"] = "predicted"
    offset_regression: bool = True
    spatial_query: Literal["csq", "csq-t", "csq-p", "csq-c", "csq-i"] = "csq"
    projection: Literal["identity", "scalar", "diagonal", "block", "full"] = "diagonal"
    fused_attn: bool = False


@dataclass(frozen=True)
class LossConfig:
    """Weights of the matching cost and of the losses, which are the same, and the classification loss (section 3.4).

    Attributes:
        classification: "focal", a score for each class on its own, or "softmax" over the classes and one for no object,
            as in DETR.
        class_weight, l1_weight, giou_weight: of the parts.
        focal_alpha, focal_gamma: of the focal loss.
        no_object_weight: of queries without an object in the softmax loss.
        matcher: computes the assignment: "native", or "scipy" as the reference.
    """

    classification: Literal["focal", "softmax"] = "focal"

    class_weight: float = 2.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    no_object_weight: float = 0.1
    matcher: Literal["native", "scipy"] = "native"


@dataclass(frozen=True)
class DataConfig:
    """Data set and image sizes.

    Attributes:
        dataset_dir: folder of the data set, None for the built-in shapes.
        image_size: short side in pixels for evaluation, and the largest in training.
        max_size: longest side in pixels.
        min_scale: least short side in training as a fraction of ``image_size``, for augment "paper".
        augment: "paper" (flip, random scale, random crop), "flip" or "none".
        size_step: with more than 0, training batches are made of images of like size and padded to multiples of that
            many pixels, so that little is padded and few shapes occur; with 0, of any images.
    """

    dataset_dir: str | None = None
    image_size: int = 800
    max_size: int = 1333
    min_scale: float = 0.6
    augment: Literal["paper", "flip", "none"] = "paper"
    size_step: int = 0


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per process and backward pass.
        accumulate: backward passes per optimiser step.
        eval_batch_size: images at once in evaluation; 1 where padding changes results (DC5).
        lr: learning rate of the transformer.
        backbone_lr: learning rate of the backbone.
        schedule: "step" divides the rates by ten after ``lr_drop`` of the epochs; "one-cycle" warms up over a tenth of
            the steps and falls to zero along a cosine.
        lr_drop: fraction of the epochs before the drop.
        weight_decay: AdamW's, on every parameter.
        clip_norm: largest norm of the gradient.
        amp: "bf16" for autocast, "off" for fp32.
        matmul_precision: of fp32 products on CUDA: "high" for TF32, "highest" for fp32. Prediction follows it too.
        compile: the network goes through torch.compile.
        cuda_graphs: capture the step, where that is possible (:mod:`cond_detr.cuda_graphs`).
        ema: decay per step of a moving average of the weights, which is then evaluated and saved; 0 for none.
        seed: seed of everything random.
        deterministic: only deterministic algorithms.
    """

    epochs: int = 50
    batch_size: int = 2
    accumulate: int = 1
    eval_batch_size: int = 2
    lr: float = 1e-4
    backbone_lr: float = 1e-5
    schedule: Literal["step", "one-cycle"] = "step"
    lr_drop: float = 0.8
    weight_decay: float = 1e-4
    clip_norm: float = 0.1
    amp: Literal["off", "bf16"] = "off"
    matmul_precision: Literal["high", "highest"] = "high"
    compile: bool = False
    cuda_graphs: bool = False
    ema: float = 0.0
    seed: int = 0
    deterministic: bool = False


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's result. ``preset`` names the table entry it started from."""

    preset: str = "r50"
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


_PAPER = Config()
_DC5_TRAIN = replace(_PAPER.train, batch_size=1, eval_batch_size=1)

# small enough to learn in minutes on two CPU cores; 64 image tokens, 256 dilated
_SHAPES = Config(
    model=ModelConfig(
        backbone="resnet6",
        d_model=96,
        encoder_layers=1,
        decoder_layers=3,
        ffn_dim=256,
        dropout=0.0,
        num_queries=25,
    ),
    data=DataConfig(image_size=64, max_size=64, augment="flip"),
    train=TrainConfig(epochs=15, batch_size=16, eval_batch_size=100, lr=1e-3, backbone_lr=1e-3, schedule="one-cycle"),
)

PRESETS: dict[str, Config] = {
    "shapes": _SHAPES,
    "dc5-shapes": replace(_SHAPES, model=replace(_SHAPES.model, dilation=True)),
    # a few hundred real images, from scratch. Features of stride 8, or small objects are a position or less; and no
    # encoder, whose attention would take half of the time and brought nothing on 768 positions
    "small": Config(
        model=ModelConfig(
            backbone="resnet8",
            dilation=True,
            d_model=96,
            encoder_layers=0,
            decoder_layers=3,
            ffn_dim=256,
            dropout=0.0,
            num_queries=60,
        ),
        data=DataConfig(image_size=192, max_size=320, min_scale=0.8),
        train=TrainConfig(epochs=80, batch_size=4, eval_batch_size=4, lr=7e-4, backbone_lr=7e-4, schedule="one-cycle"),
    ),
    "r50": _PAPER,
    "r101": replace(_PAPER, model=ModelConfig(backbone="resnet101")),
    "dc5-r50": replace(_PAPER, model=ModelConfig(dilation=True), train=_DC5_TRAIN),
    "dc5-r101": replace(_PAPER, model=ModelConfig(backbone="resnet101", dilation=True), train=_DC5_TRAIN),
}
PRESETS = {name: replace(config, preset=name) for name, config in PRESETS.items()}


def preset(name: str) -> Config:
    """The preset of that name.

    Raises:
        InputError: there is none.
    """
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def as_detr(config: Config) -> Config:
    """The baseline at the sizes of a preset: plain DETR with its softmax loss, and 100 object queries at most."""
    model = replace(
        config.model,
        kind="detr",
        reference_point="origin",
        offset_regression=False,
        num_queries=min(100, config.model.num_queries),
    )
    return replace(config, model=model, loss=replace(config.loss, classification="softmax", class_weight=1.0))


def change(section: T, values: dict[str, Any]) -> T:
    """A section with other values.

    Raises:
        InputError: a value is not one that its setting can have.
    """
    types = get_type_hints(type(section))
    checked = {name: check_value(name, value, types[name]) for name, value in values.items()}
    return replace(section, **checked)  # type: ignore[type-var]


# Settings of which there must be one at least, and fractions of a whole that must leave something
_COUNTS = {"d_model", "num_heads", "decoder_layers", "ffn_dim", "num_queries", "image_size", "max_size"}
_COUNTS |= {"epochs", "batch_size", "accumulate", "eval_batch_size"}
_FRACTIONS = {"dropout", "ema"}
# What nobody has: images of more pixels a side, and numbers that a double cannot hold
_MOST_PIXELS = 2**15
_PIXELS = {"image_size", "max_size", "size_step"}


def check_value(name: str, value: Any, kind: Any) -> Any:
    """The value as a setting of that type has it, or raises the sentence for one that it cannot have."""
    if get_origin(kind) is Literal:
        fits, wanted = value in get_args(kind), f"one of {', '.join(get_args(kind))}"
    elif kind is bool:
        fits, wanted = isinstance(value, bool), "True or False"
    elif kind in (int, float):
        number = (int, np.integer) if kind is int else (int, float, np.number)
        least, limit = int(name in _COUNTS), 2**63 if kind is int else sys.float_info.max
        if name in _FRACTIONS:
            limit = 1
        if name in _PIXELS:
            limit = _MOST_PIXELS
        fits = isinstance(value, number) and not isinstance(value, bool) and bool(least <= value < limit)
        bounded = f" and below {limit}" if limit <= _MOST_PIXELS else ""
        wanted = f"a {'whole ' * (kind is int)}number of at least {least}{bounded}"
    else:
        fits, wanted = isinstance(value, kind), "text"  # or None, where there is no data set
    if not fits:
        raise InputError(f"{name} must be {wanted}, got {value!r}")
    return kind(value) if kind in (int, float) else value


def choices(section: type, name: str) -> tuple[str, ...]:
    """The values that a setting may have."""
    values: tuple[str, ...] = get_args(get_type_hints(section)[name])
    return values


def to_dict(config: Config) -> dict[str, Any]:
    """Nested dictionaries that JSON can hold."""
    return asdict(config)


def from_dict(values: dict[str, Any], kind: type[T] = Config) -> T:  # type: ignore[assignment]
    """The inverse of :func:`to_dict`.

    Raises:
        InputError: a setting is not known to this version, or has a value that it cannot have.
    """
    if not isinstance(values, dict):
        raise InputError(f"{kind.__name__} must be settings by name, got {values!r}")
    types = get_type_hints(kind)
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise InputError(
            f"unknown settings for {kind.__name__}: {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    return kind(
        **{
            name: from_dict(value, types[name]) if is_dataclass(types[name]) else check_value(name, value, types[name])
            for name, value in values.items()
        }
    )

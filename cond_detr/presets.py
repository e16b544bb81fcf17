"""Presets: the settings of the paper's architectures (Table 1) and of small ones."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cond_detr.config import Config, DataConfig, LossConfig, ModelConfig, TrainConfig, configure
from cond_detr.errors import InputError, shown

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
    # with what has helped since the paper and costs nothing: docs/paper.md
    "shapes": replace(_SHAPES, loss=LossConfig(classification="mal"), train=replace(_SHAPES.train, ema=0.99)),
    # on which the paper's claims are checked, with the paper's loss
    "dc5-shapes": replace(_SHAPES, model=replace(_SHAPES.model, dilation=True)),
    # a few hundred real images, from scratch. Features of stride 8, or small objects are a position or less; and no
    # encoder, whose attention would take half of the time and brought nothing on 768 positions. Flips and colours: with
    # scales and crops it takes nearly twice the epochs; small changes of scale keep it from overfitting. Query groups
    # take half as long again for an epoch, of which they save more than that (docs/paper.md)
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
        loss=LossConfig(classification="mal"),
        data=DataConfig(image_size=192, max_size=320, augment="flip", colour=0.2, zoom=0.1),
        train=TrainConfig(
            epochs=80,
            batch_size=4,
            eval_batch_size=4,
            lr=7e-4,
            backbone_lr=7e-4,
            schedule="one-cycle",
            ema=0.998,
            query_groups=3,
        ),
    ),
    "r50": _PAPER,
    "r101": replace(_PAPER, model=ModelConfig(backbone="resnet101")),
    "dc5-r50": replace(_PAPER, model=ModelConfig(dilation=True), train=_DC5_TRAIN),
    "dc5-r101": replace(_PAPER, model=ModelConfig(backbone="resnet101", dilation=True), train=_DC5_TRAIN),
}
PRESETS = {name: replace(config, preset=name) for name, config in PRESETS.items()}


def preset(name: str) -> Config:
    """Returns the settings of a preset.

    Raises:
        InputError: if there is no preset of that name.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise InputError(f"unknown preset {shown(name)}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def as_detr(config: Config) -> Config:
    """Turns settings into those of the baseline, plain DETR: softmax loss, no offsets, at most 100 object queries."""
    model = replace(
        config.model,
        kind="detr",
        reference_point="origin",
        offset_regression=False,
        num_queries=min(100, config.model.num_queries),
    )
    return replace(config, model=model, loss=replace(config.loss, classification="softmax", class_weight=1.0))


def configured(name: str, values: Mapping[str, Any]) -> Config:
    """Returns a preset with some settings changed.

    Args:
        name: name of the preset.
        values: the new values by name of the setting; ``kind="detr"`` starts from the preset's DETR baseline.

    Raises:
        InputError: if the preset or a setting does not exist, or a setting cannot have its value.
    """
    base = preset(name)
    return configure(as_detr(base) if values.get("kind") == "detr" else base, values)

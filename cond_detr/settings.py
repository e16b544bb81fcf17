"""The settings that commands and Python calls know by one name each."""

from dataclasses import replace
from typing import Any

from cond_detr.config import Config, change, check_value
from cond_detr.errors import InputError

# Option: the section and the field of the configuration that it sets. What is left out keeps the preset's value.
SETTINGS = {
    "model": ("model", "kind"),
    "reference_point": ("model", "reference_point"),
    "offset_regression": ("model", "offset_regression"),
    "spatial_query": ("model", "spatial_query"),
    "projection": ("model", "projection"),
    "encoder_layers": ("model", "encoder_layers"),
    "decoder_layers": ("model", "decoder_layers"),
    "classification": ("loss", "classification"),
    "fused_attn": ("model", "fused_attn"),
    "num_queries": ("model", "num_queries"),
    "dropout": ("model", "dropout"),
    "matcher": ("loss", "matcher"),
    "dataset_dir": ("data", "dataset_dir"),
    "size_step": ("data", "size_step"),
    "epochs": ("train", "epochs"),
    "batch_size": ("train", "batch_size"),
    "accumulate": ("train", "accumulate"),
    "eval_batch_size": ("train", "eval_batch_size"),
    "lr": ("train", "lr"),
    "backbone_lr": ("train", "backbone_lr"),
    "schedule": ("train", "schedule"),
    "amp": ("train", "amp"),
    "matmul_precision": ("train", "matmul_precision"),
    "compile": ("train", "compile"),
    "cuda_graphs": ("train", "cuda_graphs"),
    "ema": ("train", "ema"),
    "seed": ("train", "seed"),
    "deterministic": ("train", "deterministic"),
}
# Those that other fields follow from
DERIVED = ("image_size", "lr_drop")
# Pixels: COCO's images then come in some tens of padded sizes
GRAPH_SIZE_STEP = 128


def configure(options: dict[str, Any], base: Config) -> Config:
    """The settings of ``base`` with what the options say instead; options that are no settings are left to others.

    Raises:
        InputError: a value is not one that the setting can have.
    """
    if "dataset_dir" in options:
        options = {**options, "dataset_dir": str(options["dataset_dir"])}
    sections: dict[str, dict[str, Any]] = {"model": {}, "loss": {}, "data": {}, "train": {}}
    for option, (section, name) in SETTINGS.items():
        if option in options:
            sections[section][name] = options[option]
    for name in DERIVED:
        if name in options:
            check_value(name, options[name], int)
    if "image_size" in options:
        size = options["image_size"]
        sections["data"] |= {"image_size": size, "max_size": round(size * base.data.max_size / base.data.image_size)}
    if sections["train"].get("cuda_graphs"):
        sections["data"].setdefault("size_step", base.data.size_step or GRAPH_SIZE_STEP)
    if "lr_drop" in options:
        sections["train"]["lr_drop"] = options["lr_drop"] / options.get("epochs", base.train.epochs)
    changed: dict[str, Any] = {name: change(getattr(base, name), values) for name, values in sections.items()}
    return replace(base, **changed)


def known(options: dict[str, Any], names: set[str]) -> None:
    """Raises the sentence for an option that is not among the names."""
    unknown = sorted(options.keys() - names)
    if unknown:
        raise InputError(f"unknown setting {unknown[0]!r}; there are {', '.join(sorted(names))}")

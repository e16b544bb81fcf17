"""Weights of other implementations as checkpoints of ours: what their files do not say is told by the tensors."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cond_detr.checkpoints import Checkpoint, fetch, is_checkpoint, read, weights_in
from cond_detr.classes import UNUSED, Classes
from cond_detr.config import Config, as_detr, preset
from cond_detr.errors import InputError
from cond_detr.models import build
from cond_detr.models.resnet import LAYOUTS
from cond_detr.naming import StateDict

# Dilated models have the same tensors; whoever has one says so
PRESETS = ("r50", "r101")


def open_checkpoint(source: str, *, preset_name: str | None = None, classes: Classes | None = None) -> Checkpoint:
    """A checkpoint of ours, or a whole detector of the authors', of DETR's repository or of the transformers package.

    Args:
        source: path or URL.
        preset_name: architecture of another's detector; by default the one of r50 and r101 that fits.
        classes: of another's detector; by default those of the config.json beside it, COCO's if there are 91 outputs,
            or numbers.

    Raises:
        InputError: the file is missing, damaged, or no whole detector.
    """
    path = fetch(source)
    content = read(path)
    if is_checkpoint(content):
        return Checkpoint.parse(path, content)
    state = weights_in(content)
    if not {"query_embed.weight", "class_head.weight"} <= state.keys():
        raise InputError(f"{source} is no checkpoint of a detector: it has no object queries or no class scores")
    presets = (preset_name,) if preset_name else PRESETS
    found = [(config, differences(config, state)) for config in candidates(presets, state)]
    config, wrong = min(found, key=lambda pair: len(pair[1]))
    if wrong:
        raise InputError(
            f"{source} has the architecture of none of {', '.join(presets)}: {len(wrong)} tensors differ from the most "
            f"similar, such as {wrong[0]}"
        )
    outputs = len(state["class_head.weight"]) - int(config.loss.classification == "softmax")
    classes = classes or classes_beside(path) or (Classes.coco() if outputs == 91 else Classes.numbered(outputs))
    if len(classes) != outputs:
        raise InputError(f"{source} tells {outputs} classes apart, and {len(classes)} were given")
    return Checkpoint(path, config, classes, {name: t for name, t in state.items() if not is_counter(name, config)})


def is_counter(name: str, config: Config) -> bool:
    """Whether it is a count of steps that batch norm keeps, and frozen batch norm has no use for."""
    return name.endswith(".num_batches_tracked") and LAYOUTS[config.model.backbone].pretrained


def candidates(presets: tuple[str, ...], state: StateDict) -> Iterator[Config]:
    """Conditional DETR and DETR of each preset, with as many queries as the weights have."""
    for name in presets:
        for config in (preset(name), as_detr(preset(name))):
            yield replace(config, model=replace(config.model, num_queries=len(state["query_embed.weight"])))


def differences(config: Config, state: StateDict) -> list[str]:
    """Names of the tensors that a model of these settings lacks, or has in another shape, or the weights lack."""
    outputs = len(state["class_head.weight"]) - int(config.loss.classification == "softmax")
    with torch.device("meta"):
        own = build(config, Classes.numbered(max(1, outputs))).state_dict()

    def shape(tensors: dict[str, Tensor], name: str) -> torch.Size | None:
        return tensors[name].shape if name in tensors else None

    names = {name for name in own.keys() | state.keys() if not is_counter(name, config)}
    return sorted(name for name in names if shape(own, name) != shape(state, name))


def classes_beside(path: Path) -> Classes | None:
    """The names in a config.json as the transformers package writes it, if there is one; numbered from 0."""
    file = path.with_name("config.json")
    try:
        by_id = json.loads(file.read_text(encoding="utf-8"))["id2label"]
        names = [str(by_id[str(i)]) for i in range(len(by_id))]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    unnamed = all(name == f"LABEL_{i}" for i, name in enumerate(names))
    if unnamed or len(set(names) - {UNUSED}) != len(names) - names.count(UNUSED):
        return None
    return Classes(tuple(names), tuple(range(len(names))))

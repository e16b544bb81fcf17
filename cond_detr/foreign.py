"""Weights of other implementations as checkpoints of ours: what their files do not say is told by the tensors."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cond_detr.checkpoints import Checkpoint, is_checkpoint, weights_in
from cond_detr.classes import UNUSED, Classes
from cond_detr.config import Config, as_detr, preset
from cond_detr.errors import InputError
from cond_detr.models import build
from cond_detr.models.resnet import LAYOUTS
from cond_detr.naming import StateDict
from cond_detr.reading import checked_state, open_source

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
    path, content = open_source(source)
    if is_checkpoint(content):
        if preset_name or classes:
            raise InputError(f"{source} says itself what architecture and what classes it has; leave those out")
        return Checkpoint.parse(path, content)
    state = weights_in(content)
    needed = [state.get("query_embed.weight"), state.get("class_head.weight")]
    if not all(tensor is not None and tensor.dim() == 2 and tensor.numel() for tensor in needed):
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
    beside = None if classes else classes_beside(path)
    classes = classes or beside or (Classes.coco() if outputs == 91 else Classes.numbered(outputs))
    if len(classes) != outputs:
        where = "given" if beside is None else f"in {path.with_name('config.json')}"
        raise InputError(f"{source} tells {outputs} classes apart, and {len(classes)} are {where}")
    try:
        state = checked_state({name: tensor for name, tensor in state.items() if not is_counter(name, config)})
    except InputError as error:
        raise InputError(f"{source} cannot be used: {error}") from None
    return Checkpoint(path, config, classes, state)


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
    """The names in a config.json as the transformers package writes it, if there is one; numbered from 0.

    Raises:
        InputError: there are names, but not one for each number.
    """
    file = path.with_name("config.json")
    try:
        by_id = json.loads(file.read_text(encoding="utf-8"))["id2label"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    try:
        names = tuple(by_id[str(i)] for i in range(len(by_id)))
        if len(set(names) - {UNUSED}) != len(names) - names.count(UNUSED):
            raise InputError("a name stands there twice")
        unnamed = all(name == f"LABEL_{i}" for i, name in enumerate(names))
        return None if unnamed else Classes(names, tuple(range(len(names))))
    except (KeyError, TypeError, InputError) as error:
        raise InputError(f"{file}: id2label must name the numbers from 0 on, each with another text: {error}") from None

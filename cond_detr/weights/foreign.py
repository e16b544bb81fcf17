"""Checkpoints of other implementations. Their architecture is inferred from the tensors."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cond_detr.classes import MOST_CLASSES, UNUSED, Classes
from cond_detr.config import Config
from cond_detr.errors import InputError, shown
from cond_detr.models.model import new_network
from cond_detr.models.resnet import LAYOUTS
from cond_detr.paths import is_file
from cond_detr.presets import as_detr, preset
from cond_detr.weights.buildable import check_buildable
from cond_detr.weights.checkpoint import Checkpoint, is_checkpoint, weights_in
from cond_detr.weights.naming import StateDict
from cond_detr.weights.published import published
from cond_detr.weights.reading import checked_state, open_source

# Dilated models have the same tensors, so their preset has to be given
PRESETS = ("r50", "r101")
# Of a config.json
MOST_BYTES = 1 << 26


def open_checkpoint(source: str, *, preset_name: str | None = None, classes: Classes | None = None) -> Checkpoint:
    """Opens a checkpoint of this package, of the authors' or DETR's repository, or of the transformers package.

    Args:
        source: path or URL.
        preset_name: architecture of a checkpoint of another implementation; by default r50 or r101, whichever fits.
        classes: classes of a checkpoint of another implementation; by default those in the config.json beside it, or
            COCO's if there are 91 outputs, or numbered ones.

    Raises:
        InputError: if the file is missing or damaged, does not hold a complete detector, or does not fit
            ``preset_name`` or ``classes``; or if these are given for a checkpoint of this package.
    """
    path, content = open_source(source)
    known = published(source)
    if known and not preset_name:
        preset_name = known.preset
    if is_checkpoint(content):
        if preset_name or classes:
            raise InputError(f"{source} says itself what architecture and what classes it has; leave those out")
        saved = Checkpoint.parse(path, content)
        check_buildable(saved)
        return saved
    state = weights_in(content, source)
    needed = [state.get("query_embed.weight"), state.get("class_head.weight")]
    if not all(tensor is not None and tensor.dim() == 2 and tensor.numel() for tensor in needed):
        raise InputError(f"{source} is no checkpoint of a detector: it has no object queries or no class scores")
    if max(len(state["query_embed.weight"]), len(state["class_head.weight"])) > MOST_CLASSES:
        raise InputError(f"{source} has more than {MOST_CLASSES} object queries or classes, as no detector has")
    presets = (preset_name,) if preset_name else PRESETS
    found = [(config, differences(config, state)) for config in candidates(presets, state)]
    config, wrong = min(found, key=lambda pair: len(pair[1]))
    if wrong:
        raise InputError(
            f"{source} has the architecture of none of {', '.join(presets)}: {len(wrong)} tensors differ from the most "
            f"similar, such as {shown(wrong[0])[1:-1]}"
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
    """Whether a tensor is a step counter of batch norm that our frozen batch norm does not have."""
    return name.endswith(".num_batches_tracked") and LAYOUTS[config.model.backbone].pretrained


def candidates(presets: tuple[str, ...], state: StateDict) -> Iterator[Config]:
    """Yields the settings of Conditional DETR and of DETR for each preset, with the weights' number of queries."""
    for name in presets:
        for config in (preset(name), as_detr(preset(name))):
            yield replace(config, model=replace(config.model, num_queries=len(state["query_embed.weight"])))


def differences(config: Config, state: StateDict) -> list[str]:
    """Names of tensors that only the weights or only a model of these settings has, or that differ in shape."""
    outputs = len(state["class_head.weight"]) - int(config.loss.classification == "softmax")
    with torch.device("meta"):
        own = new_network(config, max(1, outputs)).state_dict()

    def shape(tensors: dict[str, Tensor], name: str) -> torch.Size | None:
        return tensors[name].shape if name in tensors else None

    names = {name for name in own.keys() | state.keys() if not is_counter(name, config)}
    return sorted(name for name in names if shape(own, name) != shape(state, name))


def classes_beside(path: Path) -> Classes | None:
    """Reads class names from the config.json beside a file, as the transformers package writes it.

    Returns:
        The classes, with ids from 0; None if there is no such file or it has no names.

    Raises:
        InputError: if names are missing or occur twice.
    """
    file = path.with_name("config.json")
    if not is_file(file) or file.stat().st_size > MOST_BYTES:
        return None
    try:
        by_id = json.loads(file.read_text(encoding="utf-8-sig"))["id2label"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    try:
        names = tuple(by_id[str(i)] for i in range(len(by_id)))
        if len(set(names) - {UNUSED}) != len(names) - names.count(UNUSED):
            raise InputError("a name stands there twice")
        unnamed = all(name == f"LABEL_{i}" for i, name in enumerate(names))
        return None if unnamed else Classes(names, tuple(range(len(names))))
    except (KeyError, TypeError, InputError) as error:
        why = f": {error}" if isinstance(error, InputError) else ""
        raise InputError(f"{file}: id2label must name the numbers from 0 on, each with another text{why}") from None

"""Checkpoint files: our own format, and weights of other implementations.

Our files hold plain tensors, lists, dictionaries and numbers: nothing in them can run.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from cond_detr.classes import Classes
from cond_detr.config import Config, from_dict, to_dict
from cond_detr.errors import InputError
from cond_detr.files import replacing
from cond_detr.naming import StateDict, to_ours
from cond_detr.progress import Progress
from cond_detr.reading import FORMAT, checked_state, open_source, read

if TYPE_CHECKING:
    from cond_detr.models.detector import Detector


@dataclass(frozen=True)
class Checkpoint:
    """A file of ours.

    Attributes:
        path: where it was read.
        config, classes: what the model is built from.
        model: its parameters.
        average: their moving average, if one is kept; detection uses it.
        progress: where training stood; None in files made for prediction only.
        optimizer: the optimiser's state, likewise.
    """

    path: Path
    config: Config
    classes: Classes
    model: StateDict
    average: StateDict | None = None
    progress: Progress | None = None
    optimizer: dict[str, Any] | None = None

    def save(self) -> None:
        """Writes ``path``. A .safetensors file holds what detection needs, and nothing to train on with."""
        about = {
            "format": FORMAT,
            "config": to_dict(self.config),
            "classes": {"names": list(self.classes.names), "category_ids": list(self.classes.category_ids)},
        }
        if self.path.suffix == ".safetensors":
            described = {name: json.dumps(value) for name, value in about.items()}
            write(self.path, safetensors.torch.save(_contiguous(self.average or self.model), described))
            return
        progress = asdict(self.progress) if self.progress else None
        optional = {"average": self.average, "progress": progress, "optimizer": self.optimizer}
        present = {name: value for name, value in optional.items() if value is not None}
        write(self.path, {**about, "model": self.model, **present})

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Reads a file of ours.

        Raises:
            InputError: it is missing, damaged or something else.
        """
        return cls.parse(path, read(path))

    @classmethod
    def parse(cls, path: Path, content: Any) -> "Checkpoint":
        """The checkpoint in what :func:`read` gave."""
        if not is_checkpoint(content):
            raise InputError(f"{path} is not a checkpoint of this program (expected format {FORMAT!r})")
        try:
            classes = Classes(tuple(content["classes"]["names"]), tuple(content["classes"]["category_ids"]))
            config: Config = from_dict(content["config"])
            model = checked_state(content["model"])
            average = checked_state(content["average"]) if "average" in content else None
            progress = Progress.read(content["progress"]) if "progress" in content else None
        except (KeyError, TypeError, RecursionError, InputError) as error:
            raise InputError(f"checkpoint {path} is incomplete or of another version: {error}") from None
        return cls(path, config, classes, model, average, progress, content.get("optimizer"))

    def load_into(self, model: nn.Module, *, average: bool = False) -> None:
        """Sets every parameter of a model, to the average if that is asked for and there is one.

        Raises:
            InputError: the model has another architecture.
        """
        self.check(model)
        model.load_state_dict((self.average if average else None) or self.model)

    def check(self, model: nn.Module) -> None:
        """Raises the sentence for a model of another architecture; it may be one without memory."""
        own = model.state_dict()
        for state in (self.model, self.average or self.model):
            wrong = [n for n in own.keys() | state.keys() if _shape(own, n) != _shape(state, n)]
            if wrong:
                name = min(wrong)
                raise InputError(
                    f"checkpoint {self.path} is of another architecture: {len(wrong)} tensors differ, "
                    f"such as {name}: expected {_shape(own, name)}, got {_shape(state, name)}"
                )


@dataclass(frozen=True)
class LoadedWeights:
    """What became of the tensors of a weights file: names loaded, names of another shape or for other classes, names
    without counterpart, and names of the model that kept their initial values."""

    loaded: list[str]
    reshaped: list[str]
    unknown: list[str]
    missing: list[str]

    def __str__(self) -> str:
        text = f"loaded {len(self.loaded)} tensors"
        for label, names in (
            ("of another shape or for other classes, left out", self.reshaped),
            ("unknown, left out", self.unknown),
            ("newly initialised", self.missing),
        ):
            if names:
                text += f"; {len(names)} {label} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        return text


def load_weights(model: "Detector", source: str) -> LoadedWeights:
    """Starts a model from weights trained elsewhere, for as much as fits. Scores of classes with other names do not.

    Args:
        model: the model to fill.
        source: path or URL of a checkpoint of ours, of the authors' code or the transformers package, or of a
            torchvision ResNet.

    Raises:
        InputError: the file is missing, damaged, or has nothing for this model.
    """
    _, content = open_source(source)
    state = weights_in(content)
    own = model.state_dict()
    # a counter that batch norm keeps and frozen batch norm has no use for
    state = {name: t for name, t in state.items() if name in own or not name.endswith(".num_batches_tracked")}
    fits = {name for name in state if _shape(own, name) == state[name].shape}
    if not model.classes.match(names_in(content)):
        fits -= {"class_head.weight", "class_head.bias"}
    loaded = [name for name in state if name in fits]
    if not loaded:
        raise InputError(f"weights {source} are of another architecture: no tensor fits this model")
    try:
        model.load_state_dict(checked_state({name: state[name] for name in loaded}), strict=False)
    except InputError as error:
        raise InputError(f"weights {source} cannot be used: {error}") from None
    return LoadedWeights(
        loaded,
        [name for name in state if name in own and name not in fits],
        [name for name in state if name not in own],
        [name for name in own if name not in loaded],
    )


def _shape(state: StateDict, name: str) -> torch.Size | None:
    return state[name].shape if name in state else None


def weights_in(content: Any) -> StateDict:
    """The tensors of a file that was read, by our names."""
    if not isinstance(content, dict):
        return {}
    state = content.get("average" if isinstance(content.get("average"), dict) else "model", content)
    state = state if isinstance(state, dict) else {}
    tensors = {name: t for name, t in state.items() if isinstance(name, str) and isinstance(t, Tensor)}
    try:
        return to_ours(tensors)
    except (ValueError, TypeError, RuntimeError):  # shapes that the names do not have
        return {}


def names_in(content: Any) -> list[Any] | None:
    """The names of the classes that a file of ours tells apart."""
    classes = content.get("classes") if is_checkpoint(content) else None
    names = classes.get("names") if isinstance(classes, dict) else None
    return names if isinstance(names, list) else None


def is_checkpoint(content: Any) -> bool:
    """Whether what was read is a file of ours."""
    return isinstance(content, dict) and content.get("format") == FORMAT


def write(path: Path, content: bytes | dict[str, Any]) -> None:
    """Writes a file, or leaves what was there."""
    with replacing(path) as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            torch.save(content, file)


def write_weights(state: StateDict, path: Path) -> None:
    """Tensors and nothing else, as other implementations read them."""
    if path.suffix == ".safetensors":
        write(path, safetensors.torch.save(_contiguous(state), {"format": "pt"}))
    else:
        write(path, {"model": state})


def _contiguous(state: StateDict) -> StateDict:
    """Each in memory of its own, as safetensors wants it; tied tensors share theirs."""
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}

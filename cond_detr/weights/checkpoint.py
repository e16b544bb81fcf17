"""Checkpoint files of this package: plain tensors, lists, dictionaries, strings and numbers, and no code."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from cond_detr.classes import Classes
from cond_detr.config import Config, read_dict, to_dict
from cond_detr.errors import InputError, shown
from cond_detr.files import replacing
from cond_detr.weights.naming import StateDict, to_ours
from cond_detr.weights.progress import Progress
from cond_detr.weights.reading import FORMAT, checked_state, read
from cond_detr.weights.storages import UnknownTensor

MOST_TENSORS = 20_000
MOST_FACTS = 50


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint.

    Attributes:
        path: the file that it was read from or is written to.
        config: settings of the model.
        classes: classes of the model.
        model: the model's parameters and buffers.
        average: their moving average, if there is one; detection uses it.
        progress: state of the training; None in files for prediction only.
        optimizer: state of the optimiser; None likewise.
        trained: what is known of the training, as in :class:`cond_detr.models.model.Model`.
        queries: parameters of queries that only training has; None without them, or in files for prediction only.
    """

    path: Path
    config: Config
    classes: Classes
    model: StateDict
    average: StateDict | None = None
    progress: Progress | None = None
    optimizer: dict[str, Any] | None = None
    trained: dict[str, Any] | None = None
    queries: StateDict | None = None

    def save(self) -> None:
        """Writes the file. A .safetensors file has what detection needs, but no training state to resume from.

        Raises:
            OSError: if it cannot be written; a file at ``path`` is then left as it was.
        """
        about = {
            "format": FORMAT,
            "config": to_dict(self.config),
            "classes": {"names": list(self.classes.names), "category_ids": list(self.classes.category_ids)},
            **({"trained": self.trained} if self.trained else {}),
        }
        if self.path.suffix == ".safetensors":
            described = {name: json.dumps(value) for name, value in about.items()}
            write(self.path, safetensors.torch.save(_contiguous(self.average or self.model), described))
            return
        progress = asdict(self.progress) if self.progress else None
        optional = {
            "average": self.average,
            "progress": progress,
            "optimizer": self.optimizer,
            "queries": self.queries,
        }
        present = {name: value for name, value in optional.items() if value is not None}
        write(self.path, {**about, "model": self.model, **present})

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Reads a checkpoint of this package.

        Raises:
            InputError: if the file is missing, damaged, or something else.
        """
        return cls.parse(path, read(path))

    @classmethod
    def parse(cls, path: Path, content: Any) -> "Checkpoint":
        """Checks the content of a file, as :func:`read` returns it.

        Raises:
            InputError: if it is not a complete checkpoint of this version.
        """
        if not is_checkpoint(content):
            raise InputError(f"{path} is not a checkpoint of this program (expected format {FORMAT!r})")
        try:
            classes = Classes(*(tuple(_listed(content["classes"], name)) for name in ("names", "category_ids")))
            config = read_dict(content["config"])
            model = checked_state(content["model"])
            average = checked_state(content["average"]) if "average" in content else None
            progress = Progress.read(content["progress"]) if "progress" in content else None
            trained = _facts(content.get("trained", {}))
            queries = checked_state(content["queries"]) if "queries" in content else None
        except KeyError as error:
            raise InputError(f"checkpoint {path} is incomplete or of another version: it has no {error}") from None
        except InputError as error:
            raise InputError(f"checkpoint {path} cannot be used: {error}") from None
        except (TypeError, RecursionError) as error:
            raise InputError(f"checkpoint {path} is incomplete or of another version: {error}") from None
        return cls(path, config, classes, model, average, progress, content.get("optimizer"), trained, queries)

    def load_into(self, network: nn.Module, *, average: bool = False) -> None:
        """Loads the parameters into a network.

        Args:
            network: the network.
            average: whether to load the moving average, if there is one.

        Raises:
            InputError: if the network has another architecture.
        """
        self.check(network)
        network.load_state_dict((self.average if average else None) or self.model)

    def check(self, network: nn.Module) -> None:
        """Checks that a network has the same architecture; it may be on the meta device.

        Raises:
            InputError: if names or shapes of tensors differ.
        """
        own = network.state_dict()
        for state in (self.model, self.average or self.model):
            if different := _different(own, state):
                raise InputError(f"checkpoint {self.path} is of another architecture: {different}")

    def check_queries(self, own: StateDict) -> None:
        """Checks that the file has the queries that only training has.

        Args:
            own: their state in the run that resumes.

        Raises:
            InputError: if names or shapes of tensors differ.
        """
        if different := _different(own, self.queries or {}):
            raise InputError(f"checkpoint {self.path} is of other `query_groups` or `denoising`: {different}")


def _different(own: StateDict, state: StateDict) -> str | None:
    """What differs between the tensors of two states; None if nothing does."""
    wrong = [n for n in own.keys() | state.keys() if shape_in(own, n) != shape_in(state, n)]
    if not wrong:
        return None
    name = min(wrong)
    return (
        f"{len(wrong)} tensors differ, such as {shown(name)[1:-1]}: "
        f"expected {shape_in(own, name)}, got {shape_in(state, name)}"
    )


def _listed(values: Any, name: str) -> list[Any]:
    entry = values[name] if isinstance(values, dict) else None
    if not isinstance(entry, list):
        raise InputError(f"{name} of classes must be a list")
    return entry


def _facts(values: Any) -> dict[str, Any]:
    """Checks what a file says of its training: a few names with texts and numbers."""
    if not isinstance(values, dict) or len(values) > MOST_FACTS:
        raise InputError(f"trained must be a dictionary of at most {MOST_FACTS} entries, got {shown(values)}")
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, (str, int, float, NoneType)):
            raise InputError(f"trained must hold texts and numbers, got {shown(name)}: {shown(value)}")
    return values


def shape_in(state: StateDict, name: str) -> torch.Size | None:
    """Shape of the tensor of a name; None if there is none."""
    return state[name].shape if name in state else None


def weights_in(content: Any, called: str) -> StateDict:
    """Extracts the tensors, if there is one their average, from the content of a file; translates names to ours.

    Raises:
        InputError: if a tensor is one that no detector has, two of them have the same name of ours, or there are too
            many.
    """
    if not isinstance(content, dict):
        return {}
    state = content.get("average" if isinstance(content.get("average"), dict) else "model", content)
    state = state if isinstance(state, dict) else {}
    odd = next((name for name, entry in state.items() if isinstance(entry, UnknownTensor)), None)
    if odd is not None:
        raise InputError(f"{called} cannot be used: tensor {shown(odd)[1:-1]} is {state[odd].what}")
    tensors = {name: t for name, t in state.items() if isinstance(name, str) and isinstance(t, Tensor)}
    if len(tensors) > MOST_TENSORS:
        raise InputError(f"{called} cannot be used: it holds {len(tensors)} tensors, more than any detector has")
    try:
        return to_ours(tensors)
    except InputError as error:
        raise InputError(f"{called} cannot be used: {error}") from None
    except (ValueError, TypeError, RuntimeError):  # shapes that the names do not have
        return {}


def names_in(content: Any) -> list[Any] | None:
    """Class names in the content of a file; None unless it is a checkpoint of this package."""
    classes = content.get("classes") if is_checkpoint(content) else None
    names = classes.get("names") if isinstance(classes, dict) else None
    return names if isinstance(names, list) else None


def is_checkpoint(content: Any) -> bool:
    """Whether the content of a file is a checkpoint of this package."""
    return isinstance(content, dict) and content.get("format") == FORMAT


def write(path: Path, content: bytes | dict[str, Any]) -> None:
    """Writes bytes, or a dictionary by ``torch.save``, completely or not at all.

    Raises:
        OSError: if the file cannot be written; a file at ``path`` is then left as it was.
    """
    with replacing(path) as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            torch.save(content, file)


def write_weights(state: StateDict, path: Path) -> None:
    """Writes tensors alone, as other implementations read them: .safetensors, or else by ``torch.save``.

    Raises:
        OSError: if the file cannot be written.
    """
    if path.suffix == ".safetensors":
        write(path, safetensors.torch.save(_contiguous(state), {"format": "pt"}))
    else:
        write(path, {"model": state})


def _contiguous(state: StateDict) -> StateDict:
    """Copies the tensors, for safetensors refuses tensors that share memory, as tied ones do."""
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}

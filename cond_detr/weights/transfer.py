"""Transfer of pretrained weights to a model, as far as they fit."""

from dataclasses import dataclass

from cond_detr.errors import InputError, shown
from cond_detr.models.model import Model
from cond_detr.weights.checkpoint import names_in, shape_in, weights_in
from cond_detr.weights.reading import checked_state, open_source


@dataclass(frozen=True)
class LoadedWeights:
    """Result of loading weights: the names of tensors by what became of them.

    Attributes:
        loaded: loaded into the model.
        reshaped: left out, having another shape or belonging to other classes.
        unknown: left out, as the model has no such tensor.
        missing: tensors of the model that kept their initial values.
    """

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
                first = ", ".join(shown(name)[1:-1] for name in names[:3])
                text += f"; {len(names)} {label} ({first}{', ...' if len(names) > 3 else ''})"
        return text


def load_weights(model: Model, source: str) -> LoadedWeights:
    """Loads pretrained weights into a model, all tensors that fit; the class head only if the class names match.

    Args:
        model: the model.
        source: path or URL of a checkpoint of this package, of the authors' or DETR's repository or of the
            transformers package, or of a torchvision ResNet.

    Raises:
        InputError: if the file is missing or damaged, or no tensor fits.
    """
    _, content = open_source(source)
    state = weights_in(content, f"weights {source}")
    own = model.network.state_dict()
    # frozen batch norm has no step counter
    state = {name: t for name, t in state.items() if name in own or not name.endswith(".num_batches_tracked")}
    fits = {name for name in state if shape_in(own, name) == state[name].shape}
    if not model.classes.match(names_in(content)):
        fits -= {"class_head.weight", "class_head.bias"}
    loaded = [name for name in state if name in fits]
    if not loaded:
        raise InputError(f"weights {source} are of another architecture: no tensor fits this model")
    try:
        model.network.load_state_dict(checked_state({name: state[name] for name in loaded}), strict=False)
    except InputError as error:
        raise InputError(f"weights {source} cannot be used: {error}") from None
    return LoadedWeights(
        loaded,
        [name for name in state if name in own and name not in fits],
        [name for name in state if name not in own],
        [name for name in own if name not in loaded],
    )

"""A network together with its settings and classes."""

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from typing_extensions import Self

from cond_detr.classes import Classes
from cond_detr.config import Config
from cond_detr.data.images import InputSize
from cond_detr.errors import InputError, shown
from cond_detr.models.conditional_detr import ConditionalDETRNetwork
from cond_detr.models.detr import DETRNetwork
from cond_detr.models.network import Network

NETWORKS: dict[str, type[Network]] = {network.kind: network for network in (ConditionalDETRNetwork, DETRNetwork)}


def new_network(config: Config, num_classes: int) -> Network:
    """Creates an untrained network; its weights are drawn from torch's generator.

    Raises:
        InputError: if settings are unknown or exclude each other.
    """
    if config.model.kind not in NETWORKS:
        raise InputError(f"unknown model {shown(config.model.kind)}; there are {', '.join(NETWORKS)}")
    return NETWORKS[config.model.kind](config.model, num_classes, softmax=config.loss.classification == "softmax")


# Of models of which nothing is known
THRESHOLD = 0.3


@dataclass(eq=False)
class Model:
    """A network with its settings and classes.

    Attributes:
        network: from images to predictions.
        config: architecture, image sizes, and settings of its training.
        classes: names and category ids, in the order of the network's outputs.
        trained: what is known of the training: epoch, AP (in [0, 1]), the threshold of the best F1, data set, date,
            version.
    """

    network: Network
    config: Config
    classes: Classes
    trained: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Does nothing; subclasses check the arguments here."""

    @classmethod
    def new(cls, config: Config, classes: Classes) -> Self:
        """Creates an untrained model; its weights are drawn from torch's generator.

        Raises:
            InputError: if settings are unknown or exclude each other.
        """
        return cls(new_network(config, len(classes)), config, classes)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.network.device

    @property
    def threshold(self) -> float:
        """Lowest score of detections that are shown: that of the best F1 in validation, if it is known."""
        known = self.trained.get("threshold")
        return known if isinstance(known, float) and 0 <= known <= 1 else THRESHOLD

    @property
    def stride(self) -> int:
        """Stride of the feature map in pixels; smaller images are refused."""
        return self.network.backbone.stride

    @property
    def input_size(self) -> InputSize:
        """How large images are for the network."""
        return InputSize(self.config.data.image_size, self.config.data.max_size, self.stride)

    def copy(self) -> Self:
        """Copies the model and its weights."""
        return replace(self, network=copy.deepcopy(self.network))

    def adopt(self, classes: Classes) -> bool:
        """Changes the classes, and initialises a new class head unless the present one serves for them.

        Returns:
            Whether the class head was kept; see :meth:`cond_detr.classes.Classes.match`.
        """
        fits = self.classes.match(classes.names)
        self.classes = classes
        if not fits:
            self.network.renew_class_head(len(classes))
        return fits


def unfused(model: Model) -> Model:
    """Copies a model into one that uses plain torch operations instead of the fused kernels, for export."""
    config = replace(model.config, model=replace(model.config.model, fused_attn=False))
    plain = Model.new(config, model.classes)
    plain.network.load_state_dict(model.network.state_dict())
    return plain

"""Metadata of an exported file."""

import json
from dataclasses import asdict, dataclass

from cond_detr.classes import Classes
from cond_detr.config import MOST_PIXELS
from cond_detr.data.images import InputSize
from cond_detr.errors import InputError, shown
from cond_detr.models.model import Model

# Key of the metadata in a file
KEY = "cond_detr"


@dataclass(frozen=True)
class About:
    """Metadata of an exported file: what prediction needs besides the graph.

    Attributes:
        classes: the classes, in the order of the labels.
        image_size: short side of the network's input, in pixels.
        max_size: longest long side, in pixels.
        stride: stride of the network, in pixels; smaller images are refused.
    """

    classes: Classes
    image_size: int
    max_size: int
    stride: int

    @property
    def input_size(self) -> InputSize:
        """How large images are for the network."""
        return InputSize(self.image_size, self.max_size, self.stride)

    @classmethod
    def of(cls, model: Model) -> "About":
        """The metadata of a model."""
        data = model.config.data
        return cls(model.classes, data.image_size, data.max_size, model.stride)

    def write(self) -> str:
        """Formats the metadata as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> "About":
        """Parses the JSON of :meth:`write`.

        Raises:
            InputError: if a class or a size is none.
            Exception: of any type, if it is something else.
        """
        values = json.loads(text)
        names, category_ids = values["classes"]["names"], values["classes"]["category_ids"]
        about = cls(**{**values, "classes": Classes(tuple(names), tuple(category_ids))})
        for name, size in (("image_size", about.image_size), ("max_size", about.max_size), ("stride", about.stride)):
            if type(size) is not int or not 1 <= size < MOST_PIXELS:
                raise InputError(f"{name} must be a whole number from 1 to {MOST_PIXELS - 1}, got {shown(size)}")
        return about

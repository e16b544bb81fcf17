"""Metadata of an exported file."""

import json
from dataclasses import asdict, dataclass

from cond_detr.classes import UNUSED, Classes
from cond_detr.config import DataConfig
from cond_detr.data.images import IMAGENET_MEAN, IMAGENET_STD, InputSize
from cond_detr.errors import InputError, shown
from cond_detr.models.model import THRESHOLD, Model
from cond_detr.predict.detections import check_threshold
from cond_detr.settings import change

# Key of the metadata in a file
KEY = "cond_detr"
LARGEST_STRIDE = 1024
# How the network's input is made; what files say of it must be this
LAYOUT = "NCHW, RGB"
NORMALISED = {"layout": LAYOUT, "scale": 1 / 255, "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}


@dataclass(frozen=True)
class About:
    """Metadata of an exported file: what prediction needs besides the graph.

    Attributes:
        classes: the classes, in the order of the labels.
        image_size: short side of the network's input, in pixels.
        max_size: longest long side, in pixels.
        stride: stride of the network, in pixels; smaller images are refused.
        threshold: lowest score of detections that are shown.
        layout: order of the dimensions and colours of the network's input.
        scale: what pixels from 0 to 255 are multiplied by.
        mean: subtracted from them afterwards, by colour.
        std: what they are divided by in the end.
    """

    classes: Classes
    image_size: int
    max_size: int
    stride: int
    threshold: float = THRESHOLD
    layout: str = LAYOUT
    scale: float = 1 / 255
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @property
    def input_size(self) -> InputSize:
        """How large images are for the network."""
        return InputSize(self.image_size, self.max_size, self.stride)

    @classmethod
    def of(cls, model: Model) -> "About":
        """The metadata of a model."""
        data = model.config.data
        return cls(model.classes, data.image_size, data.max_size, model.stride, model.threshold)

    def write(self) -> str:
        """Formats the metadata as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> "About":
        """Parses the JSON of :meth:`write`.

        Raises:
            Exception: of any type, if it is something else, or has sizes that no detector has.
        """
        values = json.loads(text)
        names, category_ids = values["classes"]["names"], values["classes"]["category_ids"]
        for called, each in (("names", names), ("category_ids", category_ids)):
            known = [item for item in each if item != UNUSED] if isinstance(each, list) else None
            if known is None or len(set(known)) < len(known):
                raise InputError(f"the classes' {called} must be a list without repetitions, got {shown(each)}")
        for called, needed in NORMALISED.items():
            if called in values and values[called] != needed:
                raise InputError(f"its images have {called} {shown(values[called])}; this version knows {needed}")
        sizes = {name: values[name] for name in ("image_size", "max_size")}
        change(DataConfig(), sizes)
        stride = values["stride"]
        if type(stride) is not int or not 1 <= stride <= LARGEST_STRIDE:
            raise InputError(f"stride must be a whole number from 1 to {LARGEST_STRIDE}, got {shown(stride)}")
        threshold = values.get("threshold", THRESHOLD)  # files of before have none
        check_threshold(threshold)
        return cls(Classes(tuple(names), tuple(category_ids)), **sizes, stride=stride, threshold=threshold)

"""The detections of an image, as an object to work with."""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from cond_detr.boxes import xyxy_to_xywh
from cond_detr.classes import Classes
from cond_detr.data.annotations import ImageRecord
from cond_detr.data.images import IMAGE_SUFFIXES, ImageLike
from cond_detr.errors import InputError, need, shown
from cond_detr.files import write_json
from cond_detr.models.predictions import Predictions, Ranked, best
from cond_detr.paths import as_path
from cond_detr.pictures import write_picture
from cond_detr.predict.drawing import draw_detections

# Detections of an image that COCO's evaluation takes into account
MOST_MEASURED = 100


@dataclass(frozen=True)
class Detection:
    """One detected object.

    Attributes:
        box: left, top, right and bottom in pixels of the original image; may extend beyond it.
        score: in [0, 1].
        label: index of the class.
        name: of the class.
        category_id: of the class in the data set that the model was trained on.
    """

    box: tuple[float, float, float, float]
    score: float
    label: int
    name: str
    category_id: int


@dataclass(frozen=True, eq=False)
class Detections(Sequence[Detection]):
    """The detections of one image, best first: a sequence of :class:`Detection`.

    An index gives one of them; a slice, a list of indices or a mask (a bool tensor or array) gives some.

    Attributes:
        boxes: (K, 4) fp32 xyxy in pixels of the original image; may extend beyond it.
        scores: (K,) fp32 in [0, 1].
        labels: (K,) int64 indices of the classes.
        names: K class names.
        category_ids: K category ids, as in the data set that the model was trained on.
        image: the image as it was given to ``predict``, for pictures.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    names: list[str]
    category_ids: list[int]
    image: ImageLike | None = None

    @classmethod
    def of(cls, boxes: Tensor, scores: Tensor, labels: Tensor, classes: Classes) -> "Detections":
        """Adds names and category ids to boxes, scores and labels."""
        numbers = labels.tolist()
        names, ids = [classes.names[i] for i in numbers], [classes.category_ids[i] for i in numbers]
        return cls(boxes, scores, labels, names, ids)

    @classmethod
    def together(cls, parts: "Sequence[Detections]") -> "Detections":
        """The detections of several objects of this class, one after the other."""
        return cls(
            torch.cat([each.boxes for each in parts]),
            torch.cat([each.scores for each in parts]),
            torch.cat([each.labels for each in parts]),
            [name for each in parts for name in each.names],
            [number for each in parts for number in each.category_ids],
        )

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Detection: ...

    @overload
    def __getitem__(self, index: "slice | Sequence[int] | Tensor | np.ndarray[Any, Any]") -> "Detections": ...

    def __getitem__(self, index: Any) -> "Detection | Detections":
        # torch has no slices that go backwards
        numbers = torch.tensor(range(len(self))[index]) if isinstance(index, slice) else torch.arange(len(self))[index]
        numbers = numbers.long()
        if numbers.dim() == 0:
            i = int(numbers)
            left, top, right, bottom = self.boxes[i].tolist()
            box = (left, top, right, bottom)
            return Detection(box, float(self.scores[i]), int(self.labels[i]), self.names[i], self.category_ids[i])
        chosen = numbers.tolist()
        return replace(
            self,
            boxes=self.boxes[numbers],
            scores=self.scores[numbers],
            labels=self.labels[numbers],
            names=[self.names[i] for i in chosen],
            category_ids=[self.category_ids[i] for i in chosen],
        )

    def above(self, threshold: float) -> "Detections":
        """The detections with a score of at least ``threshold``, or InputError if that is not in [0, 1]."""
        check_threshold(threshold)
        return self[self.scores >= threshold]

    def of_classes(self, *names: str) -> "Detections":
        """The detections of some classes."""
        return self[[i for i, name in enumerate(self.names) if name in names]]

    def to_dicts(self) -> list[dict[str, Any]]:
        """A dictionary for each detection, with class, category_id, score, and box as left, top, right, bottom."""
        return [
            {
                "class": each.name,
                "category_id": each.category_id,
                "score": round(each.score, 4),
                "box": [round(value, 2) for value in each.box],
            }
            for each in self
        ]

    def to_json(self) -> str:
        """What :meth:`to_dicts` gives, as text."""
        return json.dumps(self.to_dicts(), ensure_ascii=False)

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """COCO's result format, boxes as left, top, width, height in pixels; ``image_id`` is the data set's."""
        boxes = xyxy_to_xywh(self.boxes.double())
        return [
            {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
            for box, score, category_id in zip(boxes.tolist(), self.scores.tolist(), self.category_ids, strict=True)
        ]

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a row for each detection: left, top, right, bottom, score, class, category_id.

        Raises:
            InputError: if pandas is not installed.
        """
        need("pandas", "pandas")
        import pandas

        boxes = dict(zip(("left", "top", "right", "bottom"), self.boxes.numpy().T, strict=True))
        return pandas.DataFrame(
            {**boxes, "score": self.scores.numpy(), "class": self.names, "category_id": self.category_ids}
        )

    def to_supervision(self) -> Any:
        """The ``supervision.Detections`` of that package.

        Raises:
            InputError: if it is not installed.
        """
        need("supervision", "supervision")
        import supervision

        return supervision.Detections(
            xyxy=self.boxes.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def draw(self, image: ImageLike | None = None) -> Any:
        """The image with boxes, class names and scores, a PIL image.

        Args:
            image: by default the one that was given to ``predict``.

        Raises:
            InputError: if there is none, or it cannot be read.
        """
        image = self.image if image is None else image
        if image is None:
            raise InputError("these detections do not know their image; pass it")
        return draw_detections(image, self)

    def save(self, path: str | Path) -> None:
        """Writes a picture, or with the suffix .json what :meth:`to_dicts` gives.

        Raises:
            InputError: if the suffix is of no known format.
            OSError: if the file cannot be written.
        """
        path = as_path(path)
        if path.suffix.lower() == ".json":
            write_json(path, self.to_dicts())
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            write_picture(path, self.draw(), "Detections.save")
        else:
            raise InputError(f"{path} should end in .json or one of {', '.join(sorted(IMAGE_SUFFIXES))}")

    def _repr_png_(self) -> bytes | None:
        """The picture that a notebook shows."""
        if self.image is None:
            return None
        file = io.BytesIO()
        self.draw().save(file, format="PNG")
        return file.getvalue()

    def __repr__(self) -> str:
        first = [f"{each.name} {each.score:.2f}" for each in self[:3]] + ["..."] * (len(self) > 3)
        return f"Detections({len(self)}{': ' * bool(first)}{', '.join(first)})"


def ground_truth(record: ImageRecord, classes: Classes) -> Detections:
    """The ground truth of an image, as detections of score 1."""
    labels, scores = torch.from_numpy(record.labels), torch.ones(len(record.labels))
    return Detections.of(torch.from_numpy(record.boxes), scores, labels, classes)


def check_threshold(threshold: float) -> None:
    """Checks a threshold of scores.

    Raises:
        InputError: if it is not a number in [0, 1].
    """
    if not isinstance(threshold, Real) or isinstance(threshold, bool) or not 0 <= threshold <= 1:
        raise InputError(f"threshold must be a score in [0, 1], got {shown(threshold)}")


def in_pixels(found: Ranked, sizes: list[tuple[int, int]], classes: Classes) -> list[Detections]:
    """Converts boxes to pixels, and adds class names and category ids.

    Args:
        found: detections of B images.
        sizes: original (width, height) of each image in pixels.
        classes: the classes.

    Raises:
        InputError: if a box or a score is not finite.
    """
    if not (found.boxes.isfinite().all() and found.scores.isfinite().all()):
        raise InputError(
            "the network's predictions are not finite: its weights are damaged, or too large for its precision"
        )
    scale = torch.tensor([[w, h, w, h] for w, h in sizes], dtype=found.boxes.dtype, device=found.boxes.device)
    boxes = found.boxes * scale[:, None]
    return [
        Detections.of(b, s, c, classes)
        for b, s, c in zip(boxes.cpu(), found.scores.cpu(), found.labels.cpu(), strict=True)
    ]


def detections(
    predictions: Predictions,
    sizes: list[tuple[int, int]],
    classes: Classes,
    top: int | None = None,
    *,
    softmax: bool = False,
) -> list[Detections]:
    """Post-processing: the detections with the highest scores of the last layer, boxes in pixels.

    Args:
        predictions: predictions for B images.
        sizes: original (width, height) of each image in pixels.
        classes: the C classes.
        top: largest number of detections per image; by default the number of object queries.
        softmax: whether the network was trained with DETR's softmax loss. Then scores are softmax probabilities, and
            each query has only its most probable class; else scores are sigmoids.
    """
    return in_pixels(best(predictions, top, softmax=softmax), sizes, classes)

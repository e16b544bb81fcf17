"""Class names and how a data set numbers them."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from cond_detr.errors import InputError

# An output that no class has: COCO leaves out some of its numbers
UNUSED = "N/A"
_COCO = """
1 person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant
13 stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe
27 backpack, umbrella
31 handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard
42 surfboard, tennis racket, bottle
46 wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut
61 cake, chair, couch, potted plant, bed
67 dining table
70 toilet
72 tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator
84 book, clock, vase, scissors, teddy bear, hair drier, toothbrush
"""


def in_one_line(text: str) -> bool:
    """Whether it has no control characters, and no halves of characters, which no file can hold."""
    return not any(unicodedata.category(c) in {"Cc", "Cs"} for c in text)


@dataclass(frozen=True)
class Classes:
    """The classes of a detector in the order of its outputs.

    Attributes:
        names: name of each class.
        category_ids: the data set's category id of each class; need not be contiguous or start at any number.

    Raises:
        InputError: a name is no text in one line, an id is no whole number, or there are not as many of them.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.category_ids):
            raise InputError(f"classes need an id each, got {len(self.names)} names and {len(self.category_ids)} ids")
        for name in self.names:
            if not isinstance(name, str) or not in_one_line(name):
                raise InputError(f"the name of a class must be text in one line, got {name!r}")
        for number in self.category_ids:
            if not isinstance(number, int):
                raise InputError(f"the id of a class must be a whole number, got {number!r}")

    @classmethod
    def numbered(cls, count: int) -> "Classes":
        """Classes that nobody has named yet."""
        return cls(tuple(f"class {i}" for i in range(count)), tuple(range(count)))

    @classmethod
    def coco(cls) -> "Classes":
        """The 91 outputs of models trained on COCO by its category ids, as the published ones are."""
        names = [UNUSED] * 91
        for line in _COCO.strip().splitlines():
            first, _, run = line.partition(" ")
            for i, name in enumerate(run.split(", "), start=int(first)):
                names[i] = name
        return cls(tuple(names), tuple(range(91)))

    def match(self, names: Sequence[str] | None) -> bool:
        """Whether scores for classes of these names, None if they are not known, can be those of these classes."""
        return names is None or tuple(names) == self.names or self == Classes.numbered(len(names))

    def __len__(self) -> int:
        return len(self.names)

"""Class names and their category ids in a data set."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from cond_detr.errors import InputError, shown

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


# More than any data set has
MOST_CLASSES = 100_000
LONGEST_NAME = 200
# Characters that turn the direction of what follows
_TURNS = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def in_one_line(text: str) -> bool:
    """Whether a text is printed as one line, as it stands.

    It has no control characters, separators of lines, characters that turn the direction of writing, nor unpaired
    surrogates, which UTF-8 cannot encode.
    """
    if text.isascii():
        return text.isprintable()
    return not any(unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} or c in _TURNS for c in text)


@dataclass(frozen=True)
class Classes:
    """The classes of a detector in the order of its outputs.

    Attributes:
        names: name of each class.
        category_ids: category id of each class in the data set; they may have gaps and start at any number.

    Raises:
        InputError: if a name is not a line of text, an id is not a whole number, or there are more of one than of the
            other.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.category_ids):
            raise InputError(f"classes need an id each, got {len(self.names)} names and {len(self.category_ids)} ids")
        if len(self.names) > MOST_CLASSES:
            raise InputError(f"there must be at most {MOST_CLASSES} classes, got {len(self.names)}")
        for name in self.names:
            if not isinstance(name, str) or len(name) > LONGEST_NAME or not in_one_line(name):
                wanted = f"a line of text of at most {LONGEST_NAME} characters"
                raise InputError(f"the name of a class must be {wanted}, got {shown(name)}")
        for number in self.category_ids:
            if not isinstance(number, int):
                raise InputError(f"the id of a class must be a whole number, got {shown(number)}")

    @classmethod
    def numbered(cls, count: int) -> "Classes":
        """Placeholders for ``count`` unnamed classes: "class 0", "class 1" and so on, with ids from 0."""
        return cls(tuple(f"class {i}" for i in range(count)), tuple(range(count)))

    @classmethod
    def coco(cls) -> "Classes":
        """COCO's classes indexed by category id: the 91 outputs of the published models, unused ids included."""
        names = [UNUSED] * 91
        for line in _COCO.strip().splitlines():
            first, _, run = line.partition(" ")
            for i, name in enumerate(run.split(", "), start=int(first)):
                names[i] = name
        return cls(tuple(names), tuple(range(91)))

    def match(self, names: Sequence[str] | None) -> bool:
        """Whether a class head trained for other names can serve for these classes.

        Args:
            names: the classes that the head was trained for; None if they are not known.

        Returns:
            True if the names are the same or unknown, or if these classes are unnamed and there are as many of them.
        """
        if names is None or len(names) != len(self):
            return names is None
        return tuple(names) == self.names or self == Classes.numbered(len(names))

    def __len__(self) -> int:
        return len(self.names)

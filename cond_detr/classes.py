"""Class names and how a data set numbers them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Classes:
    """The classes of a detector in the order of its outputs.

    Attributes:
        names: name of each class.
        category_ids: the data set's category id of each class; need not be contiguous or start at any number.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]

    @classmethod
    def numbered(cls, count: int) -> "Classes":
        """Classes that nobody has named yet."""
        return cls(tuple(f"class {i}" for i in range(count)), tuple(range(count)))

    def __len__(self) -> int:
        return len(self.names)

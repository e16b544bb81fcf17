"""Many texts in one array, which processes share without copying."""

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self


class Texts(Sequence[str]):
    """A sequence of texts, stored as UTF-8 one after the other.

    Args:
        characters: (bytes,) uint8, all texts.
        ends: (N,) int64, where each of them ends.
    """

    def __init__(self, characters: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.characters = characters
        self.ends = ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> Self:
        """Stores texts."""
        texts = list(texts)
        encoded = "".join(texts).encode()
        ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
        if len(texts) and ends[-1] < len(encoded):  # not ASCII
            ends = np.cumsum([len(text.encode()) for text in texts])
        return cls(np.frombuffer(encoded, np.uint8), ends)

    def take(self, order: NDArray[np.intp]) -> Self:
        """The texts at these indices."""
        lengths = np.diff(self.ends, prepend=0)
        begins, lengths = (self.ends - lengths)[order], lengths[order]
        ends = np.cumsum(lengths)
        # of each character, how far it moves
        moves = np.repeat(begins - (ends - lengths), lengths)
        return type(self)(self.characters[np.arange(len(moves)) + moves], ends)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        begin = self.ends[index - 1] if index else 0
        return self.characters[begin : self.ends[index]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

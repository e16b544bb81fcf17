"""Warning about images whose predictions were not finite. They are matched all the same."""

import numpy as np
from torch import Tensor
from tqdm import tqdm

from cond_detr.data.annotations import Annotations
from cond_detr.errors import say


class Sanitised:
    """Collects on the device which images had predictions that were not finite, and reports them once in a run.

    Args:
        annotations: annotations of the training images, for their names.
    """

    def __init__(self, annotations: Annotations) -> None:
        self.annotations = annotations
        self.reported = False
        self._unseen: list[tuple[tuple[int, ...], Tensor]] = []

    def add(self, image_ids: tuple[int, ...], sanitised: Tensor) -> None:
        """Adds the flags of a batch, without host-device synchronisation.

        Args:
            image_ids: ids of the B images.
            sanitised: (B,) bool, True for images whose predictions were not finite.
        """
        if not self.reported:
            self._unseen.append((image_ids, sanitised))

    def forget(self) -> None:
        """Drops flags that have not been reported."""
        self._unseen.clear()

    def report(self) -> None:
        """Reads the flags from the device, and prints a warning with the names of the images, once in a run."""
        ids = [
            i for image_ids, bad in self._unseen for i, is_bad in zip(image_ids, bad.tolist(), strict=True) if is_bad
        ]
        self.forget()
        if not ids or self.reported:
            return
        self.reported = True
        images = self.annotations.images
        names = [images.names[int(np.flatnonzero(images.ids == i)[0])] for i in ids[:3]]
        files = ", ".join(names) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
        say(
            f"warning: predictions that are not finite were matched as if far from every object, for {files}; "
            "further ones are not reported",
            tqdm.write,
        )

"""Annotations that the processes of a machine share.

One process of each machine reads them and writes their arrays to a temporary folder; all of them map these into memory.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cond_detr import distributed
from cond_detr.classes import Classes
from cond_detr.data.annotations import Annotations, Images, Objects
from cond_detr.data.texts import Texts
from cond_detr.errors import InputError

ARRAYS = ("sizes", "characters", "ends", "images", "labels", "boxes", "areas", "crowds")
ABOUT = "about.json"


def read_once(read: Callable[[], Annotations]) -> Annotations:
    """Reads annotations once for all processes of a machine that torchrun has started.

    Args:
        read: reads them.

    Raises:
        InputError: on every process, if ``read`` raises it on any machine.
    """
    if distributed.processes_here() == 1:
        return read()
    machine = int(os.environ.get("GROUP_RANK", 0))
    place: str | InputError | None = None
    with contextlib.ExitStack() as held:
        if int(os.environ["LOCAL_RANK"]) == 0:
            try:
                folder = held.enter_context(tempfile.TemporaryDirectory(prefix="cond_detr-"))
                save(read(), Path(folder))
                place = folder
            except InputError as error:
                place = error
            except OSError:  # no room for it: each process reads for itself
                place = None
        places = distributed.gather_objects((machine, place))
        failed = next((where for _, where in places if isinstance(where, InputError)), None)
        if failed:
            raise failed
        here = next((where for number, where in places if number == machine and isinstance(where, str)), None)
        annotations = load(Path(here)) if here else read()
        distributed.gather_objects(None)  # all of them have mapped it before it is removed
    return annotations


def save(annotations: Annotations, folder: Path) -> None:
    """Writes annotations to a folder.

    Raises:
        OSError: if they cannot be written.
    """
    images, objects = annotations.images, annotations.objects
    arrays: list[NDArray[Any]] = [
        images.sizes,
        images.names.characters,
        images.names.ends,
        objects.images,
        objects.labels,
    ]
    arrays += [objects.boxes, objects.areas, objects.crowds]
    for name, array in zip(ARRAYS, arrays, strict=True):
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    about = {
        "name": annotations.name,
        "classes": [annotations.classes.names, annotations.classes.category_ids],
        "dropped": annotations.dropped,
        "notes": annotations.notes,
        "groups": annotations.groups,
        "ids": None if images.ids.dtype == np.int64 else images.ids.tolist(),
    }
    if about["ids"] is None:
        np.save(folder / "ids.npy", images.ids, allow_pickle=False)
    (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")


def load(folder: Path) -> Annotations:
    """Maps annotations that :func:`save` has written; the files may be removed afterwards."""
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    sizes, characters, ends, *objects = (_mapped(folder / f"{name}.npy") for name in ARRAYS)
    ids = _mapped(folder / "ids.npy") if about["ids"] is None else np.array(about["ids"], object)
    names, category_ids = map(tuple, about["classes"])
    return Annotations(
        about["name"],
        Classes(names, category_ids),
        Images(ids, Texts(characters, ends), sizes),
        Objects(*objects),
        about["dropped"],
        tuple(about["notes"]),
        tuple(about["groups"]),
    )


def _mapped(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return np.asarray(array)

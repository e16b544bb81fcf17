"""Folder layouts of data sets: where images and annotations are."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cond_detr.data.images import open_image
from cond_detr.errors import InputError


@dataclass(frozen=True)
class FolderLoader:
    """Loads images by file name from a folder; refuses names that lead out of it.

    An image is rotated as its EXIF tag says, unless the annotations have the size of the unrotated image.

    Attributes:
        folder: the folder.
    """

    folder: Path

    def __call__(self, file_name: str, size: tuple[int, int]) -> Image.Image:
        """Loads an image.

        Args:
            file_name: path inside the folder.
            size: (width, height) in pixels, as the annotations say.

        Raises:
            InputError: if the image cannot be read, is outside the folder, or has another size.
        """
        root = self.folder.resolve()
        path = (root / file_name).resolve()
        if not path.is_relative_to(root):
            raise InputError(f"image {file_name} is outside its folder {self.folder}")
        image = open_image(path)
        if image.size != size and image.size[::-1] == size:
            image = open_image(path, turn=False)
        if image.size != size:
            width, height = image.size
            raise InputError(f"image {path} is {width}x{height} pixels, but its annotations say {size[0]}x{size[1]}")
        return image


def find_split(dataset_dir: Path, split: str) -> tuple[Path, Path]:
    """Finds the image folder and the annotation file of a split.

    Two layouts are known: ``DIR/train`` with ``DIR/annotations/instances_train.json``, and COCO's own
    ``DIR/train2017`` (or ``DIR/images/train2017``) with ``DIR/annotations/instances_train2017.json``.

    Args:
        dataset_dir: folder of the data set, ``DIR``.
        split: "train" or "val".

    Raises:
        InputError: if a folder or file is missing.
    """
    if not dataset_dir.is_dir():
        raise InputError(f"dataset folder {dataset_dir} {'is a file' if dataset_dir.exists() else 'does not exist'}")
    for name in (split, f"{split}2017"):
        annotations = dataset_dir / "annotations" / f"instances_{name}.json"
        if annotations.is_file():
            break
    else:
        raise InputError(f"annotation file {dataset_dir}/annotations/instances_{split}.json does not exist")
    folders = [dataset_dir / name, dataset_dir / "images" / name]
    for folder in folders:
        if folder.is_dir():
            return folder, annotations
    raise InputError(f"image folder {folders[0]} does not exist")

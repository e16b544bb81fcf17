"""Images and ground truth: data sets as they come, the built-in shapes, augmentation and batching."""

from pathlib import Path

from cond_detr.config import DataConfig
from cond_detr.data import shapes
from cond_detr.data.dataset import CocoDataset
from cond_detr.data.formats import find_split
from cond_detr.data.images import ImageLoader
from cond_detr.data.layouts import with_loader
from cond_detr.data.sharing import read_once


def open_split(data: DataConfig, split: str, stride: int, *, seed: int = 0) -> CocoDataset:
    """Opens a split of the data set that ``data`` names: a folder, or the built-in shapes.

    Args:
        data: folder, image sizes and augmentation.
        split: "train", which is augmented, or "val".
        stride: stride of the network, in pixels; images that are narrower for it are refused.
        seed: seed of the augmentation.

    Raises:
        InputError: if a folder or file is missing, or the annotations cannot be used.
    """
    load: ImageLoader
    if data.dataset_dir is None:
        annotations, load = shapes.make_split(split)
    else:
        found = find_split(Path(data.dataset_dir), split, data.val_fraction)
        annotations, load = with_loader(read_once(found.annotations), found.folder, data.exif)
    return CocoDataset(annotations, load, data, stride, train=split == "train", seed=seed)

"""Images and ground truth: COCO folders, the built-in shapes, augmentation, batching."""

from pathlib import Path

from cond_detr.config import DataConfig
from cond_detr.data import shapes
from cond_detr.data.coco import CocoDataset, FolderLoader, ImageLoader, find_split, read_annotations


def open_split(data: DataConfig, split: str, stride: int, *, seed: int = 0) -> CocoDataset:
    """The data set of a split: the folder that ``data`` names, or the built-in shapes.

    Args:
        data: folder, sizes and augmentation.
        split: "train", which is augmented, or "val".
        stride: the network's; smaller images are refused.
        seed: of the augmentation.

    Raises:
        InputError: something is missing or wrong in the folder.
    """
    load: ImageLoader
    if data.dataset_dir is None:
        annotations, load = shapes.make_split(split)
    else:
        folder, annotation_file = find_split(Path(data.dataset_dir), split)
        annotations, load = read_annotations(annotation_file), FolderLoader(folder)
    return CocoDataset(annotations, load, data, stride, train=split == "train", seed=seed)

"""Data sets as they come: COCO's format in several layouts, YOLO's and Pascal VOC's, recognised by what is there."""

from collections.abc import Callable
from pathlib import Path

from cond_detr.data.formats.coco import of_coco, of_one_file, of_roboflow
from cond_detr.data.formats.split import SPLITS, Split
from cond_detr.data.formats.voc import of_voc, voc_of_label_studio
from cond_detr.data.formats.yolo import check_descriptions, of_label_studio, of_yolo
from cond_detr.errors import InputError
from cond_detr.paths import is_folder, why_no_folder

__all__ = ["SPLITS", "Split", "find_split"]

OTHERS: tuple[Callable[[Path, str], Split | None], ...] = (of_roboflow, of_yolo, of_voc)
EXPECTED = (
    "annotations/instances_train.json (COCO), train/_annotations.coco.json (Roboflow), data.yaml (YOLO), images, "
    "labels and classes.txt (Label Studio's YOLO), Annotations and JPEGImages or images, or train/*.xml (Pascal VOC), "
    "or one annotation file in COCO's format"
)


def find_split(dataset_dir: Path, split: str, val_fraction: float) -> Split:
    """Finds a split of a data set.

    Where images are not divided into those for training and those for validation, they are divided here.

    Args:
        dataset_dir: folder of the data set.
        split: "train" or "val".
        val_fraction: part of the images that is for validation then.

    Raises:
        InputError: if a folder or file is missing, or no format is recognised.
    """
    # unlike Path's methods, os.path's are False for what no file can be called
    if not is_folder(dataset_dir):
        raise InputError(f"dataset folder {dataset_dir} {why_no_folder(dataset_dir)}")
    if found := of_coco(dataset_dir, split):
        return found
    for of_format in OTHERS:
        train, val = (of_format(dataset_dir, each) for each in SPLITS)
        if train and not val:
            return train.part(split, val_fraction)
        if found := train if split == "train" else val:
            return found
    for of_whole in (of_one_file, of_label_studio, voc_of_label_studio):
        if found := of_whole(dataset_dir):
            return found.part(split, val_fraction)
    check_descriptions(dataset_dir)
    raise InputError(f"dataset folder {dataset_dir} has no data set; expected {EXPECTED}")

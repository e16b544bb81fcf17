"""What is in a data set, in words."""

from cond_detr.data.annotations import Annotations
from cond_detr.data.dataset import CocoDataset


def describe_data(dataset: CocoDataset) -> str:
    """Describes a data set: numbers of images, boxes and classes, boxes that were dropped, and what was repaired."""
    return describe(dataset.annotations)


def describe(annotations: Annotations) -> str:
    """The same of annotations."""
    boxes = annotations.counts.sum()
    dropped = [f"{count} boxes dropped ({why})" for why, count in annotations.dropped.items()]
    remarks = [*dropped, *annotations.about_groups, *annotations.notes]
    counts = f"{len(annotations.images)} images, {boxes} boxes, {len(annotations.classes)} classes"
    return "; ".join([f"{annotations.name}: {counts}", *remarks])


def crowded(annotations: Annotations, num_queries: int) -> list[str]:
    """A warning if images have more objects than there are object queries: the others cannot be learnt nor found."""
    counts = annotations.counts
    many = int((counts > num_queries).sum())
    if not many:
        return []
    images = f"{many} image{'s have' if many > 1 else ' has'} more than {num_queries} objects, up to {counts.max()}"
    return [f"WARNING     {images}, but there are {num_queries} object queries: raise num_queries"]

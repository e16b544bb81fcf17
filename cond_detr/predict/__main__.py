"""``cond-detr predict``: finds objects in images; writes pictures with their boxes, and JSON files."""

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cond_detr.cli import command_parser, fail, positive, run, score
from cond_detr.data.annotation_checks import read_annotations
from cond_detr.errors import InputError
from cond_detr.files import make_folder, replacing, write_json, write_picture
from cond_detr.options import add_running
from cond_detr.predict.detect import detect
from cond_detr.predict.detections import MOST_MEASURED, Detections
from cond_detr.predict.drawing import draw_detections
from cond_detr.predict.results import detections_dict
from cond_detr.predict.sources import find_images, in_batches, readable
from cond_detr.weights.options import add_checkpoint, add_precision, opened


def picture_path(folder: Path, image: Path, taken: set[Path]) -> Path:
    """Chooses the file of a picture, ``folder/stem.png``, with a number if the name is taken.

    Args:
        folder: folder of the pictures.
        image: file of the image.
        taken: files that must not be overwritten; the chosen one is added.
    """
    path, i = folder / f"{image.stem}.png", 2
    while path.resolve() in taken:
        path, i = folder / f"{image.stem}-{i}.png", i + 1
    taken.add(path.resolve())
    return path


def write_coco(path: Path, found: Sequence[tuple[int | str, Detections]]) -> None:
    """Writes detections in COCO's result format, an image at a time: there may be many.

    Args:
        path: the file.
        found: the id of each image, and its detections.
    """
    results = itertools.chain.from_iterable(each.to_coco(image_id) for image_id, each in found)
    with replacing(path) as file:
        file.write(b"[")
        for number, result in enumerate(results):
            file.write(b",\n" * bool(number) + json.dumps(result).encode())
        file.write(b"]\n")


def parser() -> argparse.ArgumentParser:
    """Builds the argument parser of ``cond-detr predict``."""
    p = command_parser(
        "predict",
        __doc__,
        "--checkpoint runs/small/best.pt --output-dir out photo.jpg folder/",
        "--checkpoint model.safetensors --output-dir out --threshold 0.5 --batch-size 4 'folder/*.jpg'",
    )
    p.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="image files, folders of images, or quoted patterns"
    )
    add_checkpoint(p)
    p.add_argument(
        "--output-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for the pictures, predictions.json, and coco_results.json, which has all detections of any score",
    )
    p.add_argument(
        "--threshold",
        type=score,
        metavar="S",
        help="lowest score to show (default: the one at which F1 was highest in validation; 0.3 for weights of others)",
    )
    p.add_argument(
        "--batch-size",
        type=positive,
        default=1,
        metavar="N",
        help="consecutive images of equal size per forward pass (default: 1)",
    )
    p.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="annotation file with the images, whose ids coco_results.json takes (default: file names are ids there)",
    )
    p.add_argument("--no-labels", dest="labels", action="store_false", help="draw boxes without names and scores")
    add_running(p, ["device", "threads"])
    add_precision(p)
    return p


def ids_in(file: Path | None) -> dict[str, int]:
    """The ids of the images of an annotation file, by the names of their files without folders.

    Raises:
        InputError: if it cannot be used, or two of its images have the same name.
    """
    records = read_annotations(file).records if file else ()
    ids = {Path(record.file_name).name: record.image_id for record in records}
    if len(ids) < len(records):
        raise InputError(f"annotation file {file} has images of the same name in several folders")
    return ids


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``cond-detr predict``; see :func:`parser` for its arguments.

    Returns:
        The exit code: 0, or 2 if some images could not be used.

    Raises:
        InputError: if the checkpoint or the output folder cannot be used, or no image is found.
    """
    options = parser().parse_args(argv)
    model = opened(options)
    paths = find_images(options.images)
    ids = ids_in(options.annotations)
    if options.annotations:
        unknown = [path for path in paths if path.name not in ids]
        if unknown:
            raise InputError(f"annotation file {options.annotations} has no image {unknown[0].name}")
    make_folder(options.output_dir)
    # pictures never replace what they were made from, nor other photos beside it
    folders = {path.resolve().parent for path in paths}
    taken = set(options.output_dir.resolve().iterdir()) if options.output_dir.resolve() in folders else set()
    queries = model.config.model.num_queries
    threshold = model.threshold if options.threshold is None else options.threshold
    results: list[dict[str, Any]] = []
    any_score: list[tuple[int | str, Detections]] = []
    failed = 0
    pictures = tqdm(readable(paths, model.input_size), "predict", len(paths), unit="image", disable=None)
    try:
        for batch in in_batches(pictures, model.config.data, options.batch_size):
            if isinstance(batch, InputError):
                fail(str(batch))
                failed += 1
                continue
            all_found = detect(model, [image for _, image in batch], 0.0, max(queries, MOST_MEASURED))
            for (path, image), all_of_it in zip(batch, all_found, strict=True):
                found = all_of_it[:queries].above(threshold)
                picture = draw_detections(image, found, labels=options.labels)
                write_picture(picture_path(options.output_dir, path, taken), picture)
                results.append(detections_dict(path, image.size, found))
                any_score.append((ids.get(path.name, path.name), all_of_it[:MOST_MEASURED]))
    finally:  # whatever stops it, what is done is kept
        write_json(options.output_dir / "predictions.json", results)
        write_coco(options.output_dir / "coco_results.json", any_score)
    count = sum(len(result["detections"]) for result in results)
    what = f"{count} objects of a score of {threshold:g} or more in {len(results)} images"
    print(f"{what}; pictures and predictions.json in {options.output_dir}")
    return 2 if failed else 0


if __name__ == "__main__":
    run(main)

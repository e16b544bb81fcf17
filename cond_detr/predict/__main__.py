"""``cond-detr predict``: finds objects in images; writes pictures with their boxes, and JSON files."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cond_detr.cli import command_parser, fail, positive, run, score
from cond_detr.errors import InputError
from cond_detr.files import make_folder, write_json
from cond_detr.options import add_running
from cond_detr.predict.detect import detect
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
        help="folder for the pictures, predictions.json, and coco_results.json, where images are numbered from 1",
    )
    p.add_argument(
        "--threshold", type=score, default=0.3, metavar="S", help="lowest score to show (default: %(default)s)"
    )
    p.add_argument(
        "--batch-size",
        type=positive,
        default=1,
        metavar="N",
        help="consecutive images of equal size per forward pass (default: 1)",
    )
    add_running(p, ["device", "threads"])
    add_precision(p)
    return p


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
    make_folder(options.output_dir)
    # pictures never replace what they were made from, nor other photos beside it
    folders = {path.resolve().parent for path in paths}
    taken = set(options.output_dir.resolve().iterdir()) if options.output_dir.resolve() in folders else set()
    results: list[dict[str, Any]] = []
    in_coco_form: list[dict[str, Any]] = []
    failed = 0
    pictures = tqdm(readable(paths, model.input_size), "predict", len(paths), unit="image", disable=None)
    try:
        for batch in in_batches(pictures, model.config.data, options.batch_size):
            if isinstance(batch, InputError):
                fail(str(batch))
                failed += 1
                continue
            all_found = detect(model, [image for _, image in batch], options.threshold)
            for (path, image), found in zip(batch, all_found, strict=True):
                draw_detections(image, found).save(picture_path(options.output_dir, path, taken))
                results.append(detections_dict(path, image.size, found))
                in_coco_form += [{**result, "file_name": path.name} for result in found.to_coco(len(results))]
    finally:  # whatever stops it, what is done is kept
        write_json(options.output_dir / "predictions.json", results)
        write_json(options.output_dir / "coco_results.json", in_coco_form)
    count = sum(len(result["detections"]) for result in results)
    print(f"{count} objects in {len(results)} images; pictures and predictions.json in {options.output_dir}")
    return 2 if failed else 0


if __name__ == "__main__":
    run(main)

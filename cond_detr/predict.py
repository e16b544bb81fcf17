"""``python -m cond_detr.predict``: annotated pictures and a JSON file of the objects in images."""

import argparse
import glob
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from cond_detr.cli import (
    add_precision_option,
    command_parser,
    device_argument,
    fail,
    make_folder,
    positive,
    probability,
    run,
)
from cond_detr.config import DataConfig
from cond_detr.data.transforms import open_image, resized
from cond_detr.drawing import draw_detections
from cond_detr.errors import InputError
from cond_detr.evaluation import coco_results
from cond_detr.models.detector import Detector
from cond_detr.predictions import Detections
from cond_detr.run_folder import write_json
from cond_detr.settings import configure

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def find_images(arguments: Sequence[Path]) -> list[Path]:
    """Files as given, the images in folders and what patterns such as ``a*.jpg`` stand for, in order.

    Raises:
        InputError: a folder holds no image, or nothing has a pattern's form.
    """
    found = []
    for path in arguments:
        if not path.is_dir():
            found += matching(path) if glob.has_magic(str(path)) and not path.exists() else [path]
            continue
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if not inside:
            raise InputError(f"folder {path} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
        found += inside
    return found


def matching(pattern: Path) -> list[Path]:
    """The files of a pattern that no shell has replaced.

    Raises:
        InputError: there are none.
    """
    # pathlib refuses absolute patterns
    paths = [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207
    if not paths:
        raise InputError(f"no file is called {pattern}")
    return paths


def picture_path(folder: Path, image: Path, taken: set[Path]) -> Path:
    """``folder/stem.png``, numbered where another image has that name."""
    path, i = folder / f"{image.stem}.png", 2
    while path.resolve() in taken:
        path, i = folder / f"{image.stem}-{i}.png", i + 1
    taken.add(path.resolve())
    return path


def detections_dict(image: Path, size: tuple[int, int], found: Detections) -> dict[str, Any]:
    """One image's entry in predictions.json; boxes are left, top, right, bottom in pixels."""
    return {
        "file": str(image),
        "width": size[0],
        "height": size[1],
        "detections": [
            {"class": name, "score": round(score, 4), "box": [round(v, 2) for v in box]}
            for name, score, box in zip(found.names, found.scores.tolist(), found.boxes.tolist(), strict=True)
        ],
    }


class Picture(NamedTuple):
    """An image that could be read, and its file."""

    path: Path
    image: Image.Image


def readable(paths: Sequence[Path], stride: int) -> Iterator[Picture | InputError]:
    """Opens images one after the other; what cannot be used does not cost the others."""
    for path in paths:
        try:
            image = open_image(path, stride=stride)
        except InputError as error:
            yield error
        else:
            yield Picture(path, image)


def in_batches(
    pictures: Iterable[Picture | InputError], data: DataConfig, batch_size: int
) -> Iterator[list[Picture] | InputError]:
    """Neighbours that the network gets in the same size, so that none is padded, and errors where they occur."""
    batch: list[Picture] = []
    for picture in pictures:
        if batch and (
            isinstance(picture, InputError)
            or len(batch) == batch_size
            or network_size(picture.image, data) != network_size(batch[0].image, data)
        ):
            yield batch
            batch = []
        if isinstance(picture, InputError):
            yield picture
        else:
            batch.append(picture)
    if batch:
        yield batch


def network_size(image: Image.Image, data: DataConfig) -> tuple[int, int]:
    return resized(image.size, data.image_size, data.max_size)


def parser() -> argparse.ArgumentParser:
    p = command_parser(
        "predict",
        __doc__,
        "--checkpoint runs/small/best.pt --output-dir out photo.jpg folder/",
        "--checkpoint model.safetensors --output-dir out --threshold 0.5 --batch-size 4 'folder/*.jpg'",
    )
    p.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, folders of them, patterns")
    p.add_argument("--checkpoint", required=True, metavar="FILE", help="best.pt of a run, or another's detector")
    p.add_argument(
        "--output-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="for the pictures, predictions.json, and coco_results.json with the images numbered from 1",
    )
    p.add_argument(
        "--threshold", type=probability, default=0.3, metavar="S", help="least score to show (default: %(default)s)"
    )
    p.add_argument(
        "--batch-size", type=positive, default=1, metavar="N", help="images of one size at once (default: 1)"
    )
    p.add_argument(
        "--device", default="auto", metavar="D", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)"
    )
    add_precision_option(p, "as it was trained")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    device = device_argument(options.device)
    model = Detector.from_checkpoint(options.checkpoint).to(device)
    if options.matmul_precision:
        model.config = configure({"matmul_precision": options.matmul_precision}, model.config)
    paths = find_images(options.images)
    make_folder(options.output_dir)
    # pictures never replace what they were made from, nor other photos beside it
    folders = {path.resolve().parent for path in paths}
    taken = set(options.output_dir.resolve().iterdir()) if options.output_dir.resolve() in folders else set()
    results, in_coco_form, failed = [], [], 0
    pictures = tqdm(readable(paths, model.backbone.stride), "predict", len(paths), unit="image", disable=None)
    for batch in in_batches(pictures, model.config.data, options.batch_size):
        if isinstance(batch, InputError):
            fail(str(batch))
            failed += 1
            continue
        for (path, image), found in zip(
            batch, model.detect([image for _, image in batch], options.threshold), strict=True
        ):
            draw_detections(image, found).save(picture_path(options.output_dir, path, taken))
            results.append(detections_dict(path, image.size, found))
            in_coco_form += [{**result, "file_name": path.name} for result in coco_results(len(results), found)]
    write_json(options.output_dir / "predictions.json", results)
    write_json(options.output_dir / "coco_results.json", in_coco_form)
    count = sum(len(result["detections"]) for result in results)
    print(f"{count} objects in {len(results)} images; pictures and predictions.json in {options.output_dir}")
    return 2 if failed else 0


if __name__ == "__main__":
    run(main)

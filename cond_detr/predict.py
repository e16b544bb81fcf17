"""``python -m cond_detr.predict``: annotated pictures and a JSON file of the objects in images."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cond_detr.cli import device_argument, make_folder, probability, run
from cond_detr.data.transforms import check_size, open_image
from cond_detr.drawing import draw_detections
from cond_detr.errors import InputError
from cond_detr.models.detector import Detector
from cond_detr.predictions import Detections
from cond_detr.run_folder import write_json

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def find_images(arguments: Sequence[Path]) -> list[Path]:
    """Files as given and the images in folders, in order.

    Raises:
        InputError: a folder holds no image.
    """
    found = []
    for path in arguments:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not inside:
            raise InputError(f"folder {path} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
        found += inside
    return found


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


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m cond_detr.predict", description=__doc__)
    p.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of them")
    p.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="best.pt or last.pt of a run")
    p.add_argument(
        "--output-dir", type=Path, required=True, metavar="DIR", help="for the pictures and predictions.json"
    )
    p.add_argument(
        "--threshold", type=probability, default=0.3, metavar="S", help="least score to show (default: %(default)s)"
    )
    p.add_argument(
        "--device", default="auto", metavar="D", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)"
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    device = device_argument(options.device)
    model = Detector.from_checkpoint(options.checkpoint).to(device)
    paths = find_images(options.images)
    make_folder(options.output_dir)
    # pictures never replace what they were made from
    results, taken, failed = [], {path.resolve() for path in paths}, 0
    for path in tqdm(paths, "predict", unit="image", disable=None):
        try:
            image = open_image(path)
            check_size(image, model.backbone.stride, f"image {path}")
            found = model.predict([image], options.threshold)[0]
        except InputError as error:
            # one bad file does not cost the others
            print(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        draw_detections(image, found).save(picture_path(options.output_dir, path, taken))
        results.append(detections_dict(path, image.size, found))
    write_json(options.output_dir / "predictions.json", results)
    count = sum(len(result["detections"]) for result in results)
    print(f"{count} objects in {len(results)} images; pictures and predictions.json in {options.output_dir}")
    return 2 if failed else 0


if __name__ == "__main__":
    run(main)

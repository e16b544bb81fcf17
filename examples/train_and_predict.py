"""From a folder of annotated images to a detector, by one class.

    python examples/train_and_predict.py DIR PHOTO

DIR holds train/, val/ and annotations/instances_{train,val}.json in COCO's format.
"""

import argparse
from pathlib import Path

from cond_detr import ConditionalDETR


def main() -> None:
    """Trains, then finds objects in a photo, draws them, and exports the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_dir", type=Path, metavar="DIR")
    parser.add_argument("photo", type=Path, metavar="PHOTO")
    parser.add_argument("--preset", default="small", metavar="NAME", help="architecture (default: small)")
    parser.add_argument("--epochs", type=int, default=80, metavar="N", help="default: 80")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="default: a new folder under runs/")
    options = parser.parse_args()
    if not options.photo.exists():
        parser.error(f"{options.photo} does not exist")

    model = ConditionalDETR.from_preset(options.preset, fused_attn=True)
    model.train(dataset_dir=options.dataset_dir, epochs=options.epochs, output_dir=options.output_dir)

    found = model.predict(options.photo, threshold=0.3)
    for each in found:
        print(f"{each.name} {each.score:.2f} at {[round(value) for value in each.box]}")
    found.save("detections.png")
    model.export("model.onnx")


if __name__ == "__main__":
    main()

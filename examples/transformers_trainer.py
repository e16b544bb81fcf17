"""Fine-tunes a detector of the transformers package on a COCO-format folder, with its Trainer.

    python examples/transformers_trainer.py --dataset-dir DIR [--model microsoft/conditional-detr-resnet-50]

``accelerate()`` is the only line about this library; ``--plain`` leaves it out.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection, Trainer, TrainingArguments, set_seed

from cond_detr_kernels.transformers import accelerate


def main() -> None:
    """Trains, and prints the loss as the Trainer does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", default="microsoft/conditional-detr-resnet-50", help="a name on the hub or a folder")
    parser.add_argument("--steps", type=int, default=1000, metavar="N")
    parser.add_argument("--plain", action="store_true", help="without this library")
    parser.add_argument("--output-dir", default="runs/trainer", metavar="DIR")
    options = parser.parse_args()
    if not options.plain:
        print(accelerate())
    set_seed(0)  # for the new class head

    content = json.loads((options.dataset_dir / "annotations/instances_train.json").read_text())
    classes = {category["id"]: i for i, category in enumerate(content["categories"])}
    objects: dict[int, list[Any]] = {image["id"]: [] for image in content["images"]}
    for each in content["annotations"]:
        objects[each["image_id"]].append({**each, "category_id": classes[each["category_id"]]})

    processor: Any = AutoImageProcessor.from_pretrained(options.model)  # type: ignore[no-untyped-call]
    new_head = {"num_labels": len(classes), "ignore_mismatched_sizes": True}
    model = AutoModelForObjectDetection.from_pretrained(options.model, **new_head)

    def batch(images: list[Any]) -> Any:
        pixels = [Image.open(options.dataset_dir / "train" / image["file_name"]).convert("RGB") for image in images]
        targets = [{"image_id": image["id"], "annotations": objects[image["id"]]} for image in images]
        return processor(pixels, annotations=targets, return_tensors="pt")

    settings = TrainingArguments(
        output_dir=options.output_dir,
        max_steps=options.steps,
        per_device_train_batch_size=4,
        learning_rate=1e-4,
        logging_steps=1 if options.steps <= 100 else 50,
        remove_unused_columns=False,  # the images' fields go to ``batch``
    )
    Trainer(model, settings, data_collator=batch, train_dataset=content["images"]).train()


if __name__ == "__main__":
    main()

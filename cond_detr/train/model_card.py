"""A model card: what somebody who finds a checkpoint wants to know, as a README.md beside it."""

from typing import Any

from cond_detr.errors import shown
from cond_detr.evaluate.coco_metrics import Evaluation
from cond_detr.models.model import Model

NAMES = {"conditional-detr": "Conditional DETR", "detr": "DETR"}
# The front matter that model hubs read
HEADER = """---
library_name: cond-detr
pipeline_tag: object-detection
---
"""


def model_card(model: Model, evaluation: Evaluation, trained: dict[str, Any]) -> str:
    """The text of a model card, in Markdown.

    Args:
        model: the model.
        evaluation: its results on the validation images.
        trained: what its checkpoint says of the training.
    """
    m, data, train = model.config.model, model.config.data, model.config.train
    parameters = sum(p.numel() for p in model.network.parameters()) / 1e6
    settings = {
        "architecture": f"{NAMES.get(m.kind, m.kind)}, {m.backbone}{', dilated' if m.dilation else ''}",
        "preset": model.config.preset,
        "parameters": f"{parameters:.1f} million",
        "object queries": m.num_queries,
        "image size": f"short side {data.image_size} pixels, long side at most {data.max_size}",
        "data set": shown(str(trained["data"]))[1:-1],
        "epoch": f"{trained['epoch']} of {train.epochs}",
        "trained": f"{trained['date']}, cond-detr {trained['version']}",
    }
    metrics = {name: percent(value) for name, value in evaluation.metrics.items()}
    best = evaluation.best_f1_of_classes
    classes = [
        [cell(name), percent(found["AP"]), percent(found["AP50"]), f"{best_f1.threshold:g}" if best_f1 else "-"]
        for (name, found), best_f1 in zip(evaluation.per_class.items(), best.values(), strict=True)
    ]
    return f"""{HEADER}
# {settings["architecture"]}

{table(["", ""], [[name, cell(value)] for name, value in settings.items()])}

COCO's metrics on the validation images, in percent:

{table(list(metrics), [list(metrics.values())])}

{table(["class", "AP", "AP50", "threshold of the best F1"], classes)}

Detections of a score of {model_threshold(evaluation)} or more are shown by default. To use it:

```python
from cond_detr import {"DETR" if m.kind == "detr" else "ConditionalDETR"}

model = {"DETR" if m.kind == "detr" else "ConditionalDETR"}.from_checkpoint("best.pt")
found = model.predict("photo.jpg")
```
"""


def model_threshold(evaluation: Evaluation) -> str:
    """The threshold of the best F1 of all classes, or what stands for it."""
    return f"{evaluation.best_f1.threshold:g}" if evaluation.best_f1 else "0.3"


def percent(value: float | None) -> str:
    """A number from 0 to 1 in percent; a dash for none."""
    return "-" if value is None else f"{100 * value:.1f}"


def cell(value: object) -> str:
    """Text of a cell of a table: names from outside cannot end it, or be markup."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>#|!" else c for c in text)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

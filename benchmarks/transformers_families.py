"""The transformers package's detectors at their published sizes, with random weights, and batches for them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

Arguments = dict[str, Any]
# Classes of the labels; the token-based families have as many words
CLASSES = 8


@dataclass(frozen=True)
class Family:
    """A family of detectors.

    Attributes:
        name: what its classes begin with.
        settings: of its configuration, beyond the defaults.
        side: of its images in pixels.
        images: of a batch whose loss is measured; fewer where queries are thousands.
        text: whether it takes a text with the classes.
    """

    name: str
    settings: dict[str, Any]
    side: int = 224
    images: int = 16
    text: bool = False

    def build(self) -> nn.Module:
        """A model with random weights, in training mode, without dropout."""
        settings = dict(self.settings)
        if settings.pop("resnet", False):
            settings |= {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
            stages = settings.pop("stages", ["stage4"])
            settings["backbone_config"] = transformers.ResNetConfig(out_features=stages)  # type: ignore[call-arg]
        config = getattr(transformers, f"{self.name}Config")(**settings)
        for name in ("dropout", "attention_dropout", "activation_dropout", "text_dropout", "fusion_dropout"):
            if hasattr(config, name):
                setattr(config, name, 0.0)
        torch.manual_seed(0)
        model: nn.Module = getattr(transformers, f"{self.name}ForObjectDetection")(config)
        return model.train()

    def batch(
        self, images: int, targets: Sequence[int], seed: int = 0, device: torch.device | str = "cpu"
    ) -> Arguments:
        """Images with random pixels and objects, the same on every device."""
        torch.manual_seed(seed)
        pixels = torch.randn(images, 3, self.side, self.side).to(device)
        objects = [{name: value.to(device) for name, value in each.items()} for each in labels(targets)]
        given: Arguments = {"pixel_values": pixels, "labels": objects}
        if self.text:
            # [CLS], a word and a full stop for each class, [SEP]: the numbers of BERT's vocabulary
            words = [101, *(token for word in range(CLASSES) for token in (2000 + word, 1012)), 102]
            given["input_ids"] = torch.tensor([words] * images, device=device)
        return given


def labels(counts: Sequence[int]) -> list[dict[str, Tensor]]:
    """Random objects for each image."""
    return [
        {
            "class_labels": torch.randint(0, CLASSES, (n,)),
            "boxes": torch.cat([torch.rand(n, 2) * 0.6 + 0.2, torch.rand(n, 2) * 0.3 + 0.05], -1),
        }
        for n in counts
    ]


AUXILIARY = {"auxiliary_loss": True}
RESNET = {"resnet": True, "num_labels": 91, **AUXILIARY}
SCALES = ["stage2", "stage3", "stage4"]
FAMILIES = [
    Family("Detr", RESNET),
    Family("ConditionalDetr", RESNET),
    Family("DeformableDetr", {**RESNET, "stages": SCALES}),
    Family("DabDetr", RESNET),
    Family("TableTransformer", RESNET),
    Family("Yolos", {"num_labels": 91, "image_size": [224, 224]}),
    Family("RTDetr", {"num_labels": 80}),
    Family("RTDetrV2", {"num_labels": 80}),
    Family("DFine", {"num_labels": 80}),
    Family("Deimv2", {"num_labels": 80}),
    Family("LwDetr", {"num_labels": 91, "projector_scale_factors": [1.0], **AUXILIARY}, side=384, images=2),
    Family("RfDetr", {"num_labels": 91, **AUXILIARY}, side=392, images=2),
    Family("GroundingDino", AUXILIARY, images=4, text=True),
    Family("MMGroundingDino", AUXILIARY, images=4, text=True),
]


def captured_loss(model: Any, batch: Arguments) -> Arguments:
    """What a model gives to its loss function, each tensor detached from the network."""
    found: Arguments = {}

    def note(*args: Any, **kwargs: Any) -> Any:
        names = loss.__code__.co_varnames[: loss.__code__.co_argcount]
        found.update(dict(zip(names, args, strict=False)) | kwargs)
        raise Captured

    loss = model.loss_function
    model.loss_function = note
    try:
        model(**batch)
    except Captured:
        pass
    finally:
        del model._loss_function
    return {name: _leaf(name, value) for name, value in found.items()}


class Captured(Exception):  # noqa: N818 - not an error
    """The loss function was called."""


def _leaf(name: str, value: Any) -> Any:
    """Floating point tensors as leaves of the graph.

    With random weights all queries predict nearly the same, and rounding would decide on the matching: logits and boxes
    get noise.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    value = value.detach()
    if name.endswith(("logits", "class")):
        value = value + torch.randn_like(value)
    elif name.endswith(("boxes", "bboxes", "coord")):
        value = value * (0.8 + 0.2 * torch.rand_like(value))
    return value.requires_grad_()


def loss_and_gradients(
    loss: Callable[..., Any], given: Arguments
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """The loss, its parts, and the gradients of what was given."""
    leaves = {name: value for name, value in given.items() if isinstance(value, Tensor) and value.requires_grad}
    for leaf in leaves.values():
        leaf.grad = None
    total, parts, _ = loss(**given)
    total.backward()
    gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return total.detach(), {name: part.detach() for name, part in parts.items()}, gradients


def difference(a: Any, b: Any) -> float:
    """The largest difference between two results of the above, relative to each tensor's largest value."""
    worst = 0.0
    for mine, yours in zip(a, b, strict=True):
        pairs = [(mine, yours)] if isinstance(mine, Tensor) else [(mine[name], yours[name]) for name in mine | yours]
        for x, y in pairs:
            scale = max(float(x.abs().amax()), 1e-3) if x.numel() else 1.0
            apart = float((x - y).abs().amax()) / scale if x.numel() else 0.0
            worst = max(worst, apart if math.isfinite(apart) else math.inf)
    return worst

"""Both kernels in somebody else's detector: the Conditional DETR of the transformers package.

    python examples/kernels_in_transformers.py

Attention goes in through the package's registry of attention functions, matching by replacing its matcher. Nothing else
changes, and the losses stay the same.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, ConditionalDetrConfig, ResNetConfig
from transformers import ConditionalDetrForObjectDetection as TheirModel
from transformers.loss import loss_deformable_detr
from transformers.masking_utils import sdpa_mask

from cond_detr_kernels import HungarianMatcher, conditional_attention


def attention(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """As the package calls it: (B, H, N, d) heads and (B, 1, N, S) bool, True where a key counts."""
    d = value.shape[-1]
    if query.shape[-1] == 2 * d:  # conditional cross-attention: content and position, concatenated
        out = conditional_attention(
            query[..., :d],
            query[..., d:],
            key[..., :d],
            key[..., d:],
            value,
            key_padding_mask=None if attention_mask is None else ~attention_mask[:, 0, 0],
            dropout_p=dropout,
            scale=scaling,
        )
    else:
        out = F.scaled_dot_product_attention(query, key, value, attention_mask, dropout, scale=scaling)
    return out.transpose(1, 2), None


def matcher(class_cost: float, bbox_cost: float, giou_cost: float) -> HungarianMatcher:
    """Ours, by the arguments of the package's."""
    return HungarianMatcher(class_cost, bbox_cost, giou_cost, classification="focal")


AttentionInterface.register("cond_detr", attention)
AttentionMaskInterface.register("cond_detr", sdpa_mask)


def model() -> TheirModel:
    """A small one with random weights, the same each time."""
    torch.manual_seed(0)
    backbone = ResNetConfig(  # type: ignore[call-arg]
        depths=[1, 1, 1, 1], hidden_sizes=[32, 64, 96, 128], out_features=["stage4"]
    )
    config = ConditionalDetrConfig(  # type: ignore[call-arg]
        backbone_config=backbone,
        num_labels=20,
        encoder_layers=1,
        decoder_layers=6,
        auxiliary_loss=True,
        dropout=0.0,
    )
    return TheirModel(config)


def batch() -> dict[str, Any]:
    """Two images, the second of them narrower, with seven objects and none."""
    mask = torch.ones(2, 256, 320, dtype=torch.int64)
    mask[1, :, 200:] = 0
    boxes = torch.rand(7, 4) * 0.3 + 0.2
    objects = {"class_labels": torch.randint(20, (7,)), "boxes": boxes}
    nothing = {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    return {"pixel_values": torch.randn(2, 3, 256, 320), "pixel_mask": mask, "labels": [objects, nothing]}


def loss_and_gradient(detector: TheirModel, images: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Of one training step; the gradient of the object queries."""
    loss = detector(**images).loss
    loss.backward()
    return loss.detach(), detector.model.query_position_embeddings.weight.grad


def main() -> None:
    """Compares a training step of theirs with one that has our kernels."""
    images = batch()
    theirs = loss_and_gradient(model(), images)

    loss_deformable_detr.DeformableDetrHungarianMatcher = matcher  # type: ignore[misc, assignment]
    detector = model()
    detector.set_attn_implementation("cond_detr")
    ours = loss_and_gradient(detector, images)
    for what, a, b in zip(("loss", "gradient"), theirs, ours, strict=True):
        difference = float((a - b).abs().max() / a.abs().max())
        print(f"{what}: theirs {a.norm():.6f}, with our kernels {b.norm():.6f}, difference {difference:.1e}")
        if not difference < 1e-4:
            raise SystemExit(f"the {what} is another one")


if __name__ == "__main__":
    main()

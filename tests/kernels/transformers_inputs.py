"""Random arguments for the loss functions of the transformers package."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

LAYERS, QUERIES, CLASSES, TOKENS = 3, 40, 10, 20
Arguments = dict[str, Any]

SETTINGS = {
    "auxiliary_loss": True,
    "bbox_cost": 5,
    "bbox_loss_coefficient": 5,
    "class_cost": 2,
    "class_loss_coefficient": 1,
    "decoder_layers": LAYERS,
    "dice_loss_coefficient": 1,
    "eos_coefficient": 0.1,
    "focal_alpha": 0.25,
    "focal_loss_alpha": 0.75,
    "focal_loss_gamma": 2.0,
    "giou_cost": 2,
    "giou_loss_coefficient": 2,
    "group_detr": 3,
    "mal_alpha": None,
    "mask_loss_coefficient": 1,
    "matcher_alpha": 0.25,
    "matcher_bbox_cost": 5,
    "matcher_class_cost": 2,
    "matcher_gamma": 2.0,
    "matcher_giou_cost": 2,
    "max_num_bins": 32,
    "num_labels": CLASSES,
    "reg_scale": 4.0,
    "two_stage": True,
    "up": 0.5,
    "use_dense_one_to_one": True,
    "use_focal_loss": True,
    "weight_loss_bbox": 5,
    "weight_loss_ddf": 1.5,
    "weight_loss_fgl": 0.15,
    "weight_loss_giou": 2,
    "weight_loss_mal": 1,
    "weight_loss_vfl": 1,
}


def labels(counts: Sequence[int], masks: bool = False) -> list[dict[str, Tensor]]:
    """Random objects for each image."""
    found = []
    for n in counts:
        boxes = torch.cat([torch.rand(n, 2) * 0.6 + 0.2, torch.rand(n, 2) * 0.3 + 0.05], -1)
        found.append({"class_labels": torch.randint(0, CLASSES, (n,)), "boxes": boxes})
        if masks:
            found[-1]["masks"] = torch.rand(n, 24, 32) < 0.5
    return found


def leaf(*shape: int) -> Tensor:
    """Random numbers that want a gradient."""
    return torch.randn(*shape, requires_grad=True)


class Inputs:
    """Arguments for a loss type, and the tensors whose gradients are compared.

    Args:
        loss_type: a key of the package's table.
        counts: number of objects in each image.
        settings: beyond the ones above.
    """

    def __init__(self, loss_type: str, counts: Sequence[int], **settings: Any) -> None:
        self.counts, self.batch = counts, len(counts)
        self.config = SimpleNamespace(**{**SETTINGS, **settings})
        self.labels = labels(counts, masks="Segmentation" in loss_type)
        self.leaves: dict[str, Tensor] = {}
        make = {
            "ForObjectDetection": lambda: self.plain(CLASSES + 1),
            "ForSegmentation": lambda: self.masks(CLASSES + 1),
            "ConditionalDetrForSegmentation": lambda: self.masks(CLASSES),
            "LwDetrForObjectDetection": self.groups,
            "RfDetrForObjectDetection": self.groups,
            "GroundingDinoForObjectDetection": self.tokens,
            "MMGroundingDinoForObjectDetection": self.tokens,
            "RTDetrForObjectDetection": self.denoising,
            "RTDetrV2ForObjectDetection": self.denoising,
            "DFineForObjectDetection": self.edges,
            "Deimv2ForObjectDetection": self.edges,
        }
        self.make = make.get(loss_type, lambda: self.plain(CLASSES))

    def leaf(self, name: str, *shape: int) -> Tensor:
        """The tensor of a name, made when it is asked for first."""
        if name not in self.leaves:
            self.leaves[name] = leaf(*shape)
        return self.leaves[name]

    def plain(self, logits: int, queries: int = QUERIES) -> Arguments:
        """DETR's: (L, B, Q, C) of all layers."""
        classes = self.leaf("logits", LAYERS, self.batch, queries, logits)
        boxes = self.leaf("boxes", LAYERS, self.batch, queries, 4).sigmoid()
        return {
            "logits": classes[-1],
            "labels": self.labels,
            "device": classes.device,
            "pred_boxes": boxes[-1],
            "config": self.config,
            "outputs_class": classes,
            "outputs_coord": boxes,
        }

    def masks(self, logits: int) -> Arguments:
        """With masks of the last layer."""
        return {**self.plain(logits), "pred_masks": self.leaf("masks", self.batch, QUERIES, 12, 16)}

    def encoder(self, classes: int, queries: int) -> tuple[Tensor, Tensor]:
        """Logits and boxes of the encoder."""
        logits = self.leaf("encoder_logits", self.batch, queries, classes)
        return logits, self.leaf("encoder_boxes", self.batch, queries, 4).sigmoid()

    def groups(self) -> Arguments:
        """Of three groups of queries, and a query too many, which the package leaves out."""
        queries = 3 * QUERIES + 1
        logits, boxes = self.encoder(CLASSES, queries)
        return {**self.plain(CLASSES, queries), "enc_outputs_class": logits, "enc_outputs_coord": boxes}

    def tokens(self) -> Arguments:
        """Logits of tokens, some of them beyond the end of the text."""
        generator = torch.Generator().manual_seed(0)
        maps = torch.rand(self.batch, CLASSES, TOKENS, generator=generator) < 0.2
        maps[..., 0] = True
        text = torch.ones(self.batch, QUERIES, TOKENS, dtype=torch.bool)
        text[..., -3:] = False
        given, (logits, boxes) = self.plain(TOKENS), self.encoder(TOKENS, QUERIES)
        classes = given["outputs_class"].masked_fill(~text, -torch.inf)
        return {
            **given,
            "logits": classes[-1],
            "outputs_class": classes,
            "label_maps": tuple(maps.float()),
            "text_mask": text,
            "encoder_logits": logits.masked_fill(~text, -torch.inf),
            "encoder_pred_boxes": boxes,
        }

    def denoising(self) -> Arguments:
        """Two groups of denoising queries, of which the first half is positive."""
        most, groups = max(self.counts), 2
        noised = 2 * groups * most if most < QUERIES else 0
        given, (logits, boxes) = self.plain(CLASSES, noised + QUERIES), self.encoder(CLASSES, QUERIES)
        classes, coordinates = given["outputs_class"].transpose(0, 1), given["outputs_coord"].transpose(0, 1)
        positive = [torch.cat([torch.arange(n) + 2 * most * group for group in range(groups)]) for n in self.counts]
        meta = {"dn_positive_idx": positive, "dn_num_group": groups, "dn_num_split": [noised, QUERIES]}
        return {
            **given,
            "logits": classes[:, -1],
            "pred_boxes": coordinates[:, -1],
            "outputs_class": classes,
            "outputs_coord": coordinates,
            "enc_topk_logits": logits,
            "enc_topk_bboxes": boxes,
            "denoising_meta_values": meta if noised else None,
        }

    def edges(self) -> Arguments:
        """The same with distributions of edges."""
        given = self.denoising()
        batch, layers, queries = given["outputs_class"].shape[:3]
        generator = torch.Generator().manual_seed(0)
        return {
            **given,
            "predicted_corners": self.leaf("corners", batch, layers, queries, 4 * (self.config.max_num_bins + 1)),
            "initial_reference_points": torch.rand(batch, layers, queries, 4, generator=generator) * 0.3 + 0.3,
        }

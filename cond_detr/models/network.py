"""Base class of the networks: backbone, encoder and prediction heads. Subclasses choose the decoder."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cond_detr.config import ModelConfig
from cond_detr.errors import InputError, shown
from cond_detr.models.encoder import Encoder
from cond_detr.models.mlp import MLP
from cond_detr.models.position_encoding import image_position
from cond_detr.models.predictions import Predictions, boxes_at
from cond_detr.models.queries import Queries
from cond_detr.models.reference_point import ReferencePoint
from cond_detr.models.resnet import LAYOUTS, ResNet
from cond_detr_kernels import KeyMask, prepare_key_mask

# Initial score of every class, so that the many background queries do not dominate the first focal losses
PRIOR_SCORE = 0.01


def uses_reference_point(m: ModelConfig) -> bool:
    """Whether the network uses reference points.

    If not, no parameters are created for them: in distributed training, their gradients would never arrive.
    """
    return m.offset_regression or (m.kind == "conditional-detr" and m.spatial_query not in {"csq-t", "csq-c"})


def check(m: ModelConfig) -> None:
    """Checks that settings of the architecture are compatible.

    Raises:
        InputError: if they exclude each other, or the backbone is unknown.
    """
    if m.backbone not in LAYOUTS:
        raise InputError(f"unknown backbone {shown(m.backbone)}; there are {', '.join(LAYOUTS)}")
    if m.d_model % (4 * m.num_heads):
        raise InputError(f"`d_model` must be a multiple of 4 * `num_heads`, got {m.d_model} and {m.num_heads} heads")
    standard = ModelConfig()
    if m.kind == "detr":
        for name in ("spatial_query", "projection", "fused_attn", "queries"):
            if getattr(m, name) != getattr(standard, name):
                raise InputError(f"`{name}` belongs to conditional cross-attention, which plain DETR lacks")
    elif m.spatial_query in {"csq-t", "csq-p", "csq-c"} and m.projection != standard.projection:
        raise InputError(
            f"`projection` {m.projection} is a form of the transformation of the embedding, "
            f"of which `spatial_query` {m.spatial_query} has none"
        )
    if m.queries == "boxes":
        check_box_queries(m)


def check_box_queries(m: ModelConfig) -> None:
    """Checks that settings fit queries that are boxes.

    Raises:
        InputError: if they do not.
    """
    if m.spatial_query in {"csq-t", "csq-c"}:
        raise InputError(f"`queries` boxes needs their positions, which `spatial_query` {m.spatial_query} leaves out")
    if m.reference_point != ModelConfig().reference_point:
        raise InputError(f"`reference_point` {m.reference_point} belongs to `queries` points; boxes are their own")
    if not m.offset_regression:
        raise InputError("`queries` boxes are refined by offsets; `offset_regression` must be True, got False")


def padded_positions(padding: Tensor, *, fused: bool) -> KeyMask:
    """Prepares the mask of padded positions once for all layers.

    Args:
        padding: (B, S) bool, True where padded.
        fused: whether the fused kernels are used.
    """
    return prepare_key_mask(padding) if fused else KeyMask(padding)


class Network(nn.Module):
    """Base class of the networks, from images to predictions.

    Args:
        m: architecture.
        num_classes: number of classes.
        softmax: train with DETR's softmax loss, which has one more output, for no object.

    Attributes:
        kind: the setting ``kind`` that stands for the class.
        decoder_class: the decoder.

    Raises:
        InputError: if settings exclude each other, or are those of another kind.
    """

    kind: ClassVar[str]
    decoder_class: ClassVar[type[nn.Module]]

    def __init__(self, m: ModelConfig, num_classes: int, *, softmax: bool = False) -> None:
        super().__init__()
        if m.kind != self.kind:
            raise InputError(f"these settings are of a {m.kind}, and {type(self).__name__} is a {self.kind}")
        check(m)
        self.m = m
        self.softmax = softmax
        # convolutions are faster on channels-last tensors, on the CPU as on CUDA
        self.backbone = ResNet(LAYOUTS[m.backbone], m.dilation)
        self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.input_proj = nn.Conv2d(self.backbone.channels, m.d_model, 1)
        self.encoder = Encoder(m.encoder_layers, m.d_model, m.num_heads, m.ffn_dim, m.dropout, fused=m.fused_attn)
        boxes = m.queries == "boxes"
        self.query_embed = None if boxes else nn.Embedding(m.num_queries, m.d_model)
        reference_point = "boxes" if boxes else m.reference_point if uses_reference_point(m) else "origin"
        self.reference_point = ReferencePoint(reference_point, m.num_queries, m.d_model)
        self.decoder = type(self).decoder_class(m)
        self.class_head = new_class_head(m.d_model, num_classes, softmax=softmax)
        self.box_head = MLP(m.d_model, m.d_model, 4, num_layers=3)
        self._initialise()

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.class_head.weight.device

    def object_queries(self) -> Queries:
        """The network's own object queries."""
        embedding = None if self.query_embed is None else self.query_embed.weight[None]
        return Queries(embedding, self.reference_point(embedding).sigmoid())

    def forward(self, images: Tensor, padding: Tensor | None = None, queries: Queries | None = None) -> Predictions:
        """Predicts classes and boxes of all object queries, in every decoder layer.

        Args:
            images: (B, 3, H, W) fp32, normalised.
            padding: (B, H, W) bool, True where padded; None if nothing is.
            queries: the queries of a training step, its own among them; None for :meth:`object_queries`.
        """
        features = self.input_proj(self.backbone(images))
        d_model, height, width = features.shape[1:]
        if padding is None:
            mask = None
            position = image_position(torch.zeros(1, height, width, dtype=torch.bool, device=images.device), d_model)
        else:
            padding = F.interpolate(padding[:, None].float(), size=(height, width))[:, 0].bool()
            mask = padded_positions(padding.flatten(1), fused=self.m.fused_attn)
            position = image_position(padding, d_model)
        memory = self.encoder(features.flatten(2).transpose(1, 2), position.dense(), mask)
        if queries is None:
            queries = self.object_queries()
        outputs, raw, reference = self.decoder(queries, memory, position, mask, self.box_head)
        boxes = boxes_at(raw, reference) if self.m.offset_regression else raw.float().sigmoid()
        return Predictions(self.class_head(outputs).float(), boxes)

    def renew_class_head(self, num_classes: int) -> None:
        """Replaces the class head by an untrained one for ``num_classes`` classes."""
        head = new_class_head(self.m.d_model, num_classes, softmax=self.softmax)
        self.class_head = head.to(self.device)

    def _initialise(self) -> None:
        """Xavier initialisation of the transformer; a box head whose first boxes lie at the reference points."""
        for module in (self.encoder, self.decoder, self.reference_point):
            for name, parameter in module.named_parameters():
                if parameter.dim() > 1 and name != "points":
                    nn.init.xavier_uniform_(parameter)
        if self.query_embed is not None:
            nn.init.normal_(self.query_embed.weight)
        if self.m.offset_regression:
            for parameter in self.box_head.layers[-1].parameters():
                nn.init.zeros_(parameter)


def new_class_head(d_model: int, num_classes: int, *, softmax: bool) -> nn.Linear:
    """Creates a class head: (..., d_model) -> (..., C) logits, or C + 1 of them for the softmax loss."""
    head = nn.Linear(d_model, num_classes + int(softmax))
    if not softmax:
        nn.init.constant_(head.bias, -math.log((1 - PRIOR_SCORE) / PRIOR_SCORE))
    return head

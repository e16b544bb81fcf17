"""Conditional DETR: backbone, encoder, conditional decoder, heads (Meng et al., ICCV 2021)."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from cond_detr.checkpoints import Checkpoint
from cond_detr.classes import Classes
from cond_detr.config import Config, ModelConfig, preset
from cond_detr.data.transforms import ImageLike, open_image, to_network_input
from cond_detr.errors import InputError
from cond_detr.models.decoder import ConditionalDecoder
from cond_detr.models.encoder import Encoder
from cond_detr.models.mlp import MLP
from cond_detr.models.position_encoding import image_position
from cond_detr.models.resnet import LAYOUTS, ResNet
from cond_detr.predictions import Detections, Predictions, detections

# Every class starts with this score, so that the many background queries do not swamp the first focal losses
PRIOR_SCORE = 0.01


class ConditionalDETR(nn.Module):
    """The detector.

    Args:
        config: architecture and image sizes.
        classes: names and category ids of the classes to tell apart.
    """

    def __init__(self, config: Config, classes: Classes) -> None:
        super().__init__()
        self.config = config
        self.classes = classes
        m = config.model
        _check(m)
        # convolutions are faster on channels-last tensors, on the CPU as on CUDA
        self.backbone = ResNet(LAYOUTS[m.backbone], m.dilation)
        self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.input_proj = nn.Conv2d(self.backbone.channels, m.d_model, 1)
        self.encoder = Encoder(m.encoder_layers, m.d_model, m.num_heads, m.ffn_dim, m.dropout)
        self.query_embed = nn.Embedding(m.num_queries, m.d_model)
        self.decoder = ConditionalDecoder(
            m.decoder_layers, m.d_model, m.num_heads, m.ffn_dim, m.dropout, fused=m.fused_attn
        )
        self.class_head = nn.Linear(m.d_model, len(classes))
        self.box_head = MLP(m.d_model, m.d_model, 4, num_layers=3)
        self._initialise()

    @classmethod
    def from_preset(cls, name: str, num_classes: int) -> "ConditionalDETR":
        """An untrained model of a preset (:data:`cond_detr.config.PRESETS`) with unnamed classes."""
        return cls(preset(name), Classes.numbered(num_classes))

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> "ConditionalDETR":
        """The model of a checkpoint that ``python -m cond_detr.train`` wrote, in evaluation mode.

        Raises:
            InputError: the file is missing or not such a checkpoint.
        """
        saved = Checkpoint.load(Path(path))
        model = cls(saved.config, saved.classes)
        saved.load_into(model, average=True)
        return model.eval()

    def forward(self, images: Tensor, padding: Tensor | None = None) -> Predictions:
        """Detects.

        Args:
            images: (B, 3, H, W) normalised.
            padding: (B, H, W) bool, True where padded; None if nothing is.
        """
        features = self.input_proj(self.backbone(images))
        d_model, height, width = features.shape[1:]
        if padding is None:
            mask = None
            position = image_position(torch.zeros(1, height, width, dtype=torch.bool, device=images.device), d_model)
        else:
            padding = F.interpolate(padding[:, None].float(), size=(height, width))[:, 0].bool()
            mask = padding.flatten(1)
            position = image_position(padding, d_model)
        memory = self.encoder(features.flatten(2).transpose(1, 2), position.dense(), mask)
        outputs, reference = self.decoder(self.query_embed.weight[None], memory, position, mask)
        return Predictions(self.class_head(outputs).float(), self._boxes(outputs, reference))

    def _boxes(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """The box head predicts centres as offsets from the reference point before the sigmoid (equation 1)."""
        raw = self.box_head(outputs).float()
        centre = raw[..., :2] + torch.logit(reference, eps=1e-5)
        return torch.cat([centre, raw[..., 2:]], dim=-1).sigmoid()

    def predict(self, images: Sequence[ImageLike], threshold: float = 0.3) -> list[Detections]:
        """Detects objects in images of any size, one image at a time so that none depends on its company.

        Args:
            images: paths, PIL images or (H, W, 3) uint8 arrays.
            threshold: the least score to report.

        Returns:
            The detections of each image, best first.

        Raises:
            InputError: an image cannot be read or is too small.
        """
        was_training = self.training
        self.eval()
        found = [self._detect(open_image(image), threshold) for image in images]
        self.train(was_training)
        return found

    @torch.inference_mode()
    def _detect(self, image: Image.Image, threshold: float) -> Detections:
        data = self.config.data
        pixels = to_network_input(image, data.image_size, data.max_size, self.backbone.stride)
        predictions = self(pixels[None].to(self.query_embed.weight.device))
        return detections(predictions, [image.size], self.classes.names)[0].above(threshold)

    def _initialise(self) -> None:
        """Xavier for the transformer, a low prior score for the classes, boxes that start at the reference points."""
        for module in (self.encoder, self.decoder):
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.query_embed.weight)
        nn.init.constant_(self.class_head.bias, -math.log((1 - PRIOR_SCORE) / PRIOR_SCORE))
        for parameter in self.box_head.layers[-1].parameters():
            nn.init.zeros_(parameter)


def _check(model: ModelConfig) -> None:
    if model.backbone not in LAYOUTS:
        raise InputError(f"unknown backbone {model.backbone!r}; there are {', '.join(LAYOUTS)}")
    if model.d_model % (4 * model.num_heads):
        raise InputError(
            f"d_model must be a multiple of 4 * num_heads, got {model.d_model} and {model.num_heads} heads"
        )

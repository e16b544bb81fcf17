"""What all detectors share: backbone, encoder, heads, prediction. They differ in their decoders."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, overload

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from typing_extensions import Self

from cond_detr.checkpoints import LoadedWeights, load_weights
from cond_detr.classes import Classes
from cond_detr.config import Config, ModelConfig, preset
from cond_detr.data.transforms import ImageLike, is_one, open_image, to_network_input
from cond_detr.errors import InputError
from cond_detr.models.encoder import Encoder
from cond_detr.models.mlp import MLP
from cond_detr.models.position_encoding import image_position
from cond_detr.models.reference_point import ReferencePoint
from cond_detr.models.resnet import LAYOUTS, ResNet
from cond_detr.precision import fp32_products
from cond_detr.predictions import Detections, Predictions, check_threshold, detections
from cond_detr.settings import DERIVED, SETTINGS, configure, known
from cond_detr_kernels import KeyMask, prepare_key_mask

# Every class starts with this score, so that the many background queries do not swamp the first focal losses
PRIOR_SCORE = 0.01


def uses_reference_point(m: ModelConfig) -> bool:
    """Whether it makes a difference. What does not is not built: processes would wait for its gradients in vain."""
    return m.offset_regression or (m.kind == "conditional-detr" and m.spatial_query not in {"csq-t", "csq-c"})


def check(m: ModelConfig) -> None:
    """Raises the sentence for settings that make no model."""
    if m.backbone not in LAYOUTS:
        raise InputError(f"unknown backbone {m.backbone!r}; there are {', '.join(LAYOUTS)}")
    if m.d_model % (4 * m.num_heads):
        raise InputError(f"d_model must be a multiple of 4 * num_heads, got {m.d_model} and {m.num_heads} heads")
    standard = ModelConfig()
    if m.kind == "detr":
        for name in ("spatial_query", "projection", "fused_attn"):
            if getattr(m, name) != getattr(standard, name):
                raise InputError(
                    f"--{name.replace('_', '-')} belongs to conditional cross-attention, which plain DETR lacks"
                )
    elif m.spatial_query in {"csq-t", "csq-p", "csq-c"} and m.projection != standard.projection:
        raise InputError(
            f"--projection {m.projection} is a form of the transformation of the embedding, "
            f"of which --spatial-query {m.spatial_query} has none"
        )


def padded_positions(padding: Tensor, *, fused: bool) -> KeyMask:
    """(B, S) bool, True where padded: for all layers, in the form of the fused kernels if these are used."""
    return prepare_key_mask(padding) if fused else KeyMask(padding)


class Detector(nn.Module):
    """A detector of a kind that a subclass is.

    Args:
        config: architecture, classification and image sizes.
        classes: names and category ids of the classes to tell apart.

    Raises:
        InputError: settings that exclude each other.
    """

    kind: ClassVar[str]
    decoder_class: ClassVar[type[nn.Module]]

    def __init__(self, config: Config, classes: Classes) -> None:
        super().__init__()
        self.config = config
        self.classes = classes
        m = config.model
        if m.kind != self.kind:
            raise InputError(f"these settings are of a {m.kind}, and {type(self).__name__} is a {self.kind}")
        check(m)
        # convolutions are faster on channels-last tensors, on the CPU as on CUDA
        self.backbone = ResNet(LAYOUTS[m.backbone], m.dilation)
        self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.input_proj = nn.Conv2d(self.backbone.channels, m.d_model, 1)
        self.encoder = Encoder(m.encoder_layers, m.d_model, m.num_heads, m.ffn_dim, m.dropout, fused=m.fused_attn)
        self.query_embed = nn.Embedding(m.num_queries, m.d_model)
        reference_point = m.reference_point if uses_reference_point(m) else "origin"
        self.reference_point = ReferencePoint(reference_point, m.num_queries, m.d_model)
        self.decoder = type(self).decoder_class(m)
        self.softmax = config.loss.classification == "softmax"
        self.class_head = self._new_class_head()
        self.box_head = MLP(m.d_model, m.d_model, 4, num_layers=3)
        self._initialise()

    @staticmethod
    def adapt(name: str) -> Config:
        """The settings of a preset for this kind of detector."""
        return preset(name)

    @classmethod
    def from_preset(cls, name: str, num_classes: int = 91, **settings: Any) -> Self:
        """An untrained model with unnamed classes. Its weights are drawn from torch's generator.

        Args:
            name: of the preset, a key of :data:`cond_detr.config.PRESETS`.
            num_classes: to tell apart; :meth:`train` changes it to what the data set has.
            settings: other than the preset's, by the names that ``python -m cond_detr.train`` has for them, such as
                ``fused_attn=True`` or ``num_queries=100``.

        Raises:
            InputError: there is no such preset, setting or value.
        """
        if not isinstance(num_classes, int) or num_classes < 1:
            raise InputError(f"num_classes must be a whole number of at least 1, got {num_classes!r}")
        known(settings, (SETTINGS.keys() | DERIVED) - {"model"})
        return cls(configure(settings, cls.adapt(name)), Classes.numbered(num_classes))

    @classmethod
    def from_checkpoint(cls, source: str | Path, *, preset_name: str | None = None) -> Self:
        """The model of a checkpoint in evaluation mode.

        Args:
            source: path, or URL as text, of a file that ``python -m cond_detr.train`` wrote, or of a detector of the
                authors' repository, of DETR's or of the transformers package.
            preset_name: architecture of another's detector; by default the one of r50 and r101 that fits.

        Raises:
            InputError: the file is missing, not such a checkpoint, or one of another kind of detector.
        """
        from cond_detr.foreign import open_checkpoint
        from cond_detr.models import build, check_buildable

        saved = open_checkpoint(str(source), preset_name=preset_name)
        check_buildable(saved)
        model = build(saved.config, saved.classes)
        if not isinstance(model, cls):
            raise InputError(f"checkpoint {source} is of a {type(model).__name__}, not of a {cls.__name__}")
        saved.load_into(model, average=True)
        return model.eval()

    def load_weights(self, source: str | Path) -> LoadedWeights:
        """Starts from weights trained elsewhere, for as much as fits; printing the result tells what did.

        Args:
            source: path, or URL as text, of a torchvision ResNet, or of a detector as for :meth:`from_checkpoint`.

        Raises:
            InputError: the file is missing, damaged, or has nothing for this model.
        """
        return load_weights(self, str(source))

    def train(self, mode: bool = True, *, dataset_dir: str | Path | None = None, **settings: Any) -> Self:
        """A whole training on a data set; without one, training mode on or off, as of every module.

        Everything is as with ``python -m cond_detr.train``: the run folder with log, curves and checkpoints, and an
        interrupted run continues by that command's ``--resume``. If the data set has other classes, by name, than the
        model, the class head begins anew. Afterwards the model is the one of the best epoch, in evaluation mode and on
        the device of the training; until then, and if anything goes wrong, it stays what it was.

        Args:
            mode: of the module.
            dataset_dir: folder in COCO's format; by default, if there are settings, the model's last one, or the
                built-in shapes.
            settings: what the command has as options for training, such as ``epochs``, ``batch_size``, ``lr``,
                ``image_size``, ``amp``, ``output_dir`` and ``device`` (default: the GPU that the model is on, or any).

        Raises:
            InputError: there is no such setting or value, or something is wrong with the data set.
            cond_detr.trainer.Interrupted: SIGINT or SIGTERM came; the state is saved.
        """
        if dataset_dir is not None:
            settings["dataset_dir"] = dataset_dir
        if not settings and isinstance(mode, bool):
            return super().train(mode)
        if mode is not True:
            raise InputError(f"train takes a folder as dataset_dir=..., and a mode without settings, got {mode!r}")
        from cond_detr.fit import fit

        fit(self, settings)
        return self.eval()

    def export(self, path: str | Path, kind: str | None = None) -> None:
        """Writes a file for deployment: ONNX, torch.export or AOTInductor; see :func:`cond_detr.export.export`."""
        from cond_detr.export import export

        export(self, path, kind)

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
            mask = padded_positions(padding.flatten(1), fused=self.config.model.fused_attn)
            position = image_position(padding, d_model)
        memory = self.encoder(features.flatten(2).transpose(1, 2), position.dense(), mask)
        query_pos = self.query_embed.weight[None]
        reference = self.reference_point(query_pos).sigmoid()
        outputs = self.decoder(query_pos, reference, memory, position, mask)
        return Predictions(self.class_head(outputs).float(), self._boxes(outputs, reference))

    def _boxes(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """The box head predicts centres as offsets from the reference point before the sigmoid (equation 1)."""
        raw = self.box_head(outputs).float()
        if self.config.model.offset_regression:
            raw = torch.cat([raw[..., :2] + torch.logit(reference, eps=1e-5), raw[..., 2:]], dim=-1)
        return raw.sigmoid()

    @overload  # a string is a sequence of strings, but not meant
    def predict(self, images: ImageLike, threshold: float = 0.3) -> Detections: ...  # type: ignore[overload-overlap]

    @overload
    def predict(self, images: Sequence[ImageLike], threshold: float = 0.3) -> list[Detections]: ...

    def predict(self, images: ImageLike | Sequence[ImageLike], threshold: float = 0.3) -> Detections | list[Detections]:
        """Detects objects in images of any size, one image at a time so that none depends on its company.

        Args:
            images: paths, PIL images or (H, W, 3) uint8 arrays, or one of these. EXIF tags turn them.
            threshold: the least score to report, in [0, 1].

        Returns:
            The detections of each image, best first; of one image alone those.

        Raises:
            InputError: an image cannot be read, is no image or is too small; the threshold is no score; the weights
                are not fp32.
        """
        check_threshold(threshold)
        stride = self.backbone.stride
        if is_one(images):
            return self.detect([open_image(images, stride=stride)], threshold)[0]
        return [self.detect([open_image(image, stride=stride)], threshold)[0] for image in images]

    @torch.no_grad()
    def detect(self, images: Sequence[Image.Image], threshold: float) -> list[Detections]:
        """What :meth:`predict` does with RGB images that are of one size for the network, all of them at once."""
        weight = self.query_embed.weight
        if weight.dtype != torch.float32:
            raise InputError(f"a detector must have float32 weights (autocast makes it faster), got {weight.dtype}")
        data = self.config.data
        pixels = torch.stack([to_network_input(image, data.image_size, data.max_size) for image in images])
        modes = [(module, module.training) for module in self.modules()]
        try:
            with fp32_products(self.config.train.matmul_precision, weight.device):
                predictions = self.eval()(pixels.to(weight.device))
        finally:
            for module, mode in modes:
                module.training = mode
        found = detections(predictions, [image.size for image in images], self.classes, softmax=self.softmax)
        return [each.above(threshold) for each in found]

    def adopt(self, classes: Classes) -> bool:
        """Tells other classes apart from now on.

        Returns:
            Whether the class head fits them, being for the same names or for as many without names; if not, it is a new
            one.
        """
        fits = self.classes.match(classes.names)
        self.classes = classes
        if not fits:
            self.class_head = self._new_class_head()
        return fits

    def take_over(self, other: "Detector") -> None:
        """Becomes what another one of the same architecture has become: settings, classes, weights, device."""
        self.config = other.config
        self.adopt(other.classes)
        self.to(other.query_embed.weight.device)
        self.load_state_dict(other.state_dict())

    def _new_class_head(self) -> nn.Linear:
        head = nn.Linear(self.config.model.d_model, len(self.classes) + int(self.softmax))
        if not self.softmax:
            nn.init.constant_(head.bias, -math.log((1 - PRIOR_SCORE) / PRIOR_SCORE))
        return head

    def _initialise(self) -> None:
        """Xavier for the transformer, boxes that start at the reference points."""
        for module in (self.encoder, self.decoder, self.reference_point):
            for name, parameter in module.named_parameters():
                if parameter.dim() > 1 and name != "points":
                    nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.query_embed.weight)
        if self.config.model.offset_regression:
            for parameter in self.box_head.layers[-1].parameters():
                nn.init.zeros_(parameter)

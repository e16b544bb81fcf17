"""The Python interface: detectors that can be trained, evaluated, used, saved and exported."""

import os
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, cast

import torch
from typing_extensions import Self

from cond_detr.classes import MOST_CLASSES, Classes
from cond_detr.config import RunConfig, TrainConfig, configure
from cond_detr.devices import device_named
from cond_detr.errors import InputError, shown
from cond_detr.evaluate.coco_metrics import Evaluation
from cond_detr.evaluate.over_dataset import evaluate
from cond_detr.keywords import PresetSettings, TrainingSettings, keywords_of, named_keywords_of
from cond_detr.models.model import Model
from cond_detr.paths import as_path
from cond_detr.predict.detect import detector_of
from cond_detr.predict.predictor import Means, Predictor
from cond_detr.presets import configured
from cond_detr.settings import declared
from cond_detr.train.run import Running, train_model
from cond_detr.weights.checkpoint import Checkpoint
from cond_detr.weights.opening import open_model
from cond_detr.weights.transfer import LoadedWeights, load_weights

D = TypeVar("D", bound="Detector")


class Detector(Model, Predictor):
    """Base class of the detectors: a network with its settings and classes.

    Attributes:
        network: the ``torch.nn.Module``, from (B, 3, H, W) normalised images to :class:`cond_detr.Predictions`.
        config: settings of the network and of its training.
        classes: names and category ids of the classes, in the order of the network's outputs.

    Raises:
        InputError: if the settings are those of another kind of detector.
    """

    kind: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        if self.kind is not None and self.config.model.kind != self.kind:
            raise InputError(
                f"these settings are of a {self.config.model.kind}, and {type(self).__name__} is a {self.kind}"
            )

    @classmethod
    @named_keywords_of(PresetSettings)
    def from_preset(cls: type[D], name: str, settings: dict[str, Any]) -> D:
        """Creates an untrained detector with unnamed classes; its weights are drawn from torch's generator.

        Args:
            name: name of the preset, a key of :data:`cond_detr.PRESETS`.
            settings: ``num_classes``, 91 by default (:meth:`train` changes it to the data set's number), and settings
                that differ from the preset's, such as ``fused_attn=True`` or ``num_queries=100``.

        Raises:
            InputError: if the preset or a setting does not exist, or a setting cannot have its value.
        """
        count = settings.pop("num_classes", 91)
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST_CLASSES:
            wanted = f"a whole number of at least 1 and at most {MOST_CLASSES}"
            raise InputError(f"num_classes must be {wanted}, got {shown(count)}")
        if cls.kind is not None:
            settings.setdefault("kind", cls.kind)
        return cls._of(Model.new(configured(name, settings), Classes.numbered(count)), "the preset with these settings")

    @classmethod
    def from_checkpoint(cls, source: str | Path, *, preset_name: str | None = None) -> Self:
        """Loads a detector from a checkpoint, in evaluation mode.

        Args:
            source: path, or URL or published name as a string, of a checkpoint of ``cond-detr train``, of the authors'
                repository, of DETR's repository or of the transformers package.
            preset_name: architecture of a checkpoint that ``cond-detr`` did not write; by default r50 or r101,
                whichever fits.

        Raises:
            InputError: if the file is missing, is not such a checkpoint, or holds another kind of detector.
        """
        return cls._of(open_model(source, preset_name=preset_name), f"checkpoint {source}")

    @classmethod
    def from_pretrained(cls, name: str) -> Self:
        """Loads a published detector, such as ``"conditional-detr-r50"``, or ``"namespace/name"`` of the hub.

        Another name for :meth:`from_checkpoint`. Files are downloaded once; docs/train_on_your_data.md lists them.

        Raises:
            InputError: if there is no such detector, or it cannot be downloaded.
        """
        return cls.from_checkpoint(name)

    @classmethod
    def _of(cls, model: Model, called: str = "the model") -> Self:
        """Wraps a model in this class; on the base class, in the subclass of its kind.

        Raises:
            InputError: if the model is of another kind.
        """
        kind = model.config.model.kind
        fitting = next(each for each in (ConditionalDETR, DETR) if each.kind == kind)
        if cls.kind not in {None, kind}:
            raise InputError(f"{called} is of a {fitting.__name__}, not of a {cls.__name__}")
        return cast(
            Self, (fitting if cls is Detector else cls)(model.network, model.config, model.classes, model.trained)
        )

    def load_weights(self, source: str | Path) -> LoadedWeights:
        """Loads pretrained weights, all tensors that fit.

        Args:
            source: path, URL or published name of a torchvision ResNet, or of a detector as for
                :meth:`from_checkpoint`.

        Returns:
            The names of the tensors that were loaded and that were not; prints as a summary.

        Raises:
            InputError: if the file is missing or damaged, or no tensor fits.
        """
        return load_weights(self, str(source))

    @keywords_of(TrainingSettings)
    def train(self: D, settings: dict[str, Any]) -> D:
        """Trains the detector on the folder ``dataset_dir``, by default its last data set or the built-in shapes.

        Works like ``cond-detr train``: it writes a run folder with log, curves and checkpoints, and that command's
        ``--resume`` continues an interrupted run. If the class names of the data set differ from the detector's, the
        class head is initialised anew. Afterwards the detector holds the weights of the best epoch, in evaluation
        mode, on the device of the training, in a new ``network``. If training fails, it is left unchanged.

        Args:
            settings: settings of data, loss, training and running, as the command has options, such as ``epochs``,
                ``batch_size``, ``lr``, ``image_size``, ``amp``, ``output_dir`` and ``device`` (default: the GPU that
                the detector is on, or any).

        Returns:
            The detector itself.

        Raises:
            InputError: if a setting does not exist or cannot have its value, or the data set cannot be used.
            cond_detr.train.interruption.Interrupted: on SIGINT or SIGTERM, after the state has been saved.
        """
        if not settings:  # in torch's modules that switches a mode
            raise InputError("train takes settings, such as dataset_dir=...; for the mode use network.train()")
        how = {name: settings.pop(name) for name in declared(RunConfig) if name in settings}
        if isinstance(how.get("device"), torch.device):
            how["device"] = str(how["device"])
        config = configure(self.config, settings)
        if config.loss.classification != self.config.loss.classification:
            raise InputError("`classification` belongs to the model: it decides what its outputs are")
        # torchrun gives each process its own GPU
        stays = self.device.type == "cuda" and "LOCAL_RANK" not in os.environ
        running = Running.of(how, default_device=str(self.device) if stays else None)
        trained = train_model(self, config, running)
        self.network, self.config, self.classes = trained.network, trained.config, trained.classes
        self.trained = trained.trained
        return self

    def evaluate(
        self,
        dataset_dir: str | Path | None = None,
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        evaluator: Literal["hotcoco", "pycocotools"] = "hotcoco",
    ) -> Evaluation:
        """Computes COCO's metrics on the validation images of a data set, as ``cond-detr evaluate`` does.

        Args:
            dataset_dir: folder of the data set; by default the one that the detector was trained on.
            batch_size: images per forward pass; by default the detector's ``eval_batch_size``.
            workers: processes that load images; by default as in training.
            evaluator: package that computes the numbers: hotcoco, or the slower pycocotools.

        Raises:
            InputError: if an argument cannot have its value, the data set cannot be used, or it has classes that the
                detector does not have.
        """
        if batch_size is not None:
            declared(TrainConfig)["eval_batch_size"].check(batch_size)
        declared(RunConfig)["workers"].check(workers)
        declared(RunConfig)["evaluator"].check(evaluator)
        _, found = evaluate(self, dataset_dir=dataset_dir, batch_size=batch_size, workers=workers, evaluator=evaluator)
        return found

    def means(self) -> Means:
        """What searches are done with."""
        return Means(detector_of(self), self.input_size, self.classes, self.threshold)

    def export(self, path: str | Path, kind: str | None = None, *, half: bool = False) -> None:
        """Writes a file for deployment: ONNX, torch.export or AOTInductor; see :func:`cond_detr.export.export`.

        Raises:
            InputError: if the format is unknown, the suffix is not the format's, or a package is missing.
        """
        from cond_detr.export.write import export  # torch.export takes most of a second

        export(self, path, kind, half=half)

    def save(self, path: str | Path) -> None:
        """Writes weights, settings and classes to a file for :meth:`from_checkpoint`: .pt, .pth or .safetensors.

        Raises:
            InputError: if the file has another suffix, or its folder does not exist.
            OSError: if it cannot be written.
        """
        path = as_path(path)
        if path.suffix not in {".pt", ".pth", ".safetensors"}:
            raise InputError(f"{path} should end in .pt, .pth or .safetensors")
        Checkpoint(path, self.config, self.classes, self.network.state_dict(), trained=self.trained).save()

    def to(self, device: str | torch.device) -> Self:
        """Moves the network to a device, or raises InputError if there is none such; returns the detector itself."""
        self.network.to(device_named(str(device)))
        return self

    def info(self) -> dict[str, Any]:
        """Describes the detector: kind, preset, parameters, stride, image sizes, device and class names.

        After a training also ``trained``: epoch, AP of the validation images (in [0, 1]), data set, date and version.
        """
        return {
            "kind": self.config.model.kind,
            "preset": self.config.preset,
            "backbone": self.config.model.backbone,
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "stride": self.stride,
            "image_size": self.config.data.image_size,
            "max_size": self.config.data.max_size,
            "device": str(self.device),
            "classes": list(self.classes.names),
            **({"trained": self.trained} if self.trained else {}),
        }

    def __repr__(self) -> str:
        about = self.info()
        return (
            f"{type(self).__name__}(preset {about['preset']!r}, {about['parameters'] / 1e6:.1f} M parameters, "
            f"{len(about['classes'])} classes, on {about['device']})"
        )


class ConditionalDETR(Detector):
    """The paper's detector (Meng et al., ICCV 2021)."""

    kind = "conditional-detr"


class DETR(Detector):
    """Plain DETR, the paper's baseline (Carion et al., ECCV 2020)."""

    kind = "detr"

"""All settings: frozen dataclasses whose fields declare one setting each (:mod:`cond_detr.settings`).

Modules take the fields they need, never a whole configuration. The values of named architectures are in
:mod:`cond_detr.presets`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cond_detr.errors import InputError, shown
from cond_detr.settings import all_settings, change, from_dict, setting

# The size step of captured steps has a multiple of these pixels for each 200 of an image's short side: 128 for the
# paper's 800, so that COCO's images come in some tens of padded sizes. Small images are not mostly padding
GRAPH_SIZE_STEP = 32
GRAPH_STEP_SIDE = 200
# Of a side, more than any GPU has the memory for
MOST_PIXELS = 2**13
# More than any detector has; a slip of the finger would ask for more memory than there is
MOST_CHANNELS = 2**17
MOST_QUERIES = 2**17

ABLATIONS = "ablations of the paper (each default is the paper's choice)"
MATCHING = "loss and matching"
MEMORY = "speed and memory"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture; the defaults are Conditional DETR with ResNet-50."""

    kind: Literal["conditional-detr", "detr"] = setting(
        "conditional-detr",
        "the paper's detector, or plain DETR as the baseline, with DETR's loss and at most 100 object queries",
        option="model",
    )
    backbone: str = setting("resnet50", "ResNet of the backbone, such as resnet50 or resnet101", metavar="NAME")
    dilation: bool = setting(False, "dilate the last stage of the backbone (DC5)")
    d_model: int = setting(256, "width of the transformer", least=1, below=MOST_CHANNELS)
    num_heads: int = setting(8, "attention heads", least=1)
    encoder_layers: int = setting(6, "encoder layers", below=1000)
    decoder_layers: int = setting(6, "decoder layers", least=1, below=1000)
    ffn_dim: int = setting(2048, "hidden width of the feed-forward networks", least=1, below=MOST_CHANNELS)
    dropout: float = setting(
        0.1, "dropout probability in the transformer, also of attention weights", below=1, metavar="P"
    )
    num_queries: int = setting(
        300,
        "object queries: the largest number of objects that can be found in an image",
        least=1,
        below=MOST_QUERIES,
    )
    queries: Literal["points", "boxes"] = setting(
        "points",
        "what queries stand for: a reference point, as in the paper; or a box, which each decoder layer refines "
        "(DAB-DETR, Conditional DETR v2)",
    )
    fused_attn: bool = setting(
        False,
        "use the fused attention kernels: for cross-attention, and on CUDA for the encoder's self-attention on padded "
        "images",
    )
    reference_point: Literal["predicted", "learned", "origin"] = setting(
        "predicted",
        "reference points: predicted from the object queries, learned as parameters, or fixed at the image's centre "
        "(section 4.3)",
        group=ABLATIONS,
    )
    offset_regression: bool = setting(
        True, "predict box centres as offsets from the reference points (Table 4)", group=ABLATIONS
    )
    spatial_query: Literal["csq", "csq-t", "csq-p", "csq-c", "csq-i"] = setting(
        "csq",
        "spatial query (Table 3): csq, the paper's; csq-t, its transformation alone; csq-p, its embedding alone; "
        "csq-c, the decoder embedding alone; csq-i, with a transformation from the output of self-attention",
        group=ABLATIONS,
    )
    projection: Literal["identity", "scalar", "diagonal", "block", "full"] = setting(
        "diagonal", "form of the transformation in the spatial query (Figure 5)", group=ABLATIONS
    )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The losses and their weights, which are also the weights of the matching cost (section 3.4)."""

    classification: Literal["focal", "softmax", "varifocal", "mal"] = setting(
        "focal",
        'classification loss (Table 4): focal, or softmax with a "no object" class as in DETR; or with the IoUs of '
        "the boxes as targets, varifocal (VarifocalNet) or mal (DEIM)",
        group=ABLATIONS,
    )
    class_weight: float = setting(2.0, "weight of the classification term in loss and matching cost", group=MATCHING)
    l1_weight: float = setting(5.0, "weight of the L1 term", group=MATCHING)
    giou_weight: float = setting(2.0, "weight of the generalised IoU term", group=MATCHING)
    focal_alpha: float = setting(0.25, "alpha of focal loss and focal matching cost", most=1, group=MATCHING)
    focal_gamma: float = setting(2.0, "gamma of focal loss and focal matching cost", group=MATCHING)
    no_object_weight: float = setting(0.1, 'weight of the "no object" class in the softmax loss', group=MATCHING)
    matcher: Literal["native", "scipy"] = setting(
        "native", "matching by our solver (native) or by SciPy, the reference", group=MATCHING
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Data set, image sizes and augmentation."""

    dataset_dir: Path | str | None = setting(
        None,
        "data set folder: COCO's format (train/, val/ and annotations/instances_{train,val}.json, COCO's or Roboflow's "
        "own folders, or one file for all images), YOLO's (data.yaml) or Pascal VOC's; without it, the built-in shapes "
        "are used",
        metavar="DIR",
    )
    val_fraction: float = setting(
        0.1,
        "part of the images that is for validation, where the data set does not say which are",
        least=0.001,
        most=0.9,
        metavar="F",
    )
    image_size: int = setting(
        800,
        "short side of the images in pixels: in evaluation, and the largest in training",
        least=1,
        below=MOST_PIXELS,
    )
    max_size: int = setting(
        1333, "largest long side in pixels; scales with --image-size unless given", least=1, below=MOST_PIXELS
    )
    augment: Literal["paper", "flip", "none"] = setting(
        "paper", "augmentation in training: the paper's flips, scales and crops; flips only; or none"
    )
    min_scale: float = setting(
        0.6,
        "smallest short side in training, as a fraction of --image-size (paper augmentation only)",
        least=0.05,
        most=1,
    )
    colour: float = setting(
        0.0,
        "largest random change of brightness, contrast and saturation in training, as a fraction",
        most=1,
        metavar="F",
    )
    zoom: float = setting(
        0.0,
        "largest random change of scale in training, as a fraction; it is moved, and cut off or filled with grey",
        below=1,
        metavar="F",
    )
    mosaic: float = setting(
        0.0, "probability in training that an image is made of four of the data set", most=1, metavar="P"
    )
    exif: Literal["auto", "turn", "ignore"] = setting(
        "auto",
        "images with an EXIF tag for rotation: annotations are of the rotated image (turn), of the stored one "
        "(ignore), or as the sizes in the annotations tell (auto)",
    )
    size_step: int = setting(
        0,
        "batch images of similar size and pad them to multiples of this, for less padding and fewer shapes; 0: batch "
        "images of any size",
        below=MOST_PIXELS,
        metavar="PIXELS",
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Schedule, optimiser, precision and speed of training."""

    epochs: int = setting(50, "passes over the training images", least=1)
    batch_size: int | Literal["auto"] = setting(
        2, "images per process and backward pass; auto: as many as fit into the GPU's memory", least=1
    )
    accumulate: int = setting(1, "backward passes per optimiser step", least=1)
    eval_batch_size: int = setting(
        2, "images per forward pass in evaluation; 1 where padding changes results (DC5)", least=1
    )
    lr: float = setting(1e-4, "learning rate of the transformer")
    backbone_lr: float = setting(1e-5, "learning rate of the backbone")
    schedule: Literal["step", "one-cycle"] = setting(
        "step",
        "step: the learning rates drop to a tenth once; one-cycle: they warm up for a tenth of the steps, then follow "
        "a cosine",
    )
    lr_drop: float = setting(
        0.8, "when schedule step drops the learning rates: after this many epochs or, up to 1, this fraction of them"
    )
    weight_decay: float = setting(1e-4, "weight decay of AdamW, on all parameters")
    clip_norm: float = setting(0.1, "norm to which gradients are clipped", least=1e-6)
    ema: float = setting(
        0.0,
        "decay per step of a moving average of the weights, which is then evaluated and saved; 0: no average",
        below=1,
        metavar="DECAY",
    )
    freeze: Literal["nothing", "backbone", "encoder", "decoder"] = setting(
        "nothing", "keep the weights of the network up to this part as they are"
    )
    patience: int = setting(
        0, "stop after so many epochs without a better AP; 0: train all epochs", below=2**31, metavar="EPOCHS"
    )
    query_groups: int = setting(
        1,
        "sets of object queries in training, each matched on its own (Group DETR); detection has the first of them",
        least=1,
        below=2**10,
        metavar="K",
    )
    denoising: int = setting(
        0, "noised copies of the ground truth as further queries in training (DN-DETR)", below=2**10, metavar="N"
    )
    seed: int = setting(0, "seed of all randomness")
    deterministic: bool = setting(False, "use deterministic algorithms only")
    amp: Literal["off", "bf16"] = setting("off", "bf16: the network runs in bf16 autocast; off: in fp32", group=MEMORY)
    matmul_precision: Literal["high", "highest"] = setting(
        "high",
        "fp32 matrix products on CUDA: in TF32 (high) or in fp32 (highest); also applies to prediction",
        group=MEMORY,
    )
    checkpointing: bool = setting(
        False,
        "gradient checkpointing: compute the activations of encoder, cross-attention and a pretrained backbone again "
        "in the backward pass; takes less memory and more time",
        group=MEMORY,
    )
    compile: bool = setting(False, "compile the network with torch.compile", group=MEMORY)
    cuda_graphs: bool = setting(
        False,
        "capture the step as CUDA graphs, one per padded size; sets --size-step unless given, to 128 for images of 800 "
        "pixels",
        group=MEMORY,
    )

    @property
    def images_per_pass(self) -> int:
        """``batch_size`` as a number, once "auto" has been replaced by what fits into memory."""
        assert self.batch_size != "auto"
        return self.batch_size


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where and how a command runs. None of this changes the result, so it is not saved in config.json."""

    output_dir: Path | str | None = setting(None, "folder of the run (default: a new one under runs/)", metavar="DIR")
    device: str | None = setting(None, "cpu, cuda, cuda:1 ... (default: cuda if available)", metavar="D")
    workers: int | None = setting(
        None,
        "processes that load images (default: beside a GPU all cores but one, at most 16; without one a quarter of the "
        "cores, at most 4; none for the built-in shapes)",
        below=2**10,
    )
    threads: int | None = setting(
        None, "threads that compute on the CPU, also in matching (default: torch's choice)", least=1, below=2**10
    )
    timeout: int | None = setting(
        None,
        "seconds of silence after which a process is lost: one that loads images (default: 30), or another one of the "
        "run (default: 600)",
        least=1,
        below=10**6,
    )
    evaluator: Literal["hotcoco", "pycocotools"] = setting(
        "hotcoco", "package that computes COCO's numbers; they are the same, and pycocotools takes longer"
    )
    tensorboard: bool = setting(False, "also write the learning curves for TensorBoard")
    csv: bool = setting(False, "also write the log as a table, log.csv")
    wandb: bool = setting(False, "also send numbers and pictures to Weights & Biases, by its own settings")
    mlflow: bool = setting(False, "also send numbers and pictures to MLflow, by its own settings")


@dataclass(frozen=True)
class Config:
    """All settings that determine the result of a run.

    Attributes:
        preset: name of the preset it is based on (:mod:`cond_detr.presets`).
        model: architecture.
        loss: losses and matching.
        data: data set and augmentation.
        train: optimisation.
    """

    preset: str = "r50"
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def configure(base: Config, values: Mapping[str, Any]) -> Config:
    """Changes settings of a configuration, and those that depend on them unless they are given as well.

    A new ``image_size`` scales ``max_size``; ``cuda_graphs`` sets ``size_step``.

    Args:
        base: the configuration to change; it stays as it is.
        values: the new values by name of the setting, of any section.

    Raises:
        InputError: if a setting does not exist, or cannot have its value.
    """
    known = all_settings(Config)
    for name in values:
        if name not in known:
            raise InputError(f"unknown setting {shown(name)}; there are {', '.join(sorted(known))}")
    checked = {name: known[name].check(value) for name, value in values.items()}
    if "image_size" in checked and "max_size" not in checked:
        checked["max_size"] = known["max_size"].check(
            round(checked["image_size"] * base.data.max_size / base.data.image_size)
        )
    if checked.get("lr_drop", 0) > 1:  # kept as a fraction, which stays right when the number of epochs changes
        checked["lr_drop"] = min(1.0, checked["lr_drop"] / checked.get("epochs", base.train.epochs))
    if checked.get("cuda_graphs") and "size_step" not in checked:
        side = checked.get("image_size", base.data.image_size)
        checked["size_step"] = base.data.size_step or GRAPH_SIZE_STEP * max(1, round(side / GRAPH_STEP_SIDE))
    sections: dict[str, dict[str, Any]] = {"model": {}, "loss": {}, "data": {}, "train": {}}
    for name, value in checked.items():
        sections[known[name].section][name] = value
    changed: dict[str, Any] = {name: change(getattr(base, name), section) for name, section in sections.items()}
    return replace(base, **changed)


def to_dict(config: Config) -> dict[str, Any]:
    """Converts a configuration to nested dictionaries for JSON."""
    return asdict(config)


def read_dict(values: Any) -> Config:
    """Makes a configuration from nested dictionaries: the inverse of :func:`to_dict`.

    Raises:
        InputError: if a setting is unknown to this version, or cannot have its value.
    """
    return from_dict(values, Config)

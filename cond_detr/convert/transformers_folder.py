"""A folder for the transformers package's ``from_pretrained``: weights, config.json, preprocessor_config.json."""

from pathlib import Path
from typing import Any

from cond_detr.data.images import IMAGENET_MEAN, IMAGENET_STD
from cond_detr.errors import InputError
from cond_detr.files import check_free, make_folder, write_json
from cond_detr.models.resnet import LAYOUTS, Bottleneck
from cond_detr.weights.checkpoint import Checkpoint, write_weights
from cond_detr.weights.naming import StateDict

WEIGHTS, CONFIG, PREPROCESSOR = FILES = ("model.safetensors", "config.json", "preprocessor_config.json")
# Names of their classes, by our kinds
THEIRS = {"conditional-detr": ("conditional_detr", "ConditionalDetr"), "detr": ("detr", "Detr")}


def write_folder(checkpoint: Checkpoint, state: StateDict, folder: Path, *, timm: bool) -> None:
    """Writes the folder.

    Args:
        checkpoint: settings and classes of the model.
        state: its tensors, by their names.
        folder: the folder, which is made.
        timm: whether the backbone is timm's.

    Raises:
        InputError: if that package cannot build such a model, or the folder has such files.
    """
    config = config_of(checkpoint, timm=timm)
    make_folder(folder)
    check_free(folder, FILES, "folder")
    write_weights(state, folder / WEIGHTS)
    write_json(folder / CONFIG, config)
    write_json(folder / PREPROCESSOR, preprocessor_of(checkpoint))


def config_of(checkpoint: Checkpoint, *, timm: bool) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        InputError: if that package cannot build such a model.
    """
    m = checkpoint.config.model
    model_type, name = THEIRS[m.kind]
    names = checkpoint.classes.names
    sizes = {
        f"{part}_{what}": value
        for part in ("encoder", "decoder")
        for what, value in (("ffn_dim", m.ffn_dim), ("attention_heads", m.num_heads))
    }
    return {
        "architectures": [f"{name}ForObjectDetection"],
        "model_type": model_type,
        "d_model": m.d_model,
        "encoder_layers": m.encoder_layers,
        "decoder_layers": m.decoder_layers,
        **sizes,
        "num_queries": m.num_queries,
        "dropout": m.dropout,
        "attention_dropout": m.dropout,
        "activation_dropout": m.dropout,
        "auxiliary_loss": False,
        "dilation": m.dilation,
        "use_pretrained_backbone": False,
        "use_timm_backbone": timm,
        **backbone_of(m.backbone, dilation=m.dilation, timm=timm),
        "id2label": {str(i): text for i, text in enumerate(names)},
        "label2id": {text: i for i, text in enumerate(names)},
    }


def backbone_of(backbone: str, *, dilation: bool, timm: bool) -> dict[str, Any]:
    """The entries of config.json about the backbone.

    Raises:
        InputError: if that package has no such backbone.
    """
    layout = LAYOUTS[backbone]
    if not layout.pretrained:
        raise InputError(f"the transformers package has no backbone {backbone}, the presets' for training from scratch")
    if timm:
        return {"backbone": backbone, "backbone_config": None}
    if dilation:
        raise InputError("the transformers package dilates timm's backbones only; use --to transformers-timm")
    expansion = layout.block.expansion
    return {
        "backbone": None,
        "backbone_config": {
            "model_type": "resnet",
            "embedding_size": layout.width,
            "hidden_sizes": [layout.width * expansion * 2**i for i in range(len(layout.depths))],
            "depths": list(layout.depths),
            "layer_type": "bottleneck" if layout.block is Bottleneck else "basic",
            "out_features": [f"stage{len(layout.depths)}"],
        },
    }


def preprocessor_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The content of preprocessor_config.json."""
    data = checkpoint.config.data
    return {
        "image_processor_type": f"{THEIRS[checkpoint.config.model.kind][1]}ImageProcessor",
        "format": "coco_detection",
        "do_resize": True,
        "size": {"shortest_edge": data.image_size, "longest_edge": data.max_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "do_pad": True,
    }

"""What a run is about to do, in words."""

import torch

from cond_detr import distributed
from cond_detr.config import Config
from cond_detr.cuda_graphs import why_not
from cond_detr.data.coco import CocoDataset
from cond_detr.models.detector import Detector
from cond_detr.models.normalization import FrozenBatchNorm2d
from cond_detr_kernels import attention_path


def describe_data(dataset: CocoDataset) -> str:
    annotations = dataset.annotations
    boxes = sum(len(record.labels) for record in annotations.records)
    dropped = "".join(f"; {count} boxes dropped ({why})" for why, count in annotations.dropped.items())
    return f"{annotations.name}: {len(dataset)} images, {boxes} boxes, {len(annotations.classes)} classes{dropped}"


def describe(
    config: Config, model: Detector, train_set: CocoDataset, val_set: CocoDataset, device: torch.device
) -> str:
    """A line or two for everything that matters."""
    train = config.train
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    per_step = train.batch_size * train.accumulate * distributed.world_size()
    return "\n".join(
        [
            f"data        {describe_data(train_set)}",
            f"            {describe_data(val_set)}",
            f"model       {type(model).__name__}, preset {config.preset}, {parameters:.1f} M parameters, on {device}",
            f"attention   {describe_attention(config, device)}",
            f"step        {describe_step(config, model, device)}",
            f"batch       {per_step} images a step = {train.batch_size} x {train.accumulate} accumulated "
            f"x {distributed.world_size()} processes",
        ]
    )


def describe_attention(config: Config, device: torch.device) -> str:
    """What computes the cross-attention."""
    if config.model.kind == "detr":
        return "added content and position, scaled_dot_product_attention"
    return f"fused: {attention_path(device)}" if config.model.fused_attn else "reference (concatenate, softmax)"


def describe_step(config: Config, model: Detector, device: torch.device) -> str:
    """How a step is run, and why it is not captured if that was asked for."""
    train = config.train
    exact = train.matmul_precision == "highest" or device.type != "cuda"
    fp32 = "fp32" if exact else "fp32 with TF32 products"
    parts = [f"bf16 autocast, else {fp32}" if train.amp == "bf16" else fp32]
    if train.compile:
        parts.append("torch.compile")
    if train.cuda_graphs:
        obstacle = why_not(config, model, device)
        parts.append(f"no CUDA graphs: {obstacle}" if obstacle else "CUDA graphs")
    if train.ema:
        parts.append(f"weights averaged with decay {train.ema:g}")
    return ", ".join(parts)


def pretraining_warning(model: Detector) -> str:
    """What to say of a start that cannot lead far."""
    if not lacks_pretraining(model):
        return ""
    return (
        ". WARNING: this backbone's first stage and batch norm are not trained and are meant to come from ImageNet; "
        "pass --weights, or in Python load_weights, with a torchvision ResNet or a trained detector"
    )


def lacks_pretraining(model: Detector) -> bool:
    """Whether the backbone stays as it is in part, and that part is random: its statistics are those of no data."""
    return isinstance(model.backbone.bn1, FrozenBatchNorm2d) and not bool(model.backbone.bn1.running_mean.any())

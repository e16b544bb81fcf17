"""ResNet feature extractors (He et al., 2016) whose parameters are named as torchvision names them.

The stride of a bottleneck sits on its 3x3 convolution, as in torchvision.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from cond_detr.models.normalization import FrozenBatchNorm2d, SyncedBatchNorm2d
from cond_detr.models.recompute import Recomputing

Norm = Callable[[int], nn.Module]


def convolve(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """Computes ``norm(conv(x))``, with a frozen batch norm folded into the convolution's weights and bias."""
    if not isinstance(norm, FrozenBatchNorm2d):
        return cast(Tensor, norm(conv(x)))
    scale, shift = norm.affine()
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation)


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions (ResNet-18 and 34).

    Args:
        inputs: input channels.
        width: output channels.
        stride: stride of the first convolution.
        dilation: dilation of both.
        norm: normalisation layer.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, dilation, dilation, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn2 = norm(width)
        self.downsample = downsampling(inputs, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block: (B, inputs, H, W) -> (B, width, H / stride, W / stride)."""
        out = F.relu_(convolve(self.conv1, self.bn1, x))
        out = convolve(self.conv2, self.bn2, out)
        return F.relu_(out + shortcut(self.downsample, x))


class Bottleneck(nn.Module):
    """Residual block of a 1x1, a 3x3 and a 1x1 convolution (ResNet-50 and 101).

    Args:
        inputs: input channels.
        width: channels of the 3x3 convolution; the block has four times as many outputs.
        stride: stride of the 3x3 convolution.
        dilation: dilation of the 3x3 convolution.
        norm: normalisation layer.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = norm(width * self.expansion)
        self.downsample = downsampling(inputs, width * self.expansion, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block: (B, inputs, H, W) -> (B, 4 * width, H / stride, W / stride)."""
        out = F.relu_(convolve(self.conv1, self.bn1, x))
        out = F.relu_(convolve(self.conv2, self.bn2, out))
        out = convolve(self.conv3, self.bn3, out)
        return F.relu_(out + shortcut(self.downsample, x))


def downsampling(inputs: int, outputs: int, stride: int, norm: Norm) -> nn.Sequential | None:
    """Creates the 1x1 convolution and norm of a shortcut that changes shape; None if it does not."""
    if inputs == outputs and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))


def shortcut(downsample: nn.Sequential | None, x: Tensor) -> Tensor:
    """The shortcut of a block: x, downsampled if there is a :func:`downsampling`."""
    if downsample is None:
        return x
    conv, norm = downsample
    return convolve(cast(nn.Conv2d, conv), norm, x)


@dataclass(frozen=True)
class ResNetLayout:
    """Architecture of a ResNet.

    Attributes:
        block: the residual block.
        depths: number of blocks in each stage; the stages have strides 4, 8, 16 and 32.
        width: width of the first stage; each later one doubles it.
        stem_kernel: kernel size of the first convolution.
        norm: normalisation layer.
        pretrained: whether it is meant to start from ImageNet weights; the stem and the first stage are then frozen,
            as in DETR.
    """

    block: type[BasicBlock | Bottleneck]
    depths: tuple[int, ...]
    width: int = 64
    stem_kernel: int = 7
    norm: Norm = FrozenBatchNorm2d
    pretrained: bool = True

    def stride(self, dilation: bool) -> int:
        """Stride of the last stage in pixels, with or without dilation (DC5)."""
        return 2 ** (1 + len(self.depths) - int(dilation))


LAYOUTS = {
    "resnet18": ResNetLayout(BasicBlock, (2, 2, 2, 2)),
    "resnet34": ResNetLayout(BasicBlock, (3, 4, 6, 3)),
    "resnet50": ResNetLayout(Bottleneck, (3, 4, 6, 3)),
    "resnet101": ResNetLayout(Bottleneck, (3, 4, 23, 3)),
    # from scratch, on a CPU: strides 8 and 16
    "resnet6": ResNetLayout(BasicBlock, (1, 1), 48, 3, SyncedBatchNorm2d, pretrained=False),
    "resnet8": ResNetLayout(BasicBlock, (1, 1, 1), 32, 3, SyncedBatchNorm2d, pretrained=False),
}


class ResNet(Recomputing):
    """A ResNet without its classifier: (B, 3, H, W) -> (B, channels, ceil(H / stride), ceil(W / stride)).

    Args:
        layout: one of :data:`LAYOUTS`.
        dilation: dilate the last stage instead of striding it (DC5), which halves ``stride``.
    """

    def __init__(self, layout: ResNetLayout, dilation: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, layout.width, layout.stem_kernel, 2, layout.stem_kernel // 2, bias=False)
        self.bn1 = layout.norm(layout.width)
        channels = layout.width
        last = len(layout.depths) - 1
        for i, depth in enumerate(layout.depths):
            width = layout.width * 2**i
            dilate = dilation and i == last
            blocks: list[nn.Module] = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 and not dilate else 1
                # the first block of a dilated stage still reads undilated features
                blocks.append(layout.block(channels, width, stride, 2 if dilate and j > 0 else 1, layout.norm))
                channels = width * layout.block.expansion
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.num_stages = len(layout.depths)
        self.fixed_norm = layout.norm is FrozenBatchNorm2d
        self.channels = channels
        self.stride = layout.stride(dilation)
        _initialise(self)
        if layout.pretrained:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name.startswith(("layer2", "layer3", "layer4")))

    def forward(self, images: Tensor) -> Tensor:
        """Features of the last stage of (B, 3, H, W) images."""
        x = F.relu_(convolve(self.conv1, self.bn1, images))
        x = F.max_pool2d(x, 3, 2, 1)
        for i in range(self.num_stages):
            stage = cast(nn.Module, getattr(self, f"layer{i + 1}"))
            # batch norm that counts its statistics would count them twice
            x = self.run(stage, x) if self.fixed_norm else stage(x)
        return x


def _initialise(module: nn.Module) -> None:
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")

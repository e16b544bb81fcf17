"""The network under torch.compile."""

import pytest
import torch

from cond_detr import ConditionalDETR
from cond_detr.data.batching import pad_targets
from cond_detr.train.training_queries import for_training

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("more", [False, True], ids=["alone, not padded", "with training queries, padded"])
def test_the_model_is_one_graph(more: bool) -> None:
    """Without graph breaks, for images of changing size, padded or not, forward and backward."""
    model = ConditionalDETR.from_preset(
        "shapes",
        3,
        fused_attn=True,
        encoder_layers=int(not more),
        decoder_layers=1 + more,
        queries="boxes" if more else "points",
        query_groups=2 if more else 1,
        denoising=int(more),
    )
    network = for_training(model.network, model.config.train).train()
    targets = pad_targets([torch.tensor([0, 2]), torch.tensor([1])], [torch.rand(2, 4), torch.rand(1, 4)])
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    for height, width in ((32, 48), (64, 64)):
        images = torch.randn(2, 3, height, width)
        padding = torch.zeros(2, height, width, dtype=torch.bool)
        padding[0, :, width // 2 :] = True
        mask = padding if more else None
        gradients = []
        for called in (network, compiled):
            network.zero_grad()
            torch.manual_seed(0)
            predictions = called(images, mask, *([targets] if more else []))
            (predictions.logits.sigmoid().sum() + predictions.boxes.sum()).backward()
            gradients.append([p.grad for p in network.parameters() if p.grad is not None])
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

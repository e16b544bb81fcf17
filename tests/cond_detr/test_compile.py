"""The network under torch.compile."""

import pytest
import torch

from cond_detr import ConditionalDETR

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("fused", [False, True], ids=["reference", "fused"])
def test_the_model_is_one_graph(fused: bool) -> None:
    """Without graph breaks, for images of changing size, padded or not, forward and backward."""
    network = ConditionalDETR.from_preset("shapes", 3, fused_attn=fused, encoder_layers=1, decoder_layers=2).network
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    for height, width in ((32, 48), (64, 64)):
        images = torch.randn(2, 3, height, width)
        padding = torch.zeros(2, height, width, dtype=torch.bool)
        padding[0, :, width // 2 :] = True
        for mask in (padding, None):
            gradients = []
            for called in (network, compiled):
                network.zero_grad()
                torch.manual_seed(0)
                predictions = called(images, mask)
                (predictions.logits.sigmoid().sum() + predictions.boxes.sum()).backward()
                gradients.append([p.grad for p in network.parameters() if p.grad is not None])
            for a, b in zip(*gradients, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

"""The training loop written out, for research that has a loop of its own: model, matching, loss, optimiser.

python examples/own_loop.py --steps 200
"""

import argparse

import torch
from torch.utils.data import DataLoader

from cond_detr import ConditionalDETR, Criterion, preset
from cond_detr.data import open_split
from cond_detr.data.batching import collate


def main() -> None:
    """Trains on the built-in data and prints the loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="default: 200")
    options = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    config = preset("shapes")
    model = ConditionalDETR.from_preset("shapes", num_classes=6, fused_attn=True).to(device)
    network = model.network  # an nn.Module
    images = open_split(config.data, "train", model.stride)
    # matches the predictions of all layers and images in one call, without a host-device synchronisation
    criterion = Criterion(config.loss)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4)

    loader = DataLoader(images, batch_size=16, shuffle=True, drop_last=True, collate_fn=collate)
    step, recent = 0, []
    while step < options.steps:
        for batch in loader:
            batch = batch.to(device)
            predictions = network(*batch.inputs())
            losses = criterion(predictions, batch.targets, num_boxes=batch.targets.counts.sum().clamp(min=1))
            losses.total.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            recent.append(losses.total.detach())
            if step % 20 == 0:  # looking at the loss makes the host wait for the device
                print(f"step {step}: loss {torch.stack(recent).mean():.3f}")
                recent.clear()
            if step == options.steps:
                break


if __name__ == "__main__":
    main()

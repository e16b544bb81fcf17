"""Finding the first module whose output is not finite."""

import torch
from torch import Tensor, nn

from cond_detr.train.not_finite import all_finite, first_not_finite, names_of_not_finite


class Broken(nn.Module):
    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        return {"found": [x, x.log()]}


class Around(nn.Module):
    def __init__(self, *inside: nn.Module) -> None:
        super().__init__()
        self.inside = nn.ModuleList(inside)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.inside:
            found = module(x)
            x = found["found"][1] if isinstance(found, dict) else found
        return x


def test_the_innermost_module_that_makes_them() -> None:
    network = Around(nn.ReLU(), Around(nn.Identity(), Broken()), nn.Tanh())
    x = torch.tensor([-1.0, 2.0])
    assert first_not_finite(network, lambda: network(x)) == "inside.1.inside.1 (Broken)"
    assert first_not_finite(network, lambda: network(x.abs())) is None
    assert not network._forward_hooks


def test_what_is_not_finite_already_is_nobodys_doing() -> None:
    network = Around(nn.Identity())
    assert first_not_finite(network, lambda: network(torch.tensor([torch.nan]))) is None


def test_tensors_are_found_wherever_they_are() -> None:
    assert all_finite(({"a": [torch.ones(1), "text"]}, 3, torch.tensor([1])))
    assert not all_finite(({"a": [torch.tensor([torch.inf])]},))
    assert names_of_not_finite(iter([("a", torch.ones(1)), ("b", None), ("c", torch.tensor(torch.nan))])) == ["c"]

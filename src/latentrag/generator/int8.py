"""Linear layers in eight bits, for inference: weights with a scale for each output, inputs with one for each row.

    y_n = s_n r Σ_h W_nh x_h,   W, x integers in [−127, 127], s_n = max_h |w_nh| / 127, r = max_h |x_h| / 127

The sums are exact in 32-bit integers and every row has a scale of its own, so that a row's result does not depend on
the rows beside it.
"""

import torch
from torch import Tensor, nn

from latentrag.packed import LINEAR

_LARGEST = 127


def to_int8(model: nn.Module) -> None:
    """Put an ``Int8Linear`` in the place of every linear layer, the output layer too, once for all.

    Layers with a single input are left alone: torch 2.13 multiplies such matrices wrongly.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and type(child) in LINEAR and child.in_features > 1:
                setattr(parent, name, Int8Linear(child))


class Int8Linear(nn.Module):
    """A linear layer whose weights are int8. Without gradients.

    Args:
        layer: what it takes the place of.
    """

    weight: Tensor  # (out, in) int8
    scale: Tensor  # (out,) float32
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight, scale = quantised(layer.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().float())

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        rows, scale = quantised(x.reshape(-1, self.in_features))
        y = torch._int_mm(rows, self.weight.t()).float()  # noqa: SLF001  (torch has no public name for it)  # (R, out)
        y.mul_(self.scale).mul_(scale[:, None])
        if self.bias is not None:
            y.add_(self.bias)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)


def quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (R, H) as int8 and their scales (R,) float32: rows ≈ int8 · scale."""
    rows = rows.float()
    scale = rows.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / _LARGEST
    return (rows / scale[:, None]).round().to(torch.int8), scale

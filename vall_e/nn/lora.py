"""Low-rank adapters (LoRA, 2106.09685, section 4.1): ``W + (alpha / r) B A`` with W frozen and B = 0 at the start.

Two forms with the same adapters: a layer that adds the low-rank branch to its output, and a parametrisation of the
weight. With several adapters a layer, one per codebook level, each row of a batch takes that of its own level.
Dimensions: N adapters of a layer, r rank, I inputs, O outputs, B rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from vall_e.family import LoraConfig


class Rows:
    """Which adapter each row of the forward under way takes; shared by all adapters of a model.

    Attributes:
        index: int64 [B]; None outside of ``at``.
    """

    index: Tensor | None = None

    @contextmanager
    def at(self, index: Tensor) -> Iterator[None]:
        """Inside, row b takes adapter ``index[b]``, int64 [B]."""
        before, self.index = self.index, index
        try:
            yield
        finally:
            self.index = before


class Adapter(nn.Module):
    """N low-rank matrices ``scale * b[n] @ a[n]`` beside the weight of one linear layer.

    Parameters:
        a: [N, r, I], normal at the start.
        b: [N, O, r], zero at the start.
    """

    def __init__(self, linear: nn.Linear, config: LoraConfig, count: int, rows: Rows) -> None:
        super().__init__()
        self.scale, self.rows = config.alpha / config.rank, rows
        like = {"dtype": linear.weight.dtype, "device": linear.weight.device}
        self.a = nn.Parameter(torch.empty(count, config.rank, linear.in_features, **like))
        self.b = nn.Parameter(torch.zeros(count, linear.out_features, config.rank, **like))
        nn.init.normal_(self.a, std=linear.in_features**-0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """``weight`` [O, I] with the matrix of the only adapter added: the parametrisation, and the merged weight."""
        if len(self.a) > 1:
            raise ValueError("adapters per level have no common weight: they can be neither merged nor parametrise it")
        return weight + self.scale * (self.b[0] @ self.a[0])

    def branch(self, x: Tensor) -> Tensor:
        """What the adapters add to the layer's output: [B, T, I] → [B, T, O]; any [..., I] with one adapter."""
        if len(self.a) == 1:
            return self.scale * F.linear(F.linear(x, self.a[0]), self.b[0])
        index = self.rows.index
        if index is None or x.dim() != 3 or len(index) != len(x):
            raise ValueError(f"adapters per level need the level of each row, and x [B, T, I]: got {tuple(x.shape)}")
        return self.scale * (x @ self.a[index].transpose(1, 2) @ self.b[index].transpose(1, 2))


class LoRALinear(nn.Linear):
    """A linear layer with a low-rank branch; its own parameters keep their names."""

    def __init__(self, linear: nn.Linear, adapter: Adapter) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias, self.adapter = linear.weight, linear.bias, adapter

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + self.adapter.branch(x)


def add_lora(module: nn.Module, config: LoraConfig, levels: int) -> Rows:
    """Give adapters to the linear layers inside ``module`` whose last name is in ``config.targets``.

    Args:
        levels: N with ``config.per_level``, which is 1 otherwise.

    Returns:
        the switch between the adapters of different levels.

    Raises:
        ValueError: there is no such layer.
    """
    rows, count = Rows(), levels if config.per_level else 1
    found = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if name in config.targets and type(child) is nn.Linear
    ]
    if not found:
        raise ValueError(f"model.lora.targets {list(config.targets)} name no linear layer of this backbone")
    for parent, name, child in found:
        adapter = Adapter(child, config, count, rows)
        if config.form == "layer":
            setattr(parent, name, LoRALinear(child, adapter))
        else:
            parametrize.register_parametrization(child, "weight", adapter)
    return rows


def freeze_base(module: nn.Module) -> None:
    """Leave nothing of ``module`` trainable but its adapters."""
    module.requires_grad_(False)
    for adapter in adapters(module).values():
        adapter.requires_grad_(True)


def adapters(module: nn.Module) -> dict[str, Adapter]:
    """The adapters inside ``module`` by the name of their layer, the same for both forms."""
    return {_layer(name): child for name, child in module.named_modules() if isinstance(child, Adapter)}


def _layer(name: str) -> str:
    return name.removesuffix(".adapter").removesuffix(".parametrizations.weight.0")


def adapter_state(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of the adapters alone, ``LAYER.a`` and ``LAYER.b``."""
    return {f"{name}.{key}": t for name, a in adapters(module).items() for key, t in a.state_dict().items()}


def load_adapter_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put what ``adapter_state`` gave into the adapters of ``module``, of either form.

    Raises:
        ValueError: naming a tensor that is missing, not known, or of another shape.
    """
    own = adapter_state(module)
    for name in sorted(own.keys() ^ state.keys()):
        raise ValueError(f"{name} is {'missing from the adapters' if name in own else 'no adapter of this model'}")
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise ValueError(f"{name} has shape {tuple(state[name].shape)}, this model's {tuple(tensor.shape)}")
        tensor.copy_(state[name])


def merge_lora(module: nn.Module) -> None:
    """Fold the adapters into the weights, in place: plain linear layers again, as fast as before.

    Raises:
        ValueError: the adapters are per level.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoRALinear):
                plain = nn.Linear(child.in_features, child.out_features, child.bias is not None, device="meta")
                plain.weight, plain.bias = nn.Parameter(child.adapter(child.weight).detach()), child.bias
                setattr(parent, name, plain)
            elif parametrize.is_parametrized(child, "weight"):
                parametrize.remove_parametrizations(child, "weight", leave_parametrized=True)

"""Weights, or what the optimiser knows of them, shared out among processes.

FSDP2: each has a part of every tensor. DeepSpeed, ZeRO stage 1: each has a part of the optimiser's state, and of the
float32 weights that it updates where the model computes in bfloat16. Its stage 2 adds gradients up in the order in
which a process makes them, and that depends on the tasks in its batch: the sums would be of other weights.

``VallE`` is entered through ``loss``, not ``forward``, so that is where its weights are gathered; those of a block when
the block runs.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from torch import Tensor
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from vall_e.models.vall_e import VallE
from vall_e.training.module import VallEModule


class ShardedModule(VallEModule):
    """For ``train.strategy`` fsdp."""

    shared = False

    def configure_model(self) -> None:
        if self.shared:
            return
        mesh = self.device_mesh["data_parallel"]
        for block in self.model.backbone.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        register_fsdp_forward_method(self.model, "loss")
        self.shared = True


class UnchangedInput(DeepSpeedPrecision):
    """Batches as they are: Lightning's own would rewrite their tensors, which a frozen batch refuses."""

    def convert_input(self, data: Any) -> Any:
        return data


def exact_state(model: VallE) -> dict[str, Tensor]:
    """The state dict of a model that DeepSpeed trained, in float32 on the CPU; every process has to ask."""
    from deepspeed.utils import safe_get_full_fp32_param

    exact = {parameter: safe_get_full_fp32_param(parameter) for parameter in model.parameters()}
    state = model.state_dict(keep_vars=True)
    found = {name: value if exact.get(value) is None else exact[value] for name, value in state.items()}
    return {name: value.detach().cpu().float() if value.is_floating_point() else value for name, value in found.items()}


def whole_state(model: VallE) -> dict[str, Tensor]:
    """The full state dict under FSDP2 on the CPU, on rank 0 (elsewhere empty); every process has to ask."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))

"""The module with its weights shared out among processes (FSDP2: each has a part of every tensor).

``VallE`` is entered through ``loss``, not ``forward``, so that is where its weights are gathered; those of a block when
the block runs.
"""

from __future__ import annotations

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


def whole_state(model: VallE) -> dict:
    """The full state dict on the CPU, on rank 0 (elsewhere empty); every process has to ask."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))

"""Training on several devices: rows of a batch on some, neurons of the model on others, or both."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from ..extras import explained
from ..models.iterative import IterativeVAE
from ..models.sharding import own_names, own_part, shard_neurons, whole, whole_state
from .identity import digest

with explained():
    import lightning.pytorch as lightning
    from lightning.pytorch.strategies import DDPStrategy

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from .module import Training

# Words of gloo and NCCL about a process that is gone or does not answer.
LOST = ("gloo", "NCCL", "Connection", "connection", "Timed out", "timed out", "Broken pipe")


class NeuronStrategy(DDPStrategy):
    """Data parallel, where each replica of the model is shared by processes, some neurons in each.

    Processes form a mesh of "data" x "model": neighbours share the neurons of a replica. Checkpoints hold the
    whole model and optimizer, so that they go on with any number of processes; the first process writes them,
    and needs host memory for both.

    Args:
        shards: processes that share the neurons of a replica.
        timeout: seconds that a process waits for the others.
        options: those of `DDPStrategy`.
    """

    def __init__(self, shards: int, timeout: float, **options: Any) -> None:
        super().__init__(timeout=timedelta(seconds=timeout), **options)
        self.shards = shards
        self.group: ProcessGroup | None = None

    def setup_environment(self) -> None:
        """Starts the processes' group and makes the mesh."""
        super().setup_environment()
        world = self.num_nodes * self.num_processes
        shape = (world // self.shards, self.shards)
        mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=("data", "model"))
        self.group = mesh.get_group("model") if self.shards > 1 else None
        self._ddp_kwargs["process_group"] = mesh.get_group("data")

    @property
    def _net(self) -> IterativeVAE | None:
        """The model, where its neurons are shared."""
        module: Training = self.lightning_module  # type: ignore[assignment]
        return module.model if isinstance(module.model, IterativeVAE) and module.model.group else None

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Of the whole model in the first process; a call of all."""
        if self._net is None:
            return super().lightning_module_state_dict()
        return {f"model.{name}": value for name, value in whole_state(self._net).items()}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Of a whole model, what is this process's."""
        if (net := self._net) is not None:
            own = {f"model.{name}" for name in own_names(net)}
            state = {n: own_part(v, net) if n in own else v for n, v in checkpoint["state_dict"].items()}
            checkpoint = {**checkpoint, "state_dict": state}
        super().load_model_state_dict(checkpoint, strict)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Of the whole model in the first process; a call of all."""
        state: dict[str, Any] = super().optimizer_state(optimizer)
        return self._mapped(state, whole)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Of a whole model's, what is this process's."""
        states = [self._mapped(state, own_part) for state in checkpoint["optimizer_states"]]
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": states})

    def _mapped(self, state: dict[str, Any], change: Any) -> dict[str, Any]:
        """An optimizer's state with what belongs to neurons changed; parameters are known by their order."""
        if (net := self._net) is None:
            return state
        own, names = set(own_names(net)), [n for n, p in net.named_parameters() if p.requires_grad]
        of = {
            i: {key: change(v, net) for key, v in sorted(entry.items())} if names[i] in own else entry
            for i, entry in sorted(state["state"].items())
        }
        return {**state, "state": of}


def split_neurons(module: Training) -> None:
    """Before the first step: what each process found equal, then the neurons of this one.

    Raises:
        ValueError: processes began with different models, recipes or inputs, in every process.
    """
    trainer = module.trainer
    if trainer.world_size == 1:
        return
    from ipvae_kernels.distributed.collectives import gathered, same_everywhere

    parameters = [digest(value) for value in module.model.state_dict().values()]
    same_everywhere(gathered({**module.identity(), "parameters": parameters}))
    group = getattr(trainer.strategy, "group", None)
    if group is not None and isinstance(module.model, IterativeVAE) and module.model.group is None:
        shard_neurons(module.model, group)


def place_of(trainer: lightning.Trainer) -> tuple[int, int]:
    """Which share of a batch is this process's, of how many."""
    shards = getattr(trainer.strategy, "shards", 1)
    return trainer.global_rank // shards, trainer.world_size // shards


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process is gone."""
    lost = getattr(distributed, "DistBackendError", ())
    return isinstance(error, lost) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in LOST)
    )

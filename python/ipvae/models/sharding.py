"""A model whose neurons are shared by processes: in each, its parameters are those of some neurons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup

from ..fields import ConfigError
from .iterative import IterativeVAE

# The parameters of a layer that have a number for every neuron, in their last dimension.
PER_NEURON = ("phi.weight", "log_bias", "u_init.", "activation.log_gain")
V = TypeVar("V")


def refuse_unshardable(model: nn.Module) -> None:
    """Refuses a model whose neurons cannot be shared.

    Raises:
        ConfigError: it is not an `IPVAE` or an `IGVAE` with a linear decoder.
    """
    if not isinstance(model, IterativeVAE) or model.decoder is not None:
        found = getattr(getattr(model, "config", None), "decoder", "no decoder")
        raise ConfigError(
            "shard_neurons: expected an iterative model (ip-vae, ig-vae, ig-relu-vae) with a linear decoder, "
            f"found {type(model).__name__}, {found}"
        )


def shard_neurons(model: IterativeVAE, group: ProcessGroup) -> None:
    """Keeps of a model, which every process has whole, the neurons of this process.

    From then on `forward` and `infer` are calls of all processes of the group
    (`ipvae_kernels.distributed`), and latents in their results are those of this process's neurons.

    Args:
        model: is changed in place; parameters are new ones, so optimizers are made after it.
        group: of the processes.

    Raises:
        ConfigError: a model that cannot be shared.
        ValueError: fewer than 4 neurons a process.
    """
    from ipvae_kernels.distributed import columns

    refuse_unshardable(model)
    columns(model.config.n_latents, 0, distributed.get_world_size(group))  # or nothing is changed
    model.group = group
    for name in own_names(model):
        _replace(model, name, own_part(model.get_parameter(name).detach(), model))


def _replace(model: nn.Module, name: str, value: Tensor) -> None:
    """Another parameter in place of one; its size may differ."""
    place, _, leaf = name.rpartition(".")
    wanted = model.get_parameter(name).requires_grad
    setattr(model.get_submodule(place), leaf, nn.Parameter(value, requires_grad=wanted))


def own_names(model: nn.Module) -> list[str]:
    """The parameters that have a number for every neuron, by their names in the model."""
    return [
        name for name, _ in model.named_parameters() if name.removeprefix("layer.").startswith(PER_NEURON)
    ]


def own_part(value: V, model: IterativeVAE) -> V:
    """Of a tensor of all neurons in its last dimension, those of this process; anything else as it is."""
    from ipvae_kernels.distributed import columns

    if not isinstance(value, Tensor) or value.ndim == 0 or model.group is None:
        return value
    part = columns(
        model.config.n_latents, distributed.get_rank(model.group), distributed.get_world_size(model.group)
    )
    return value[..., part].clone(memory_format=torch.contiguous_format)  # type: ignore[return-value]


def whole(value: V, model: IterativeVAE) -> V:
    """The reverse, a call of all processes of the group: all neurons in its first, on the CPU.

    The others keep what they have. One tensor at a time is on its way, and the first process alone needs
    memory for all.
    """
    from ipvae_kernels.distributed import columns

    group = model.group
    if not isinstance(value, Tensor) or value.ndim == 0 or group is None:
        return value
    rank, world = distributed.get_rank(group), distributed.get_world_size(group)
    own = value.detach().contiguous()
    if rank:
        distributed.send(own, group_dst=0, group=group)
        return value
    neurons = model.config.n_latents
    found = torch.empty((*value.shape[:-1], neurons), dtype=value.dtype, device="cpu")
    for other in range(world):
        part = columns(neurons, other, world)
        there = own
        if other:
            there = own.new_empty((*value.shape[:-1], part.stop - part.start))
            distributed.recv(there, group_src=other, group=group)
        found[..., part] = there.cpu()
    return found  # type: ignore[return-value]


def whole_state(model: IterativeVAE) -> dict[str, Tensor]:
    """The state dict of the whole model in the first process of the group, a call of all."""
    own = set(own_names(model))
    return {name: whole(v, model) if name in own else v for name, v in model.state_dict().items()}


def restore_whole(model: IterativeVAE, state: Mapping[str, Tensor]) -> None:
    """Makes a shared model a whole one again, on the CPU, with the tensors of `whole_state`."""
    model.group = None
    for name in own_names(model):
        _replace(model, name, state[name])
    model.to("cpu")


def gradient_norm(model: IterativeVAE) -> Tensor:
    """Of the gradient of all neurons, the same number in all processes of the group."""
    own = set(own_names(model))
    squares = torch.zeros(2, device=model.like.device)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            squares[int(name in own)] += parameter.grad.square().sum()
    distributed.all_reduce(squares[1:], group=model.group)
    return squares.sum().sqrt()

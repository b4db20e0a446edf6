"""``infer`` and ``elbo`` with the neurons of a layer shared by processes.

Each process has the columns of some neurons, and with them their states, draws and updates. Of the others it
needs one thing: the mean, whose parts are summed over the group once a draw, [B, M] numbers whatever K is.
Noise is indexed by the global neuron, so spikes are those of one process but where the order of that sum
moves a draw across a threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from .. import checks
from ..params import GaussianParams, PoissonParams, State
from ..rollout.library import check_finite
from ..rollout.op import ElboResult, InferResult
from ..rollout.op import elbo as elbo_alone
from ..rollout.op import infer as infer_alone
from ..rollout.shapes import tensors_of
from .collectives import checksum, gathered, same_everywhere, shared, summed
from .decoder import ShardedDecoder
from .fused import FusedDecoder, rows_served
from .gloo import calm_loops

Found = TypeVar("Found")
Params = TypeVar("Params", PoissonParams, GaussianParams)
Group = ProcessGroup | DeviceMesh | None
# Four neighbours share a block of random words, so parts begin at multiples.
BLOCK = 4
MODEL = "model"  # the dimension of a mesh that neurons are shared over
# Records that are sums over neurons, and the one that is their mean.
SUMS, MEAN = ("kl", "spikes"), "zeros"


class Part(NamedTuple):
    """Which neurons a process has.

    Attributes:
        group: of the processes that share them.
        sizes: neurons of each process.
        rank: of this one.
        mesh: where tensors are distributed ones, the mesh and its dimension.
    """

    group: ProcessGroup
    sizes: tuple[int, ...]
    rank: int
    mesh: tuple[DeviceMesh, int] | None = None

    @property
    def first(self) -> int:
        """Global index of the first neuron."""
        return sum(self.sizes[: self.rank])

    @property
    def neurons(self) -> int:
        """K, of all processes."""
        return sum(self.sizes)


def columns(neurons: int, rank: int, world: int) -> slice:
    """Which neurons are those of one of several processes: about as many each, in blocks of 4.

    Args:
        neurons: K, of all.
        rank: of the process.
        world: how many there are.

    Raises:
        ValueError: fewer than 4 neurons a process.
    """
    blocks = -(-neurons // BLOCK)
    if blocks < world:
        raise ValueError(
            f"params: expected at least {BLOCK} neurons for each of {world} processes, found {neurons}"
        )
    first, stop = (min(BLOCK * (blocks * r // world), neurons) for r in (rank, rank + 1))
    return slice(first, stop)


def shard(params: Params, group: Group = None) -> Params:
    """The part of this process, of parameters that every process has whole.

    Args:
        params: of all K neurons, the same in every process.
        group: of the processes; a mesh whose dimension "model" is it; None: all of them.

    Returns:
        Parameters of K / world neurons, rounded to multiples of 4; views, so that gradients reach `params`.

    Raises:
        ValueError: fewer than 4 neurons a process; or processes have different parameters, in each of them.
    """
    processes = _group(group)
    tensors = {name: value for name, value in vars(params).items() if isinstance(value, Tensor)}
    told = {name: f"{list(v.shape)}, checksum {checksum(v):08x}" for name, v in tensors.items()}
    same_everywhere(gathered(told, processes), "params.")
    part = columns(
        len(params.log_bias), distributed.get_rank(processes), distributed.get_world_size(processes)
    )
    state = _initial(params)
    own: dict[str, Any] = {"log_bias": params.log_bias[part], state: getattr(params, state)[..., part]}
    if params.dictionary is not None:
        own["dictionary"] = params.dictionary[:, part]
    return replace(params, **own)


def infer(
    x: Tensor, params: Params, steps: int, *, group: Group = None, state: State | None = None,
    overlap: bool = False, **options: Any,
) -> InferResult:  # fmt: skip
    """:func:`ipvae_kernels.infer` of a dictionary whose columns lie in several processes.

    Every process of the group calls it with the same inputs and options; a draw costs one sum of [B, M] over
    the group. In float32 on CPUs with the compiled kernels it is one fused call; elsewhere steps are composed
    from the fused ops of the backend.

    Args:
        x: [B, M] or [steps, B, M], the same in every process of the group.
        params: of this process's neurons (`shard`), a multiple of 4 but in the last process; or of all, with
            distributed tensors (DTensor) for what has neurons, sharded over one dimension of a mesh.
        steps: T >= 1.
        group: of the processes; a mesh whose dimension "model" is it, beside "data" or others; None: all of
            them, or the mesh of distributed tensors.
        state: continue from here.
        overlap: take the two halves of the batch in turns: one is computed while the other's sum is on its
            way. For slow links and many rows: each half reads the dictionary.
        options: those of `ipvae_kernels.infer` but ``decoder`` and ``neuron_offset``. Without a seed or a
            state the first process draws one for all.

    Returns:
        The state and the records of this process's neurons; "kl", "spikes", "zeros" and what has pixels are
        those of all neurons. Distributed tensors where the parameters are.

    Raises:
        TypeError, ValueError: as there, in all processes where it is so in one; or they differ in what they
            call with.
    """
    part, own, decoder, options = _prepared(x, params, steps, group, state, options, overlap)
    found = infer_alone(x, own.params, steps, decoder=decoder, state=own.state, **options)
    records = {name: _whole(name, record, part) for name, record in found.records.items()}
    placed = {name: _placed(record, name, part) for name, record in records.items()}
    return InferResult(_placed_state(found.state, part), placed)


def elbo(
    x: Tensor, params: Params, steps: int, *, group: Group = None, state: State | None = None,
    beta: float = 1.0, overlap: bool = False, **options: Any,
) -> ElboResult:  # fmt: skip
    """:func:`ipvae_kernels.elbo` of a dictionary whose columns lie in several processes; differentiable.

    The loss is that of all neurons, in every process. Its gradient in what a process has alone is there; in
    what all have (x, log_sigma, log_lr) it is the whole one in each, so nothing is left to be summed. Fused
    where :func:`infer` is, but for records and "gumbel"; the backward then costs a sum of [B, M] an update.

    Args:
        x: as in :func:`infer`, like all but the next.
        params: likewise.
        steps: likewise.
        group: likewise.
        state: likewise.
        beta: weight of the KL term, >= 0.
        overlap: as in :func:`infer`; in the backward too.
        options: those of `ipvae_kernels.elbo` but ``decoder`` and ``neuron_offset``.

    Returns:
        As there: loss [], recon and kl [T, B], nats, of all neurons; the state and the per-neuron records of
        this process's.

    Raises:
        TypeError, ValueError: as :func:`infer`.
    """
    options["beta"] = beta
    part, own, decoder, options = _prepared(x, params, steps, group, state, options, overlap, loss=True)
    found = elbo_alone(x, own.params, steps, decoder=decoder, state=own.state, **options)
    divergence = summed(found.kl, part.group)
    loss = found.loss + beta * (divergence - found.kl).sum() * (
        256.0 / (x.shape[-1] * max(found.kl.numel(), 1))
    )
    placed = {name: _placed(record, name, part) for name, record in found.records.items()}
    return ElboResult(loss, found.recon, divergence, _placed_state(found.state, part), placed)


class _Own(NamedTuple):
    """What a process calls with, of its neurons; local tensors for distributed ones."""

    params: PoissonParams | GaussianParams
    dictionary: Tensor
    state: State | None
    seed: Tensor


class _Told(NamedTuple):
    """What it tells the others.

    Attributes:
        neurons: how many it has.
        rows: that its compiled CPU kernels take at a time; 0 where they do not serve the call.
        seed: of the caller, of the state, or one that was drawn.
        call: what has to be the same in all, by name.
    """

    neurons: int
    rows: int
    seed: int
    call: dict[str, Any]


def _prepared(
    x: Tensor, params: Params, steps: int, group: Group, state: State | None, options: dict[str, Any],
    overlap: bool, loss: bool = False,
) -> tuple[Part, _Own, ShardedDecoder, dict[str, Any]]:  # fmt: skip
    """The part of this process, and the arguments of its call, alike in all processes."""
    for name in ("decoder", "neuron_offset"):
        if name in options:
            raise TypeError(f"{name}: not an option of a sharded call, found {options[name]!r}")
    if not isinstance(record := options.get("record", ()), str):
        options["record"] = tuple(record)
    mesh = _mesh(params)
    processes = mesh[0].get_group(mesh[1]) if mesh and group is None else _group(group)
    own, told = _told_all(lambda: _own(x, params, steps, state, overlap, options, loss), processes)
    sizes, rows = _alike(told)
    calm_loops(processes)
    options["seed"] = own.seed.new_tensor(told[0].seed)
    part = Part(processes, sizes, distributed.get_rank(processes), mesh)
    options["neuron_offset"] = part.first
    decoder = (
        FusedDecoder(own.dictionary, processes, overlap, rows, max(sizes))
        if rows
        else ShardedDecoder(own.dictionary, processes, overlap)
    )
    log_lr = shared(own.params.log_lr, processes)
    return part, own._replace(params=replace(own.params, dictionary=None, log_lr=log_lr)), decoder, options


def _own(
    x: Tensor, params: Params, steps: int, state: State | None, overlap: bool, options: dict[str, Any],
    loss: bool,
) -> tuple[_Own, _Told]:  # fmt: skip
    """The arguments of this process, with the checks that an op would make too late for the others."""
    checks.flag("overlap", overlap)
    checks.tensor("x", x)
    params = _local_params(params)
    if params.dictionary is None:
        raise ValueError("params.dictionary: expected this process's columns [M, K_local], found None")
    if state is not None and isinstance(state.log_rate, DTensor):
        state = replace(state, log_rate=state.log_rate.to_local())
    tensors, _ = tensors_of(x, params, steps, True, state)
    if checks.flag("check", options.get("check", True)):
        check_finite(tensors)
    given = options.get("seed")
    if given is None and state is not None:
        given = state.seed
    seed = checks.seed(given, x.device)
    plain = {name: str(value) for name, value in sorted(options.items()) if not isinstance(value, Tensor)}
    call = {
        **plain, "overlap": overlap, "steps": steps, "seed": None if given is None else int(seed),
        "x": f"{x.dtype} {list(x.shape)}, sum {float(x.detach().double().sum())!r}",
        "state": None if state is None else (state.step, state.sample_offset),
    }  # fmt: skip
    told = _Told(len(params.log_bias), rows_served(x, options, loss), int(seed), call)
    return _Own(params, tensors.dictionary, state, seed), told


def _told_all(make: Callable[[], tuple[_Own, _Told]], group: ProcessGroup) -> tuple[_Own, list[_Told]]:
    """What is made here, and what every process tells, if all could.

    Raises:
        TypeError, ValueError, RuntimeError: as in this process; or in another one, whose error is told.
    """
    problem: Exception | None = None
    try:
        own, here = make()
    except (TypeError, ValueError, RuntimeError) as error:
        problem = error
    told = gathered(here if problem is None else str(problem), group)
    if problem is not None:
        raise problem
    for rank, found in enumerate(told):
        if isinstance(found, str):
            raise ValueError(f"process {rank} of the group: {found}")
    return own, told


def _alike(told: list[_Told]) -> tuple[tuple[int, ...], int]:
    """The neurons of each process, where processes call alike, and the rows that all take in a fused call.

    Raises:
        ValueError: they do not, in every process.
    """
    same_everywhere([found.call for found in told])
    sizes = tuple(found.neurons for found in told)
    if any(size % BLOCK for size in sizes[:-1]):
        raise ValueError(
            f"params: expected a multiple of {BLOCK} neurons in each process but the last, found {[*sizes]}"
        )
    return sizes, min(found.rows for found in told)


def _group(group: Group) -> ProcessGroup:
    if not (distributed.is_available() and distributed.is_initialized()):
        raise ValueError(
            "group: expected torch.distributed to be initialised (torchrun, init_process_group), it is not"
        )
    if isinstance(group, DeviceMesh):
        names = group.mesh_dim_names or ()
        if group.ndim > 1 and MODEL not in names:
            raise ValueError(f"group: expected a mesh with a dimension {MODEL!r}, found {names}")
        return group.get_group(MODEL if MODEL in names else 0)
    world = distributed.group.WORLD
    found = world if group is None else group
    if not isinstance(found, ProcessGroup):
        raise TypeError(f"group: expected a ProcessGroup, a DeviceMesh or None, found {type(found).__name__}")
    return found


def _initial(params: PoissonParams | GaussianParams) -> str:
    """The field of the initial state."""
    return "log_rate_init" if isinstance(params, PoissonParams) else "state_init"


def _mesh(params: PoissonParams | GaussianParams) -> tuple[DeviceMesh, int] | None:
    """The mesh of a distributed dictionary, and the dimension that its columns are sharded over.

    Raises:
        ValueError: it is not sharded by columns over one dimension.
    """
    dictionary = params.dictionary
    if not isinstance(dictionary, DTensor):
        return None
    dims = [i for i, placement in enumerate(dictionary.placements) if not isinstance(placement, Replicate)]
    if len(dims) != 1 or dictionary.placements[dims[0]] != Shard(1):
        raise ValueError(
            "params.dictionary: expected Shard(1) over one dimension of its mesh, found "
            f"{list(dictionary.placements)}"
        )
    return dictionary.device_mesh, dims[0]


def _local_params(params: Params) -> Params:
    """The same with local tensors for distributed ones; gradients reach these."""
    local: dict[str, Any] = {
        name: value.to_local() for name, value in vars(params).items() if isinstance(value, DTensor)
    }
    return replace(params, **local)


def _whole(name: str, record: Tensor, part: Part) -> Tensor:
    """A record that sums over neurons, of all of them; others as they are."""
    if name in SUMS:
        return summed(record, part.group)
    if name == MEAN:
        return summed(record * part.sizes[part.rank], part.group) / part.neurons
    return record


def _placed(value: Tensor, name: str, part: Part) -> Tensor:
    """A tensor whose last dimension has neurons, as a distributed one where the parameters are."""
    if part.mesh is None or name not in ("state", "log_rate", "counts", "kl_per_neuron"):
        return value
    mesh, dim = part.mesh
    placements = [Replicate() if i != dim else Shard(value.dim() - 1) for i in range(mesh.ndim)]
    shape = torch.Size([*value.shape[:-1], part.neurons])
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(value, mesh, placements, run_check=False, shape=shape, stride=stride)


def _placed_state(state: State, part: Part) -> State:
    return replace(state, log_rate=_placed(state.log_rate, "state", part))

"""An encoding whose neurons lie in several processes: all infer the same rows, the first writes the files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, multiprocessing

from ..models.registry import load_model
from ..models.sharding import refuse_unshardable, shard_neurons, whole
from .columns import ColumnEncoder

if TYPE_CHECKING:
    from ..models.iterative import IterativeVAE
    from .folder import Encoding

POLL = 0.2  # seconds between looks at the files that are finished


class ShardedEncoder(ColumnEncoder):
    """Codes of a model that this process has some neurons of; a call of all, whole in the first.

    Args:
        options: those of `ColumnEncoder`, model first.
        group: of the processes.
    """

    def __init__(self, model: str, group: distributed.ProcessGroup, **options: Any) -> None:
        super().__init__(model, **options)
        cuda = torch.cuda.is_available()
        device = f"cuda:{distributed.get_rank(group) % torch.cuda.device_count()}" if cuda else "cpu"
        net: IterativeVAE = load_model(self.model).eval()  # type: ignore[assignment]
        shard_neurons(net, group)
        self._own = net.to(device)

    def _net(self) -> IterativeVAE:
        return self._own

    def codes(self, x: Tensor, first: int) -> NDArray[Any]:
        """As `ColumnEncoder.codes`, in the first process; in the others of their neurons."""
        own = super().codes(x, first)
        return np.asarray(whole(torch.from_numpy(own), self._own))


def refuse(model: str, shards: int) -> None:
    """Refuses a model whose neurons cannot be shared by so many.

    Raises:
        ConfigError, ValueError: it is not iterative with a linear decoder, or has too few neurons.
    """
    from ipvae_kernels.distributed import columns

    net = load_model(model)
    refuse_unshardable(net)
    columns(net.config.n_latents, 0, shards)


def encode_missing(plan: Encoding, parts: list[int], threads: int, done: Callable[[int], Any]) -> None:
    """Encodes parts in `plan.shard_neurons` processes.

    Args:
        plan: what is encoded.
        parts: which.
        threads: of a process.
        done: called with the rows of each part that is finished.

    Raises:
        torch.multiprocessing.ProcessException: a process ended; the others are ended too, and finished parts
            stay.
    """
    with tempfile.TemporaryDirectory() as folder:
        running = multiprocessing.start_processes(  # type: ignore[attr-defined,no-untyped-call]
            _a_rank,
            (plan, parts, threads, folder),
            nprocs=plan.shard_neurons,
            join=False,
            start_method="spawn",
        )
        waiting, ended = list(parts), False
        while not ended:
            ended = running.join(timeout=POLL)
            while waiting and (ended or Path(folder, str(waiting[0])).exists()):
                done(plan.rows_of(waiting.pop(0)))


def _a_rank(rank: int, plan: Encoding, parts: list[int], threads: int, folder: str) -> None:
    torch.set_num_threads(threads)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(
        backend, f"file://{folder}/store", rank=rank, world_size=plan.shard_neurons
    )
    group = distributed.group.WORLD
    assert group is not None
    encoder = ShardedEncoder(
        plan.model, group, steps=plan.steps, last=plan.last, seed=plan.seed, batch_size=plan.batch_size
    )
    for part in parts:
        plan.encode(part, encoder, write=rank == 0)
        if rank == 0:
            Path(folder, str(part)).touch()
    distributed.barrier()
    distributed.destroy_process_group()

"""Parameters made ready once for many calls of ``infer``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import cells, checks
from ..backend import compiled, cpu
from ..params import GaussianParams, PoissonParams
from . import structs
from .config import RolloutConfig
from .problem import PARAMETERS, Inputs
from .shapes import tensors_of


class Packed(NamedTuple):
    """What serves in place of the CPU backend's module.

    Attributes:
        of_kernels: what the compiled module keeps.
    """

    of_kernels: Any

    def infer(
        self, inputs: Inputs, seed: Tensor, cfg: RolloutConfig, record: tuple[str, ...], record_every: int
    ) -> list[Tensor]:
        """As in ``cpu.py``."""
        module = compiled.load()
        args, results = structs.infer(module, inputs, cfg, record, record_every)
        args.seed = cpu.unsigned_seed(seed)
        module.rollout_prepared(args, self.of_kernels, torch.get_num_threads())
        return results


class Prepared:
    """Parameters, checked and, for the compiled kernels of a CPU, packed; what :func:`prepare` returns.

    ``infer`` and ``elbo`` take it in place of parameters, with the same results. A call of ``infer`` saves
    what depends on the parameters alone: packing the dictionary, copies, and looking for NaN.

    Attributes:
        params: as given; the packed copy belongs to the numbers they had.
    """

    def __init__(self, params: PoissonParams | GaussianParams, inputs: Inputs, packed: Packed | None) -> None:
        self.params, self.inputs, self.packed = params, inputs, packed
        self._seen = [(name, tensor, tensor._version) for name, tensor in _tensors(params).items()]

    @property
    def cell(self) -> str:
        """The cell whose parameters these are."""
        return cells.name_of(self.params)

    @property
    def bytes(self) -> int:
        """Memory of the packed copy; 0 where nothing is packed."""
        return int(self.packed.of_kernels.bytes) if self.packed is not None else 0

    def check(self) -> None:
        """Refuses parameters that were changed since.

        Changes are seen by the version that torch keeps of each tensor: all that an optimiser, ``copy_`` or
        ``fill_`` do, and not what is written through ``tensor.data`` or memory shared with NumPy.

        Raises:
            ValueError: a parameter was written to.
        """
        for name, tensor, version in self._seen:
            if tensor._version != version:
                raise ValueError(
                    f"params: expected {name} as it was when prepared, found it changed; call prepare() again"
                )

    def __repr__(self) -> str:
        pixels, neurons = self.inputs.dictionary.shape
        return f"Prepared({self.cell}, M {pixels}, K {neurons}, {self.bytes / 2**20:.1f} MiB packed)"


def prepare(params: PoissonParams | GaussianParams) -> Prepared:
    """Makes parameters ready for many calls: frame by frame, or of a wide dictionary.

    On a CPU the dictionary is packed, which takes about its own memory twice over; elsewhere the kernels
    read it as it is. Packing is for the instruction set in force.

    Args:
        params: with a dictionary, finite; what they hold must not be written to afterwards.

    Returns:
        What ``infer`` and ``elbo`` take in place of parameters, until one of them changes.

    Raises:
        TypeError, ValueError: parameters are not as described, or have no version by which a change would be
            seen (made under ``torch.inference_mode``).
    """
    cell = cells.CELLS[cells.name_of(params)]
    if params.dictionary is None:
        raise ValueError("params.dictionary: expected a tensor, found None: a decoder is not prepared")
    named = {f"params.{name}": tensor for name, tensor in _tensors(params).items()}
    for name, tensor in named.items():
        checks.tensor(name, tensor)
        if tensor.is_inference():
            raise TypeError(
                f"{name}: expected a tensor whose changes can be seen, found one of inference mode"
            )
    sample = params.log_sigma.detach().new_zeros((1, params.log_sigma.numel()))
    inputs, _ = tensors_of(sample, params, 1, True, None)
    checks.finite(**named)
    dense = Inputs(*(tensor.detach().contiguous() for tensor in inputs))
    packed = None
    if cpu.reason() is None and cpu.unserved(dense) is None:
        module = compiled.load()
        of_parameters = structs.parameters(module, dense)
        sizes = (dense.x.shape[-1], dense.log_bias.numel(), cells.code(cells.name_of(params)))
        packed = Packed(module.Prepared(of_parameters, *sizes, cell.counts, torch.get_num_threads()))
    return Prepared(params, dense, packed)


def _tensors(params: PoissonParams | GaussianParams) -> dict[str, Tensor]:
    start = cells.CELLS[cells.name_of(params)].start
    return {name: getattr(params, name) for name in (*PARAMETERS, start)}

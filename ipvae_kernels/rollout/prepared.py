"""Parameters made ready once for many calls of ``infer``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import cells, checks, memory
from ..backend import compiled, cpu
from ..params import GaussianParams, PoissonParams
from . import structs
from .config import RolloutConfig
from .drive import check_drive, driven
from .problem import PARAMETERS, Inputs
from .shapes import tensors_of


class Packed:
    """What serves in place of the CPU backend's module.

    Args:
        of_kernels: what the compiled module keeps.
    """

    def __init__(self, of_kernels: Any) -> None:
        self.of_kernels = of_kernels
        self._known: tuple[Any, Any] = (None, None)

    def infer(
        self, inputs: Inputs, seed: Tensor, cfg: RolloutConfig, record: tuple[str, ...], record_every: int
    ) -> list[Tensor]:
        """As in ``cpu.py``."""
        module = compiled.load()
        args = self._args(module, inputs, cfg)
        results = structs.results(args, inputs, cfg, record, record_every)
        args.seed = cpu.unsigned_seed(seed)
        module.rollout_prepared(args, self.of_kernels, torch.get_num_threads())
        return results

    def _args(self, module: Any, inputs: Inputs, cfg: RolloutConfig) -> Any:
        """Arguments of the kernels, but for the results; those that calls share are filled in once."""
        shared = (cfg._replace(step=0, sample_offset=0), inputs.x.shape)
        known, args = self._known
        if known != shared:
            args = structs.rollout(module, inputs, cfg)
            self._known = shared, args
        args = module.RolloutArgs(args)  # other threads read the same
        args.step, args.sample_offset = cfg.step, cfg.sample_offset
        args.x, args.log_rate = inputs.x.data_ptr(), inputs.log_rate.data_ptr()
        return args


class Prepared:
    """Parameters, checked and, for the compiled kernels of a CPU, packed; what :func:`prepare` returns.

    ``infer`` and ``elbo`` take it in place of parameters, with the same results. A call of ``infer`` saves
    what depends on the parameters alone: packing the dictionary, copies, and looking for NaN.

    Attributes:
        params: as given; a packed copy belongs to the numbers they had.
        half: whether they are of half precision, so that inputs may be.
        drive: of the updates that they are for.
    """

    def __init__(
        self,
        params: PoissonParams | GaussianParams,
        inputs: Inputs,
        packed: Packed | None,
        pack: bool | None = None,
        drive: str = "paper",
    ) -> None:
        self.params, self.inputs, self.packed, self._pack = params, inputs, packed, pack
        self.drive = drive
        self.half = checks.is_half(params.log_sigma)
        self._seen = [(name, tensor, tensor._version) for name, tensor in _tensors(params).items()]

    @property
    def cell(self) -> str:
        """The cell whose parameters these are."""
        return cells.name_of(self.params)

    @property
    def bytes(self) -> int:
        """Memory beside that of the parameters."""
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

    def check_drive(self, drive: str) -> None:
        """Refuses another drive than that they are for.

        Raises:
            ValueError: it is another one.
        """
        if drive != self.drive:
            raise ValueError(
                f"drive: expected {self.drive!r}, which the parameters were prepared for, found {drive!r}; "
                f"prepare(params, drive={drive!r}) makes others"
            )

    @property
    def traced(self) -> PoissonParams | GaussianParams:
        """What a traced graph takes in its place: the parameters when it runs, in full precision."""
        return _raised(self.params, _tensors(self.params))

    def __reduce__(self) -> Any:
        """Copied and pickled as its parameters, which are prepared anew, for the machine they come to."""
        self.check()
        return _prepared, (self.params, self._pack, self.drive)

    def __repr__(self) -> str:
        pixels, neurons = self.inputs.dictionary.shape
        return f"Prepared({self.cell}, M {pixels}, K {neurons}, {self.bytes / 2**20:.1f} MiB beside them)"


def prepare(
    params: PoissonParams | GaussianParams, *, pack: bool | None = None, drive: str = "paper"
) -> Prepared:
    """Makes parameters ready for many calls: frame by frame, or of a wide dictionary.

    On a CPU a narrow dictionary is packed, which takes its own memory twice over. A wide one is read where it
    lies, once a step, and nothing of it is copied: it may be a memory map of a file. Packing is for the
    instruction set in force; elsewhere kernels read the dictionary as it is.

    Args:
        params: with a dictionary, finite; what they hold must not be written to afterwards. The dictionary
            alone may be bfloat16, which takes half the memory; the sums are those of its numbers in float32.
            Backends other than the compiled CPU kernels widen it at every call, and ``elbo`` wants float32.
            Or all are half precision, as a module's after ``.to(torch.bfloat16)``; then inputs may be, too.
        pack: None: below 8 MiB, with AMX below 64; False: copy nothing; True: pack. Bit-identical without AMX
        drive: of the updates, as in :func:`infer`, which then is told the same.

    Returns:
        What ``infer`` and ``elbo`` take in place of parameters, until one of them changes.

    Raises:
        TypeError, ValueError: parameters are not as described, or have no version by which a change would be
            seen (made under ``torch.inference_mode``); ``pack`` is True for bfloat16.
        MemoryError: the packed copies do not fit.
    """
    pack = None if pack is None else checks.flag("pack", pack)
    cell = cells.name_of(params)
    drive = check_drive(cell, drive)
    if params.dictionary is None:
        raise ValueError("params.dictionary: expected a tensor, found None: a decoder is not prepared")
    named = {f"params.{name}": tensor for name, tensor in _tensors(params).items()}
    for name, tensor in named.items():
        checks.tensor(name, tensor)
        if tensor.is_inference():
            raise TypeError(
                f"{name}: expected a tensor whose changes can be seen, found one of inference mode"
            )
    dictionary = params.dictionary
    half = dictionary.dtype == torch.bfloat16
    if half and pack:
        raise ValueError("pack: expected False or None for a bfloat16 dictionary, found True")
    others = params
    if checks.is_half(params.log_sigma):  # those of a module in half precision
        others = _raised(params, set(_tensors(params)) - ({"dictionary"} if half else set()))
    sample = others.log_sigma.detach().new_zeros((1, others.log_sigma.numel()))
    if half:  # sizes and types of the others are checked beside an empty stand-in of the dictionary's
        others = replace(others, dictionary=sample.new_zeros(()).expand(dictionary.shape))
    inputs, _ = tensors_of(sample, others, 1, True, None)
    checks.finite(**named)
    if half:
        inputs = inputs._replace(dictionary=dictionary)
    dense = driven(Inputs(*(tensor.detach().contiguous() for tensor in inputs)), None, drive)
    served = cpu.reason() is None and cpu.unserved(dense._replace(dictionary=dense.x)) is None
    return Prepared(params, dense, _packed(dense, cell, pack, drive) if served else None, pack, drive)


def _prepared(params: PoissonParams | GaussianParams, pack: bool | None, drive: str) -> Prepared:
    return prepare(params, pack=pack, drive=drive)


def _packed(dense: Inputs, cell: str, pack: bool | None, drive: str) -> Packed:
    """The same for the compiled kernels of a CPU."""
    module = compiled.load()
    (pixels, neurons), half = dense.dictionary.shape, dense.dictionary.dtype == torch.bfloat16
    if pack is None:
        pack = not half and module.packs(pixels, neurons)
    if pack:
        memory.check(
            "pack: two copies of the dictionary",
            8 * pixels * neurons,
            dense.x.device,
            "pack=False copies nothing",
        )
    of_parameters = structs.parameters(module, dense._replace(dictionary=dense.x) if half else dense)
    if half:
        of_parameters.dictionary, of_parameters.dictionary_bf16 = 0, dense.dictionary.data_ptr()
    of_cell = (cells.code(cell), cells.CELLS[cell].counts and drive != "expected")
    return Packed(module.Prepared(of_parameters, pixels, neurons, *of_cell, pack, torch.get_num_threads()))


def _raised(params: PoissonParams | GaussianParams, names: Iterable[str]) -> PoissonParams | GaussianParams:
    """The same, those of half precision among these tensors in float32."""
    wide: dict[str, Any] = {name: checks.raised(getattr(params, name)) for name in names}
    return replace(params, **wide)


def _tensors(params: PoissonParams | GaussianParams) -> dict[str, Tensor]:
    start = cells.CELLS[cells.name_of(params)].start
    return {name: getattr(params, name) for name in (*PARAMETERS, start)}

"""T steps of inference: ``infer``, and ``elbo``, the training loss with its gradient.

From "Brain-like variational inference" (arXiv 2410.19315) and its released code. One step, from log rates u:

    u_prior = u
    repeat n_inner times:
        z ~ Poisson(exp(u))
        u = log_rate_update(u, u_prior, Phi^T ((x - Phi z) / var), leak=beta_inner if n_inner > 1 else 0)
    z' ~ Poisson(exp(u))
    recon = sum_m (x - Phi z')^2 / (2 var) + log_sigma + log(2 pi) / 2
    kl    = sum_k KL(Poisson(exp(u)) || Poisson(exp(u_prior)))

With a decoder f of the caller's, Phi z is f(z), and Phi^T the vector-Jacobian product of f at z.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import _transforms, checks
from ..backend import choice
from ..params import State
from ..poisson.op import check_estimator
from . import composed, eager, library, loss_records, records, sparse, stretches
from .decoders import Decoder
from .problem import constants
from .task import Clamp, Params, RolloutDecoder, Task, task_of, unprepared

RECORDS = tuple(eager.RECORDS)
"""What ``infer`` can record of a step."""
LOSS_RECORDS = eager.LOSS_RECORDS
"""What ``elbo`` can record of a step."""


class InferResult(NamedTuple):
    """What :func:`infer` returns.

    Attributes:
        state: where the sequence stands; pass it to the next call to continue.
        records: by name, each [R, ...] over the recorded steps.
    """

    state: State
    records: dict[str, Tensor]


class ElboResult(NamedTuple):
    """What :func:`elbo` returns, everything differentiable.

    Attributes:
        loss: (recon + beta kl) averaged over steps and samples, times 256 / M; [].
        recon: reconstruction term, [T, B], nats.
        kl: KL term, [T, B], nats.
        state: where the sequence stands.
        records: by name, each [T, ...].
    """

    loss: Tensor
    recon: Tensor
    kl: Tensor
    state: State
    records: dict[str, Tensor]


_transforms.register_results(InferResult, ElboResult)


def infer(
    x: Tensor,
    params: Params,
    steps: int,
    *,
    decoder: nn.Module | Decoder | None = None,
    state: State | None = None,
    record: Iterable[str] = (),
    record_every: int = 1,
    seed: int | Tensor | None = None,
    n_inner: int = 1,
    beta_inner: float = 1.0,
    decay: float = 0.0,
    drive: str = "paper",
    clamp_u: Clamp = None,
    clamp_du: Clamp = None,
    kl: str = "exact",
    single_draw: bool = False,
    sample_offset: int | None = None,
    neuron_offset: int = 0,
    matmul_precision: str = "float32",
    backend: str = "auto",
    check: bool = True,
) -> InferResult:
    """Infers the state of each sample with hard counts; no gradient.

    A sequence may be cut anywhere: continuing from the state returned gives bit-identical results. A batch
    may be split with ``sample_offset``: the noise is the same, and so is every bit with the compiled CPU
    kernels; elsewhere products are laid out by the size of a batch, and sums agree to rounding, after which a
    draw near a threshold may fall otherwise. Memory does not grow with ``steps`` but through
    ``record``, and the fresh draw of a step is skipped where no record needs it.

    Noise is indexed by the seed, the global step and the global sample (``sample_offset`` plus the row), and
    by nothing else: two calls with one seed whose samples overlap draw the same spikes. Ranks or batches that
    share a seed need the index of their first sample as ``sample_offset``; a seed that is drawn is the rank's
    own where ``torch.distributed`` is initialised. Under ``torch.vmap`` with randomness="different",
    row v of batches of B starts at ``sample_offset`` + v B; "same" gives all rows the same draw, and torch's
    default, "error", is refused unless every row has a seed of its own.

    Args:
        x: input, [B, M], or one frame per step, [steps, B, M]; float32 or float64.
        params: :class:`PoissonParams` or :class:`GaussianParams`, of the dtype of x; or what :func:`prepare`
            made of them.
        steps: T >= 1.
        decoder: None: the linear one whose dictionary is in ``params``, fused. Else ``params.dictionary`` is
            None, and this is a module from codes [B, K] to means [B, M], each row by itself, or another
            :class:`Decoder`; steps are then composed from ops of the backend and calls of the decoder, and
            ``torch.vmap`` is not served. Noise, records and state are the same.
        state: continue from here; None starts from the initial state in ``params``.
        record: what to record of each recorded step, R steps in all:

            - "log_rate" [R, B, K] (Gaussian: the state, [R, 2, B, K]);
            - "counts" [R, B, K], the fresh draw z' (Gaussian: the latents after the activation);
            - "sparse_counts", the same as a sparse COO tensor: never dense but for some steps at a time;
            - "reconstruction" [R, B, M], Phi z';
            - "recon" and "kl" [R, B], nats;
            - "squared_error" [R, B], summed over pixels;
            - "spikes" [R, B], the sum of z';
            - "zeros" [R, B], the fraction of z' that is 0.
        record_every: global step t is recorded where (t + 1) % record_every == 0.
        seed: int64 of shape [], an int, or None: that of the state if it has one, else drawn from torch's
            generator.
        n_inner: updates per step, 1..256; 1 in the paper.
        beta_inner: weight of the pull towards the prior, >= 0; in force where n_inner > 1.
        decay: weight of a pull of every log rate towards 0 at every update, >= 0: a leaky membrane. With one
            update a step the log rate is its own prior, so the published rule has no leak; this is the
            natural gradient of the KL to a fixed prior. Without drive a neuron comes to rest at
            -exp(log_bias) / decay. Poisson models only; not in the paper.
        drive: what drives an update: "paper", the residual of counts, as published; "expected", the exact
            natural gradient of the expected reconstruction term, the residual of rates less half the diagonal
            of Phi^T Phi / var, which draws nothing; "sampled", an unbiased sample of that: the residual of
            counts less the same. The last two are of Poisson models with a linear decoder.
        clamp_u: ceiling of the log rate, default 10. Gaussian models: of mean and log sigma, default (7, 2).
        clamp_du: ceiling of the update, default 10. Gaussian models: of mean and log sigma, default (7, 3).
        kl: "exact", or "released": the formula of the released code, exp(u - u_prior) times the exact one.
        single_draw: the fresh draw of a step also drives the next update: not the paper's rule, and needs
            n_inner = 1 and a drive that draws.
        sample_offset: global index of the first sample; None takes that of the state, else 0.
        neuron_offset: global index of the first neuron, a multiple of 4: of a dictionary in parts, whose
            decoder sums their means.
        matmul_precision: format of matrix products on tensor cores: "float32" (float32-grade), or "tf32" or
            "bf16", whose error ``docs/design/triton.md`` states. Only "triton" has them; others compute in
            full.
        backend: "auto", "cpu", "cuda", "triton", "eager" or "autograd".
        check: raise where a tensor, the state or a record is not finite; costs a pass over each. Inside
            ``torch.func`` transforms, "autograd" does not look.

    Returns:
        The state, and the records by name in the order asked for.

    Raises:
        TypeError, ValueError: an argument is not as described.
        BackendError: a backend named cannot serve.
        MemoryError: the records do not fit; said before anything is computed, with what would.
        Interrupted: Ctrl-C (a KeyboardInterrupt) on a CPU; its ``result`` holds the steps that were finished.
    """
    check = checks.flag("check", check)
    record = _records(record, (*RECORDS, sparse.NAME))
    record_every = checks.integer("record_every", record_every, 1, 2**32)
    task = task_of(
        x, params, steps, decoder, state, seed, n_inner, beta_inner, decay, drive, clamp_u, clamp_du, kl,
        single_draw, sample_offset, neuron_offset, matmul_precision,
    )  # fmt: skip
    if sparse.NAME in record:
        if _traced():
            raise ValueError(f"record: {sparse.NAME!r} is not served by torch.compile and torch.func")
        dense = functools.partial(
            infer, params=params, decoder=decoder, record_every=record_every, n_inner=n_inner,
            beta_inner=beta_inner, decay=decay, drive=drive, clamp_u=clamp_u, clamp_du=clamp_du, kl=kl,
            single_draw=single_draw, neuron_offset=neuron_offset, matmul_precision=matmul_precision,
            backend=backend, check=check,
        )  # fmt: skip
        first = {"state": state, "seed": task.seed, "sample_offset": task.cfg.sample_offset}
        return sparse.infer(dense, x, task.cfg, record, record_every, first)
    backend = choice.select(backend)
    names = [name for name in RECORDS if name in record]
    if names and not _traced():
        records.check(task.tensors.x, task.tensors.log_rate, task.cfg, names, record_every)
    try:
        results = _inferred(task, tuple(names), record_every, backend, check)
    except stretches.Interrupted as interrupt:
        interrupt.result = _infer_result(task, interrupt.steps, names, record, interrupt.tensors)
        raise
    return _infer_result(task, task.cfg.steps, names, record, results)


def elbo(
    x: Tensor,
    params: Params,
    steps: int,
    *,
    decoder: nn.Module | Decoder | None = None,
    state: State | None = None,
    beta: float = 1.0,
    estimator: str = "cubic",
    temperature: float = 0.1,
    n_arrivals: int | Sequence[int] | Tensor | None = None,
    truncate: int | None = None,
    checkpoint: int | None = None,
    record: Iterable[str] = (),
    seed: int | Tensor | None = None,
    n_inner: int = 1,
    beta_inner: float = 1.0,
    decay: float = 0.0,
    drive: str = "paper",
    clamp_u: Clamp = None,
    clamp_du: Clamp = None,
    kl: str = "exact",
    single_draw: bool = False,
    sample_offset: int | None = None,
    neuron_offset: int = 0,
    matmul_precision: str = "float32",
    backend: str = "auto",
    check: bool = True,
) -> ElboResult:
    """The training loss, differentiable through all steps.

    loss = mean over steps and samples of (recon + beta kl), times 256 / M. Gradients reach x, every tensor of
    ``params`` (the initial state through the first step) and ``state.log_rate``. Noise is indexed as in
    :func:`infer`: ranks that train with one seed pass their ``sample_offset``.

    The backward by hand gives first derivatives, ``torch.func.grad`` and ``jacrev`` included. Second ones and
    forward mode are refused, but for ``backend="autograd"``, which has them. A state that goes into the next
    segment of a truncated training is cut from its graph by ``State.detach()``.

    Args:
        x: input, [B, M], or one frame per step, [steps, B, M]; float32 or float64.
        params: :class:`PoissonParams` or :class:`GaussianParams`, of the dtype of x; or what :func:`prepare`
            made of them.
        steps: T >= 1.
        decoder: as in :func:`infer`. Gradients reach its parameters; it has to be differentiable twice.
        state: continue from here; None starts from the initial state in ``params``.
        beta: weight of the KL term, >= 0.
        estimator: how counts are drawn and differentiated, see :func:`ipvae_kernels.poisson_rsample`.
            Gaussian models use neither it nor the next two; "gumbel" is served by autograd.
        temperature: of the relaxation, >= 0.
        n_arrivals: keep the first n >= 0 arrivals only; None keeps all. A sequence or an integer tensor [T]
            has a number for each step: steps whose numbers differ are fused apart.
        truncate: n >= 1: after every n steps the state continues as u0 + stop_gradient(u - u0), where u0 is
            the initial state in ``params``; None: the gradient runs through all steps.
        checkpoint: n >= 1: keep the trajectory of n steps at a time, and run each such segment once more in
            the backward; the values do not change. None: as many steps as fit in 64 MiB, which is all of them
            for short unrolls. What autograd serves keeps everything; with a decoder, None does, and so does
            what has records.
        record: what to keep of every step, differentiable: "log_rate" [T, B, K] (Gaussian: the state,
            [T, 2, B, K]); "counts" [T, B, K], the fresh draw z' (Gaussian: the latents after the activation);
            "reconstruction" [T, B, M], Phi z'; "kl_per_neuron" [T, B, K], nats, whose sum over neurons is
            ``kl``. The backward stays fused where neurons of a sample share a weight in "kl_per_neuron" and
            no other record is differentiated; else it is run in plain PyTorch.
        seed: as in :func:`infer`, like all that follow.
        n_inner: updates per step.
        beta_inner: weight of the pull towards the prior.
        decay: weight of the pull towards a log rate of 0.
        drive: "paper", "sampled" or "expected".
        clamp_u: ceiling of the state.
        clamp_du: ceiling of its update.
        kl: "exact" or "released"; the published values of beta belong to "released".
        single_draw: draw once per step.
        sample_offset: global index of the first sample.
        neuron_offset: global index of the first neuron.
        matmul_precision: of matrix products on tensor cores.
        backend: "auto", "cpu", "cuda", "triton", "eager" or "autograd".
        check: raise where a tensor, the result or, in the backward by hand, a gradient is not finite.

    Returns:
        loss [], recon [T, B], kl [T, B], the state, and the records by name in the order asked for.

    Raises:
        TypeError, ValueError: an argument is not as described; a tensor is not finite.
        BackendError: a backend named cannot serve, or a derivative that the backward by hand does not have.
    """
    check = checks.flag("check", check)
    beta = checks.number("beta", beta, 0.0)
    record = _records(record, LOSS_RECORDS)
    if record and _traced():
        raise ValueError("record: not served by torch.compile and torch.func in elbo")
    temperature, cuts = _arrivals(estimator, temperature, n_arrivals)
    if truncate is not None:
        truncate = checks.integer("truncate", truncate, 1, 2**32)
    if checkpoint is not None:
        checkpoint = checks.integer("checkpoint", checkpoint, 1, 2**32)
    task = task_of(
        x, unprepared(params), steps, decoder, state, seed, n_inner, beta_inner, decay, drive, clamp_u,
        clamp_du, kl, single_draw, sample_offset, neuron_offset, matmul_precision,
    )  # fmt: skip
    task = task.relaxed(estimator, temperature, None)
    steps, backend = task.cfg.steps, choice.select(backend)
    frames, log_rate = task.tensors.x, task.tensors.log_rate
    found = []
    for begin, end, n in _parts(steps, truncate, cuts):
        if begin and truncate is not None and begin % truncate == 0:
            # u0 + stop_gradient(u - u0), written so that the value of u stays bit-identical.
            log_rate = log_rate.detach() + (task.initial - task.initial.detach())
        part = frames[begin:end] if frames.dim() == 3 else frames
        cfg = task.cfg._replace(steps=end - begin, step=task.cfg.step + begin, n_arrivals=n)
        of_part = task._replace(tensors=task.tensors._replace(x=part, log_rate=log_rate), cfg=cfg)
        recon, kl_part, log_rate, *rows = _elbo_part(of_part, checkpoint, record, backend, check)
        found.append((recon, kl_part, *rows))
    recon, divergence, *recorded = (
        torch.cat(rows) if len(rows) > 1 else rows[0] for rows in zip(*found, strict=True)
    )
    loss = (recon + beta * divergence).sum() * (256.0 / (frames.shape[-1] * max(recon.numel(), 1)))
    records = dict(zip(record, recorded, strict=True))
    return ElboResult(loss, recon, divergence, _advanced(task, log_rate, steps), records)


def _arrivals(
    estimator: str, temperature: float, n_arrivals: int | Sequence[int] | Tensor | None
) -> tuple[float, int | list[int] | None]:
    """The temperature and the cut of the arrivals, or one for each step, checked."""
    each = n_arrivals.tolist() if isinstance(n_arrivals, Tensor) and n_arrivals.dim() else n_arrivals
    if not isinstance(each, Sequence) or isinstance(each, str):
        return check_estimator(estimator, temperature, each)
    if not each:
        raise ValueError("n_arrivals: expected a number or one for each step, found none")
    checked = [check_estimator(estimator, temperature, n) for n in each]
    return checked[0][0], [n for _, n in checked if n is not None]


def _parts(
    steps: int, truncate: int | None, cuts: int | list[int] | None
) -> Iterator[tuple[int, int, int | None]]:
    """The steps that are fused, from and to, with the cut of their arrivals."""
    if isinstance(cuts, list) and len(cuts) != steps:
        raise ValueError(f"n_arrivals: expected one for each of {steps} steps, found {len(cuts)}")
    # A range over a number that a compiled graph takes as an input would make it a constant.
    for begin in (0,) if truncate is None else range(0, steps, truncate):
        end = steps if truncate is None else min(begin + truncate, steps)
        if not isinstance(cuts, list):
            yield begin, end, cuts
            continue
        for n, run in itertools.groupby(range(begin, end), cuts.__getitem__):
            of_run = list(run)
            yield of_run[0], of_run[-1] + 1, n


def _records(record: object, known: Sequence[str]) -> tuple[str, ...]:
    """The names of records, checked; of any iterable, a generator too, in the order given."""
    if isinstance(record, str):
        raise TypeError(f"record: expected a collection of names, found the string {record!r}")
    if not isinstance(record, Iterable):
        raise TypeError(f"record: expected a collection of names, found {type(record).__name__}")
    return tuple(checks.choice("record", name, known) for name in record)


def _inferred(
    task: Task, names: tuple[str, ...], record_every: int, backend: str, check: bool
) -> Sequence[Tensor]:
    """The final state and the records."""
    packed = None if task.prepared is None else task.prepared.packed
    if packed is not None and backend in ("auto", "cpu") and not _traced():
        return library.infer_packed(packed, task.tensors, task.seed, task.cfg, names, record_every, check)
    if task.tensors.dictionary.dtype == torch.bfloat16:
        wide = task.tensors.dictionary.to(task.tensors.log_sigma.dtype)
        task = task._replace(tensors=task.tensors._replace(dictionary=wide))
    with _transforms.no_grad():
        if isinstance(task.decoder, RolloutDecoder):
            return task.decoder.infer(task, names, record_every, check)
        if task.decoder is not None or composed.by_autograd(backend, task.cfg):
            return _composed(task, names, record_every, backend, check)
        return _fused(task, names, record_every, backend, check)


def _fused(
    task: Task, names: tuple[str, ...], record_every: int, backend: str, check: bool
) -> Sequence[Tensor]:
    """The same by the op."""
    of_op = constants(task.seed, task.cfg)
    return library.infer(*task.tensors, *of_op, ",".join(names), record_every, backend, check)


def _composed(
    task: Task, names: tuple[str, ...], record_every: int, backend: str, check: bool
) -> Sequence[Tensor]:
    """The same by the driver in Python."""
    if check:
        library.check_finite(task.tensors)
    cell, state = composed.cell_for("infer", task, backend), task.tensors.log_rate
    with torch.autocast(state.device.type, enabled=False):
        found = eager.record_run(*composed.parts(task), cell, state, task.cfg, names, record_every)
    if check:
        checks.finite_result(library.DIVERGED, **dict(zip(("state", *names), found, strict=True)))
    return found


def _traced() -> bool:
    return torch.compiler.is_compiling() or _transforms.transformed()


def _elbo_part(
    task: Task, checkpoint: int | None, record: Sequence[str], backend: str, check: bool
) -> tuple[Tensor, ...]:
    """The halves of the loss, recon and kl [T, B], the final state, and records, of steps fused together."""
    if task.decoder is None and not composed.by_autograd(backend, task.cfg):
        arguments = (*task.tensors, *constants(task.seed, task.cfg))
        if not record:
            return library.elbo(*arguments, checkpoint, backend, check)
        *found, trajectory = library.elbo_recorded(*arguments, task.cfg.steps, backend, check)
        _, kl, _ = found
        cell = composed.plain_cell(task)
        return *found, *loss_records.of_trajectory(record, kl, task.tensors.x, trajectory, cell, task.cfg)
    if isinstance(task.decoder, RolloutDecoder):
        return task.decoder.elbo(task, checkpoint, check)
    if check:
        library.check_finite(task.tensors)
    cell = composed.cell_for("elbo", task, backend)
    kept = None if task.decoder is None else checkpoint
    with torch.autocast(task.tensors.x.device.type, enabled=False):
        recon, kl, log_rate, *rows = composed.elbo(
            *composed.parts(task), cell, task.tensors.log_rate, task.cfg, kept, record
        )
    if check:
        library.check_loss(recon, kl, log_rate)
    return recon, kl, log_rate, *rows


def _infer_result(
    task: Task, steps: int, names: list[str], record: Sequence[str], tensors: Sequence[Tensor]
) -> InferResult:
    """Of so many steps: the final log rate, and the records in canonical order."""
    log_rate, *rows = tensors
    found = dict(zip(names, rows, strict=True))
    return InferResult(_advanced(task, log_rate, steps), {name: found[name] for name in record})


def _advanced(task: Task, log_rate: Tensor, steps: int) -> State:
    return State(log_rate, task.cfg.step + steps, task.seed, task.cfg.sample_offset)

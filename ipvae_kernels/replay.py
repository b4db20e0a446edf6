"""Replays recorded runs of the authors' released code on the eager implementation.

    python -m ipvae_kernels.replay FILE... [--dtype float64|float32]

A file holds inputs, parameters, every random draw, and what the released code computed from them. Given the
same draws, the eager code must compute the same: by autograd, and with the gradient by hand. For each
array two errors are printed: the largest relative error |a - b| / (1e-6 + |b|), which must be at most 1e-8 in
float64, and max |a - b| / (1e-6 + max |b|), which in float32 must be at most 1e-4 for values and 1e-3 for
gradients (entries that cancel to nearly zero have no relative accuracy of their own there).

Exit status: 0 if every array of every file is within tolerance, 1 if not, 2 if a file cannot be read.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cells import CELLS, make_cell
from .philox import KIND_LOSS, Stream
from .poisson import divergence, noise, relaxation
from .rollout import eager as rollout
from .rollout.config import RolloutConfig
from .rollout.decoders import LinearDecoder
from .rollout.problem import Inputs, Upstream

FLOAT64_TOLERANCE = 1e-8
FLOAT32_TOLERANCES = {"value": 1e-4, "gradient": 1e-3}

_LOG_SIGMA_CEILING = 3.45  # s = 3.45 tanh(dec_log_sigma / 3.45)
_GSM = "gsm"


class ReplayError(Exception):
    """A file that is damaged, or not a recorded run."""


class RecordedNoise:
    """Draws that were recorded, indexed by step and by draw within the step (the fresh draw is the last).

    Args:
        exponentials: standard exponentials of the arrivals, [T, n_inner + 1, n_exp, B, K]; all of them are
            summed.
        spikes: hard counts, [T, n_inner + 1, B, K].
        normals: standard normals, [T, n_inner + 1, B, K].
    """

    def __init__(
        self,
        *,
        exponentials: Tensor | None = None,
        spikes: Tensor | None = None,
        normals: Tensor | None = None,
    ) -> None:
        self._exponentials, self._spikes, self._normals = exponentials, spikes, normals

    @staticmethod
    def _at(recorded: Tensor | None, stream: Stream) -> Tensor:
        if recorded is None:
            raise ReplayError("the file does not hold the draws that its kind of run needs")
        return recorded[stream.step, -1 if stream.kind == KIND_LOSS else stream.inner]

    def counts(self, rate: Tensor, stream: Stream) -> Tensor:
        """The recorded counts."""
        return self._at(self._spikes, stream)

    def arrivals(
        self, rate: Tensor, half_width: float, temperature: float, n_arrivals: int | None, stream: Stream
    ) -> tuple[Tensor, noise.Arrivals]:
        """All recorded arrivals, with no cut."""
        times = (self._at(self._exponentials, stream).cumsum(0) / rate).flatten(1)
        rows = torch.arange(rate.numel(), device=rate.device).expand_as(times)
        return torch.zeros_like(rate), [(rows.flatten(), 1.0 - times.flatten())]

    def normal(self, like: Tensor, stream: Stream) -> Tensor:
        """The recorded normals."""
        return self._at(self._normals, stream)

    def gumbel(self, like: Tensor, n: int, stream: Stream) -> Tensor:
        """No recorded trajectory uses them."""
        raise ReplayError("Gumbel noise is recorded for single draws only")


class Golden:
    """A recorded run: ``meta`` and arrays as tensors of the dtype asked for."""

    def __init__(self, path: str | Path, dtype: torch.dtype = torch.float64) -> None:
        """Reads a file without executing anything in it.

        Raises:
            ReplayError: the file is damaged or not a recorded run.
        """
        if not zipfile.is_zipfile(path):
            raise ReplayError("not an .npz archive, or there is no such file")
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ReplayError(f"cannot be read as an .npz archive: {error}") from error
        self.meta = self._json(arrays, "meta")
        self.cases = self._json(arrays, "cases")
        self._tensors = {
            name: torch.as_tensor(array, device="cpu").to(dtype)
            for name, array in arrays.items()
            if array.dtype.kind == "f"
        }

    @staticmethod
    def _json(arrays: dict[str, Any], name: str) -> Any:
        try:
            return json.loads(str(arrays[name])) if name in arrays else None
        except json.JSONDecodeError as error:
            raise ReplayError(f"{name} is not JSON: {error}") from error

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise ReplayError(f"not a recorded run: the array {name!r} is missing")
        return self._tensors[name]

    def get(self, name: str) -> Tensor | None:
        """The array, or None where the file does not hold it."""
        return self._tensors.get(name)


Computed = dict[str, Tensor]


def replay(golden: Golden) -> Iterator[tuple[str, Computed]]:
    """Yields each mode that serves the file, and what it computes, by the names of the file's arrays."""
    if golden.cases is not None:
        yield "autograd", _estimators(golden, _estimate_by_autograd)
        yield "by hand", _estimators(golden, _estimate_by_hand)
        return
    if golden.meta is None:
        raise ReplayError("not a recorded run: it holds neither 'meta' nor 'cases'")
    kind = golden.meta.get("kind")
    if kind not in ("poisson", "gaussian"):
        raise ReplayError(f"meta: expected kind 'poisson' or 'gaussian', found {kind!r}")
    yield "autograd", _by_autograd(golden)
    yield "by hand", _by_hand(golden)


def _noise(golden: Golden) -> RecordedNoise:
    return RecordedNoise(
        exponentials=golden.get("exp_noise"), spikes=golden.get("spikes"), normals=golden.get("normal_noise")
    )


def _config(golden: Golden) -> RolloutConfig:
    meta = golden.meta
    cfg = RolloutConfig(
        steps=meta["T"], n_inner=meta["n_inner"], beta_inner=meta["beta_inner"], clamp_u=meta["clamp_u"][0],
        clamp_du=meta["clamp_du"][0], kl="released",
    )  # fmt: skip
    if meta["kind"] == "poisson":
        return cfg._replace(estimator=meta["indicator"] or "hard", temperature=meta["temperature"])
    cell = "gaussian_relu" if meta["latent_act"] == "relu" else "gaussian"
    return cfg._replace(cell=cell, clamp_xi=meta["clamp_u"][1], clamp_dxi=meta["clamp_du"][1])


_PARAMETERS = ("weight", "dec_log_sigma", "log_bias", "log_lr", "u_init")


def _log_sigma(dec_log_sigma: Tensor) -> Tensor:
    return _LOG_SIGMA_CEILING * torch.tanh(dec_log_sigma / _LOG_SIGMA_CEILING)


def _step_sizes(log_lr: Tensor) -> Tensor:
    """[S] -> [] for the one state variable of Poisson, [2] for Gaussian."""
    return log_lr[0] if len(log_lr) == 1 else log_lr


def _initial(u_init: Tensor, batch: int) -> Tensor:
    """[S, K] -> [B, K] for the one state variable of Poisson, [2, B, K] for Gaussian."""
    state = u_init.unsqueeze(1).expand(-1, batch, -1)
    return state[0] if len(state) == 1 else state


def _by_autograd(golden: Golden) -> Computed:
    meta, cfg, noise = golden.meta, _config(golden), _noise(golden)
    with_gradient = "grad_weight" in golden
    parameters = [golden[name].clone().requires_grad_(with_gradient) for name in _PARAMETERS]
    weight, dec_log_sigma, log_bias, log_lr, u_init = parameters
    log_sigma = _log_sigma(dec_log_sigma)
    cell = make_cell(log_bias, _step_sizes(log_lr), noise, cfg, differentiable=True)
    x = golden["x"]
    steps = list(rollout.run(x, LinearDecoder(weight), log_sigma, cell, _initial(u_init, x.shape[-2]), cfg))
    errors = torch.stack([step.errors[-1] for step in steps])
    recon = torch.stack([rollout.reconstruction_loss(step.errors[-1], log_sigma) for step in steps])
    kl = torch.stack([cell.kl(step.states[-1], step.states[0]) for step in steps])
    loss = _loss(recon, kl.sum(-1), golden)
    computed = {
        "u": torch.stack([step.states[-1] for step in steps]),
        "z_infer": torch.stack([torch.stack([draw.sample for draw in step.draws[:-1]]) for step in steps]),
        "z_generate": torch.stack([step.draws[-1].sample for step in steps]),
        "recon_mean": x - errors,
        "loss_recon": recon,
        "loss_kl": kl,
        "loss": loss,
    }
    if meta["kind"] == "poisson":
        posterior, prior = computed["u"], torch.stack([step.states[0] for step in steps])
        computed["loss_kl_exact"] = divergence.kl(posterior, prior, "exact")
    if with_gradient:
        gradients = torch.autograd.grad(loss, parameters)
        computed |= {f"grad_{name}": grad for name, grad in zip(_PARAMETERS, gradients, strict=True)}
    return {name: tensor.detach() for name, tensor in computed.items()}


def _by_hand(golden: Golden) -> Computed:
    cfg, x = _config(golden), golden["x"]
    dec_log_sigma = golden["dec_log_sigma"].clone().requires_grad_()
    log_sigma = _log_sigma(dec_log_sigma)
    log_bias, log_lr = golden["log_bias"], _step_sizes(golden["log_lr"])
    log_rate = _initial(golden["u_init"], x.shape[-2])
    inputs = Inputs(x, golden["weight"], log_sigma.detach(), log_bias, log_lr, log_rate)
    recon, kl, _, trajectory = rollout.elbo_with(_noise(golden), inputs, cfg)
    path, counts, slopes, errors, _ = trajectory
    posterior, prior = path[cfg.n_inner :: cfg.n_inner], path[: -1 : cfg.n_inner]
    cell = make_cell(log_bias, log_lr, _noise(golden), cfg)
    samples = counts
    if not CELLS[cfg.cell].counts:
        # What is saved is activated; the samples follow from the states they were drawn from and the normals.
        drawn_from = path.unfold(0, cfg.n_inner + 1, cfg.n_inner).movedim(-1, 1)
        samples = drawn_from[:, :, 0] + torch.exp(drawn_from[:, :, 1]) * slopes
    computed = {
        "u": posterior,
        "z_infer": samples[:, :-1],
        "z_generate": samples[:, -1],
        "recon_mean": x - errors[:, -1],
        "loss_recon": recon,
        "loss_kl": torch.stack([cell.kl(*states) for states in zip(posterior, prior, strict=True)]),
        "loss": _loss(recon, kl, golden),
    }
    if CELLS[cfg.cell].counts:
        computed["loss_kl_exact"] = divergence.kl(posterior, prior, "exact")
    if "grad_weight" in golden:
        scale = 256.0 / x.shape[-1] / recon.numel()
        upstream = Upstream(
            grad_recon=torch.full_like(recon, scale),
            grad_kl=torch.full_like(kl, scale * golden.meta["beta_outer"]),
            grad_log_rate=torch.zeros_like(log_rate),
        )
        grads = rollout.elbo_backward(upstream, inputs, trajectory, cfg)
        computed["grad_weight"], computed["grad_log_bias"] = grads.dictionary, grads.log_bias
        (computed["grad_dec_log_sigma"],) = torch.autograd.grad(log_sigma, dec_log_sigma, grads.log_sigma)
        computed["grad_log_lr"] = grads.log_lr.view(-1)
        computed["grad_u_init"] = grads.log_rate.sum(-2).view(len(golden["u_init"]), -1)
    return computed


def _loss(recon: Tensor, kl: Tensor, golden: Golden) -> Tensor:
    beta = float(golden.meta["beta_outer"])
    return (recon + beta * kl).mean() * (256.0 / golden["x"].shape[-1])


def _estimators(
    golden: Golden, estimate: Callable[[Golden, str, str], tuple[Tensor, Tensor] | None]
) -> Computed:
    computed = {}
    for case in golden.cases:
        result = estimate(golden, *case.split("/", 1))
        if result is not None:
            computed[f"{case}/z"], computed[f"{case}/dz_dlog_rate"] = (tensor.flatten() for tensor in result)
    return computed


def _estimator_rate(log_rate: Tensor) -> Tensor:
    """The rate as the estimators' code floors it, unlike the released iP-VAE."""
    return torch.exp(log_rate).clamp(min=torch.finfo(torch.float64).eps)


def _estimator_arrivals(golden: Golden, rate: Tensor, temperature: float) -> tuple[Tensor, noise.Arrivals]:
    noise = RecordedNoise(exponentials=golden["exp_noise"][None, None, :, None])
    return noise.arrivals(rate, math.inf, temperature, None, Stream(step=0))


def _estimate_by_autograd(golden: Golden, family: str, case: str) -> tuple[Tensor, Tensor]:
    name, temperature = case.split("/")
    log_rate = golden["log_rate"].clone()[None].requires_grad_()
    if family == _GSM:
        gumbels = -torch.log(golden["gsm_exponential"])
        z = relaxation.gumbel_counts(log_rate, gumbels, float(temperature))
    else:
        rate = _estimator_rate(log_rate)
        saturated, arrivals = _estimator_arrivals(golden, rate.detach(), float(temperature))
        z = relaxation.relaxed_counts(
            rate, saturated, arrivals, relaxation.INDICATORS[name], float(temperature)
        )
    (gradient,) = torch.autograd.grad(z.sum(), log_rate)
    return z.detach(), gradient


def _estimate_by_hand(golden: Golden, family: str, case: str) -> tuple[Tensor, Tensor] | None:
    if family == _GSM:
        return None  # served by autograd alone
    name, temperature = case.split("/")
    saturated, arrivals = _estimator_arrivals(
        golden, _estimator_rate(golden["log_rate"][None]), float(temperature)
    )
    return relaxation.relaxed_counts_and_slopes(
        saturated, arrivals, relaxation.INDICATORS[name], float(temperature)
    )


def relative_error(computed: Tensor, expected: Tensor) -> float:
    """The largest |a - b| / (1e-6 + |b|); infinite for shapes that differ, NaN where a NaN is."""
    if computed.shape != expected.shape:
        return math.inf
    a, b = computed.double(), expected.double()
    return float(((a - b).abs() / (1e-6 + b.abs())).max())


def scaled_error(computed: Tensor, expected: Tensor) -> float:
    """The largest |a - b| over (1e-6 + the largest |b|); else as :func:`relative_error`."""
    if computed.shape != expected.shape:
        return math.inf
    a, b = computed.double(), expected.double()
    return float((a - b).abs().max() / (1e-6 + b.abs().max()))


def _passes(name: str, computed: Tensor, expected: Tensor, dtype: str) -> bool:
    if dtype == "float64":
        return relative_error(computed, expected) <= FLOAT64_TOLERANCE
    is_gradient = name.startswith("grad_") or name.endswith("dz_dlog_rate")
    return scaled_error(computed, expected) <= FLOAT32_TOLERANCES["gradient" if is_gradient else "value"]


def _report(path: str, dtype: str) -> int:
    """Replays one file, prints a line per array and one for the file, and returns the exit status."""
    print(f"{path} ({dtype})")
    errors: list[tuple[float, float]] = []
    failed = 0
    try:
        golden, expected = Golden(path, getattr(torch, dtype)), Golden(path)
        for mode, computed in replay(golden):
            for name, tensor in computed.items():
                passes = _passes(name, tensor, expected[name], dtype)
                errors.append((relative_error(tensor, expected[name]), scaled_error(tensor, expected[name])))
                failed += not passes
                numbers = "  ".join(f"{error:8.1e}" for error in errors[-1])
                print(f"  {mode:8}  {name:30} {numbers}{'' if passes else '  FAIL'}")
        if not errors:
            raise ReplayError("not a recorded run: there is nothing to compare")
    except ReplayError as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 2
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        print(
            f"{path}: not a recorded run, or a damaged one: {type(error).__name__}: {error}", file=sys.stderr
        )
        return 2
    count = len(errors)
    verdict = f"FAIL: {failed} of {count} arrays beyond tolerance" if failed else f"ok: {count} arrays"
    relative, scaled = (max(column) for column in zip(*errors, strict=True))
    print(f"{path}: {verdict}, largest relative error {relative:.1e}, to scale {scaled:.1e}")
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m ipvae_kernels.replay",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="recorded run, .npz")
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64")
    options = parser.parse_args(arguments)
    return max(_report(path, options.dtype) for path in options.files)


if __name__ == "__main__":
    sys.exit(main())

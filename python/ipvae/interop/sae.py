"""Iterative inference with the face of a sparse autoencoder: `SpikingSAE`, to and from SAELens' files.

What people do with a sparse autoencoder (encode, decode, steer by ``W_dec``, evaluate) they can do with a
spiking network whose dictionary is learned here or is the decoder of theirs. Counts are whole numbers,
activations are not, so every neuron has a unit: the activation that one spike stands for.

With a fixed dictionary the update of the log rates (arXiv 2410.19315) rests where
``Phi_k^T (x - Phi z) / sigma^2 = inhibition_k`` for all neurons that spike: the solution of a non-negative
Lasso with the penalty ``inhibition * sigma^2 / unit``, found by spikes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import ipvae_kernels
from ipvae_kernels import InferResult, PoissonParams, State, checks

from ..checkpoint import CheckpointError, atomic_file
from ..extras import explained

with explained():
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from safetensors.torch import save as safetensors_bytes

if TYPE_CHECKING:
    from ..models.poisson import IPVAE

CONFIG, WEIGHTS, OWN = "cfg.json", "sae_weights.safetensors", "ipvae.safetensors"
# What an encoding is told, and kept of it in a file.
SETTINGS = ("steps", "last", "threshold", "seed", "clamp_u", "clamp_du")
# Rows encoded at once: their log rates take 256 MiB with 65,536 neurons.
ROWS = 1024
# Counts held at once: 64 MiB.
ENTRIES = 2**24


class SpikingSAE(nn.Module):
    """A dictionary, and inference by spikes, as a sparse autoencoder.

    Make one with `from_model` or `load`.

    Args:
        W_dec: features as rows, [d_sae, d_in].
        b_dec: subtracted from inputs and added to reconstructions, [d_in].
        unit: activation that a spike stands for, > 0, [d_sae].
        log_sigma: log standard deviation of the inputs around their reconstruction, [d_in].
        log_bias: log of the constant inhibition, [d_sae].
        log_lr: log step size, [].
        log_rate_init: log rates before the first step, [d_sae].
        steps: of inference, >= last.
        last: how many steps at the end counts are averaged over.
        threshold: spikes a step under which a neuron counts as silent.
        seed: of the noise; the same input in the same row has the same code.
        clamp_u: soft ceiling of the log rates.
        clamp_du: of an update.

    Attributes:
        cfg: ``d_in``, ``d_sae``, ``dtype``, ``device`` and what SAELens' evaluations look for besides.

    Raises:
        TypeError, ValueError: a tensor or a number is not as described.
    """

    W_dec: Tensor
    b_dec: Tensor
    unit: Tensor
    log_sigma: Tensor
    log_bias: Tensor
    log_lr: Tensor
    log_rate_init: Tensor

    def __init__(
        self, W_dec: Tensor, b_dec: Tensor, *, unit: Tensor, log_sigma: Tensor, log_bias: Tensor,
        log_lr: Tensor, log_rate_init: Tensor, steps: int = 128, last: int = 32, threshold: float = 1.0,
        seed: int = 0, clamp_u: float = 10.0, clamp_du: float = 10.0,
    ) -> None:  # fmt: skip
        super().__init__()
        checks.tensor("W_dec", W_dec)
        if W_dec.ndim != 2:
            raise ValueError(f"W_dec: expected shape [d_sae, d_in], found {list(W_dec.shape)}")
        neurons, inputs = W_dec.shape
        given = {
            "b_dec": (b_dec, [inputs]), "log_sigma": (log_sigma, [inputs]), "unit": (unit, [neurons]),
            "log_bias": (log_bias, [neurons]), "log_rate_init": (log_rate_init, [neurons]),
            "log_lr": (log_lr, []),
        }  # fmt: skip
        self.W_dec = nn.Parameter(W_dec.detach().clone(), requires_grad=False)
        for name, (value, shape) in given.items():
            checks.tensor(name, value)
            if list(value.shape) != shape:
                raise ValueError(f"{name}: expected shape {shape}, found {list(value.shape)}")
            setattr(self, name, nn.Parameter(value.detach().clone(), requires_grad=False))
        if not bool((self.unit > 0).all()):
            raise ValueError(f"unit: expected numbers > 0, found {float(unit.min())}")
        self.last = checks.integer("last", last, 1, 2**31)
        self.steps = checks.integer("steps", steps, self.last, 2**31)
        self.threshold = checks.number("threshold", threshold, 0.0)
        self.seed = checks.integer("seed", seed, -(2**63), 2**63 - 1)
        self.clamp_u = checks.number("clamp_u", clamp_u)
        self.clamp_du = checks.number("clamp_du", clamp_du)

    @property
    def cfg(self) -> SimpleNamespace:
        """What evaluations ask a sparse autoencoder's configuration for."""
        return SimpleNamespace(
            d_sae=self.W_dec.shape[0], d_in=self.W_dec.shape[1], device=str(self.device),
            dtype=str(self.dtype).partition(".")[2], apply_b_dec_to_input=True, normalize_activations="none",
            reshape_activations="none", architecture=lambda: "standard", metadata=SimpleNamespace(),
        )  # fmt: skip

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.W_dec.device

    @property
    def dtype(self) -> torch.dtype:
        """Of its parameters, and of what `encode` gives."""
        return self.W_dec.dtype

    @property
    def params(self) -> PoissonParams:
        """The network as `ipvae_kernels` takes it."""
        return PoissonParams(
            (self.W_dec * self.unit[:, None]).T.contiguous(), self.log_sigma, self.log_bias, self.log_lr,
            self.log_rate_init,
        )  # fmt: skip

    @torch.no_grad()
    def encode(self, x: Tensor, *, backend: str = "auto") -> Tensor:
        """Activations by inference: counts averaged over the last steps, in units of each neuron.

        Args:
            x: activations of a model, [..., d_in].
            backend: of `ipvae_kernels`.

        Returns:
            [..., d_sae], >= 0; 0 where a neuron spikes less than `threshold` times a step.

        Raises:
            TypeError, ValueError: other inputs, or such that are not finite.
        """
        rows = self._rows("x", x, self.W_dec.shape[1]).to(self.device, self.dtype) - self.b_dec
        params: Any = self.params
        if self.dtype == torch.float32 and backend in ("auto", "cpu") and self.device.type == "cpu":
            params = ipvae_kernels.prepare(params)
        starts = range(0, len(rows), ROWS)
        found = [self._mean_counts(rows[i : i + ROWS], params, i, backend) for i in starts]
        mean = torch.cat(found) if found else rows.new_zeros(0, len(self.unit))
        codes = torch.where(mean >= self.threshold, mean, 0.0).to(self.dtype) * self.unit
        return codes.reshape(*x.shape[:-1], len(self.unit))

    def _mean_counts(self, x: Tensor, params: Any, first: int, backend: str) -> Tensor:
        """Counts of rows from the first on, averaged over the last steps, [B, K]."""

        def infer(steps: int, state: State | None, record: tuple[str, ...]) -> InferResult:
            return ipvae_kernels.infer(
                x, params, steps, state=state, seed=self.seed, sample_offset=first, record=record,
                clamp_u=self.clamp_u, clamp_du=self.clamp_du, backend=backend,
            )  # fmt: skip

        state = infer(self.steps - self.last, None, ()).state if self.steps > self.last else None
        total = torch.zeros(len(x), len(self.unit), device=x.device)
        chunk = max(1, ENTRIES // total.numel())
        for done in range(0, self.last, chunk):
            result = infer(min(chunk, self.last - done), state, ("counts",))
            state = result.state
            total += result.records["counts"].sum(0)
        return total / self.last

    def decode(self, feature_acts: Tensor) -> Tensor:
        """Reconstructions: [..., d_sae] to [..., d_in]."""
        codes = self._rows("feature_acts", feature_acts, self.W_dec.shape[0]).to(self.device, self.dtype)
        return (codes @ self.W_dec + self.b_dec).reshape(*feature_acts.shape[:-1], len(self.b_dec))

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions of inputs, [..., d_in]."""
        return self.decode(self.encode(x))

    def _rows(self, name: str, value: Tensor, width: int) -> Tensor:
        checks.tensor(name, value)
        if value.ndim == 0 or value.shape[-1] != width:
            raise ValueError(f"{name}: expected shape [..., {width}], found {list(value.shape)}")
        return value.reshape(-1, width)

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes ``cfg.json`` and ``sae_weights.safetensors`` as SAELens reads them, and our parameters.

        For SAELens it is a "standard" autoencoder whose encoder is one thresholded product with the
        dictionary, what the first step of inference does; `load` brings inference back.

        Args:
            folder: created.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        gain = torch.exp(-2.0 * self.log_sigma.cpu())
        inhibition = self.log_bias.cpu().exp() / self.unit.cpu()
        theirs = {
            "W_dec": state["W_dec"], "b_dec": state["b_dec"],
            "W_enc": (state["W_dec"] * gain).T.contiguous(), "b_enc": -inhibition,
        }  # fmt: skip
        own = {name: value for name, value in state.items() if name not in theirs}
        settings = {name: getattr(self, name) for name in SETTINGS}
        names = ("d_in", "d_sae", "dtype", "device", "apply_b_dec_to_input", "normalize_activations")
        cfg = {name: getattr(self.cfg, name) for name in (*names, "reshape_activations")}
        cfg |= {"architecture": "standard", "device": "cpu", "metadata": {"ipvae": settings}}
        for name, tensors in ((WEIGHTS, theirs), (OWN, own)):
            with atomic_file(folder / name) as file:
                file.write(safetensors_bytes(tensors))
        with atomic_file(folder / CONFIG) as file:
            file.write(json.dumps(cfg, indent=2).encode() + b"\n")


def from_model(model: IPVAE, b_dec: Tensor | None = None, **settings: Any) -> SpikingSAE:
    """The network of a trained model as a sparse autoencoder.

    Features get length 1, and a spike's activation is the length they had.

    Args:
        model: with a linear decoder and the paper's updates (``drive="paper"``, no decay).
        b_dec: what was subtracted from its training inputs, [d_in]; None: nothing.
        settings: ``steps``, ``last``, ``threshold``, ``seed`` of `SpikingSAE`; clamps are the model's.

    Raises:
        TypeError, ValueError: another model.
    """
    if getattr(model, "cell", None) != "poisson":
        raise TypeError(f"model: expected an IPVAE, found {type(model).__name__}")
    config = model.config
    if config.drive != "paper" or config.decay or config.n_inner > 1:
        raise ValueError(
            "model: expected drive='paper' without decay or inner updates, found "
            f"{config.drive!r}, {config.decay}, {config.n_inner}"
        )
    params = model.params
    dictionary = model.dictionary.detach()
    unit = dictionary.norm(dim=0).clamp(min=torch.finfo(dictionary.dtype).tiny)
    return SpikingSAE(
        (dictionary / unit).T, torch.zeros_like(dictionary[:, 0]) if b_dec is None else b_dec, unit=unit,
        log_sigma=params.log_sigma, log_bias=params.log_bias, log_lr=params.log_lr,
        log_rate_init=params.log_rate_init, **{**model.clamps, **settings},
    )  # fmt: skip


def load(
    folder: str | PathLike[str], *, unit: float = 1.0, sigma: float = 1.0, penalty: float = 1.0,
    step_size: float = 0.1, log_rate: float = -2.0, **settings: Any,
) -> SpikingSAE:  # fmt: skip
    """Reads ``cfg.json`` and ``sae_weights.safetensors``: what `SpikingSAE.save` or SAELens wrote.

    Of SAELens' autoencoders the decoder counts (``W_dec``, ``b_dec``); codes are inferred, whatever their
    encoder was. The numbers below are those of the network then; what `SpikingSAE.save` wrote has its own.

    Args:
        folder: with the two files.
        unit: activation that a spike stands for, > 0. Activations of 5 with a unit of 1 are counts of about
            5; smaller units have less noise, and need smaller steps.
        sigma: standard deviation of the inputs around their reconstruction, > 0.
        penalty: of the Lasso that spikes solve, >= 0, in units of activations: 1 makes activations smaller by
            about 1, and larger ones fewer.
        step_size: of the log rates, > 0: under ``2 sigma^2 / (unit * activation)``, or rates swing.
        log_rate: before the first step.
        settings: ``steps``, ``last``, ``threshold``, ``seed`` of `SpikingSAE`, instead of the saved ones.

    Raises:
        CheckpointError: a file is missing or damaged, or of another architecture (the message says what was
            expected and found).
        ValueError: a number is out of range.
    """
    folder = Path(folder)
    cfg, weights = _read_config(folder / CONFIG), _read_tensors(folder / WEIGHTS)
    _check(folder, cfg, weights)
    saved = dict(cfg.get("metadata") or {}).get("ipvae")
    if isinstance(saved, Mapping):
        own = _read_tensors(folder / OWN)
        return SpikingSAE(weights["W_dec"], weights["b_dec"], **{**own, **saved, **settings})
    positive = {"unit": unit, "sigma": sigma, "step_size": step_size}
    unit, sigma, step_size = (checks.number(n, v, 0.0, above=True) for n, v in positive.items())
    penalty = checks.number("penalty", penalty, 0.0)
    features = weights["W_dec"].float()
    neurons, inputs = features.shape
    # With no penalty at all, as little as the log rates' floor lets be told from none.
    inhibition = max(penalty * unit / sigma**2, 1e-6)
    full = torch.full
    return SpikingSAE(
        features, weights["b_dec"].float(), unit=full((neurons,), unit),
        log_sigma=full((inputs,), math.log(sigma)), log_bias=full((neurons,), math.log(inhibition)),
        log_lr=torch.tensor(math.log(step_size)), log_rate_init=full((neurons,), float(log_rate)), **settings,
    )  # fmt: skip


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged ({error})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected an object, found {type(found).__name__}")
    return found


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file ({error})") from error


def _check(folder: Path, cfg: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Refuses what is no autoencoder of activations with a linear decoder."""
    wrong: list[str] = []
    architecture = str(cfg.get("architecture", "none"))
    if "transcoder" in architecture or architecture in ("crosscoder", "temporal", "clt"):
        wrong.append(f"architecture: expected an autoencoder with a linear decoder, found {architecture!r}")
    for name in ("normalize_activations", "reshape_activations"):
        if (found := cfg.get(name, "none")) not in ("none", None):
            wrong.append(
                f"{name}: expected 'none', found {found!r}; SAELens can fold a norm into the weights"
            )
    sizes = [cfg.get("d_sae"), cfg.get("d_in")]
    for name, shape in (("W_dec", sizes), ("b_dec", sizes[1:])):
        tensor = weights.get(name)
        if tensor is None:
            wrong.append(f"{name}: expected {shape}, found none among {sorted(weights)}")
        elif list(tensor.shape) != shape:
            wrong.append(f"{name}: expected {shape} (d_sae, d_in of {CONFIG}), found {list(tensor.shape)}")
        elif not torch.isfinite(tensor).all():
            wrong.append(f"{name}: holds values that are not finite")
    if wrong:
        raise CheckpointError(f"{folder}: " + "\n  ".join(wrong))

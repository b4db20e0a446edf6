"""States to time on: dictionaries trained here, and larger, smaller, quieter and busier ones made from them.

Time depends on how many neurons spike, and random weights let the rates run away; so nothing here is random.
Trained are, by the recipe of `ipvae demo` on whitened patches of scikit-learn's photographs (no download),
"paper" (16x16 pixels, 512 neurons) and "pixels784" (28x28 pixels, 512 neurons). The others are derived from
"paper", see `_derive`:

* "mlp784" is trained like "pixels784", with an MLP for a decoder and 128 neurons;
* "wide": 8,192 neurons on 32x32 pixels, every trained feature at 16 places of a 4x4 grid;
* "paper-k<K>": the first K neurons, or all of them shifted cyclically by K/512 different offsets;
* "paper-firing<s>": the trained features with log rates moved until the share s of the counts is not 0.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import secrets
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from ipvae import IPVAE, PVAE, VAE, PVAEConfig, TrainConfig
from ipvae.models.config import DECODERS
from safetensors.torch import load_file, save_file
from torch import Tensor

POOL = 2048
"""Inputs kept with a state."""
UPDATES = {"quick": 200, "full": 3000}
"""Optimiser steps of the training: seconds, and minutes, on two cores."""
FIRING_STEPS, FIRING_SHIFTS = 16, (-8.0, 2.0)


@dataclass(frozen=True)
class Spec:
    """What a state is.

    Attributes:
        side: of the patches, pixels.
        neurons: K.
        trained: whether it is trained itself, not derived.
        firing: share of counts that are not 0, where it is set; else the trained one.
        decoder: of `ipvae.IPVAEConfig`.
    """

    side: int
    neurons: int
    trained: bool = False
    firing: float | None = None
    decoder: str = "linear"

    @property
    def hidden_weights(self) -> int:
        """Weights of an MLP, the numbers that a pass of one code multiplies; 0 of a linear decoder."""
        width = DECODERS[self.decoder].width
        return width * (self.neurons + width + self.pixels)

    @property
    def pixels(self) -> int:
        """M."""
        return self.side**2


STATES = {
    "paper": Spec(16, 512, trained=True),
    "pixels784": Spec(28, 512, trained=True),
    "mlp784": Spec(28, 128, trained=True, decoder="mlp"),
    "wide": Spec(32, 8192),
    **{f"paper-k{2**i}": Spec(16, 2**i) for i in range(7, 16) if i != 9},
    **{
        f"paper-firing{share:g}": Spec(16, 512, firing=share)
        for share in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0)
    },
}


@dataclass(frozen=True)
class State:
    """A model and inputs for it.

    Attributes:
        name: in `STATES`.
        updates: optimiser steps behind it.
        model: not to be changed; its KL is that of the released code, which all contestants have.
        x: [POOL, M], training patches.
    """

    name: str
    updates: int
    model: IPVAE
    x: Tensor


def cache_dir() -> Path:
    """Where states are kept unless told otherwise."""
    import pooch  # type: ignore[import-untyped]

    return Path(pooch.os_cache("ipvae")) / "bench"


def load(name: str, updates: int, folder: Path, tell: Callable[[str], None] = lambda _: None) -> State:
    """A state, trained first where the folder does not have it. Seeded: the same everywhere, up to rounding.

    Args:
        name: in `STATES`.
        updates: optimiser steps of the training.
        folder: of the cache.
        tell: receives a line before anything that takes a while.
    """
    spec = STATES[name]
    if spec.trained:
        return _trained(name, updates, folder, tell)
    base = load("paper", updates, folder, tell)
    x = base.x if spec.pixels == base.model.config.n_inputs else _patches(spec.side)
    return State(name, updates, _derive(base.model, spec, x), x)


@functools.lru_cache(maxsize=4)
def _trained(name: str, updates: int, folder: Path, tell: Callable[[str], None]) -> State:
    where = folder / f"{name}-{updates}"
    if not where.is_dir():
        _train(name, updates, where, tell)
    model = IPVAE.from_pretrained(where)
    released = IPVAE(dataclasses.replace(model.config, kl="released"))
    released.load_state_dict(model.state_dict())
    return State(name, updates, released, load_file(where / "inputs.safetensors")["x"])


def _train(name: str, updates: int, where: Path, tell: Callable[[str], None]) -> None:
    """Trains into a temporary folder, which takes its name when it is whole."""
    from ipvae import train
    from ipvae.training.recipes import DEMO_MODEL, DEMO_TRAIN

    spec = STATES[name]
    tell(f"training the state {name}: {spec.neurons} neurons, {updates:,} updates; kept in {where}")
    config = dataclasses.replace(
        DEMO_MODEL, n_inputs=spec.pixels, input_shape=(1, spec.side, spec.side), n_latents=spec.neurons,
        decoder=spec.decoder,
    )  # fmt: skip
    x = _patches(spec.side, 20_000)
    work = where.with_name(f".{where.name}.{secrets.token_hex(4)}")
    work.mkdir(parents=True)
    try:
        run = train(
            IPVAE(config), x, dataclasses.replace(DEMO_TRAIN, max_steps=updates), work / "run",
            logger=None, progress=False,
        )  # fmt: skip
        run.model.save_pretrained(work)
        save_file({"x": x[:POOL].contiguous()}, work / "inputs.safetensors")
        shutil.rmtree(work / "run")
        if not where.is_dir():  # another process may have been faster
            work.rename(where)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@functools.lru_cache(maxsize=2)
def amortised(state: str, updates: int, folder: Path) -> PVAE:
    """A P-VAE with a linear encoder on the inputs of a state, trained for so many updates, and its loss.

    Its pixels have the variance 1/2, with which the reconstruction term is that of the released P-VAE.
    """
    from ipvae import train

    base = load(state, updates, folder)
    m, k = base.model.config.n_inputs, base.model.config.n_latents
    model = PVAE(PVAEConfig(m, k, fit_sigma=False, init_log_sigma=-0.5 * math.log(2.0)))
    config = TrainConfig(lr=0.005, max_steps=updates, batch_size=100, beta_outer=1.0)
    with tempfile.TemporaryDirectory() as work:
        train(model, base.x, config, work, logger=None, progress=False)
    return model


def _patches(side: int, n: int = POOL) -> Tensor:
    from ipvae.data import load_dataset

    return load_dataset("patches", size=side, n_train=n).train


def _derive(base: IPVAE, spec: Spec, x: Tensor) -> IPVAE:
    """A model of other sizes or rates whose inference is as stable as the trained one's.

    Features are placed or shifted copies of trained ones, with their inhibition and initial log rates. All
    are scaled by the factor that gives the Gram matrix Phi^T diag(1/var) Phi the trained one's largest
    eigenvalue: it bounds the step size, and with it the same learning rate stays stable.
    """
    side = math.isqrt(base.config.n_inputs)
    features = base.dictionary.detach().T.reshape(-1, side, side)
    if spec.side > side:
        copies = _placed(features, spec.side)
    else:
        copies = [torch.roll(features, offset, (1, 2)) for offset in _offsets(spec.neurons / len(features))]
    n_copies = len(copies)
    dictionary = torch.cat(copies).flatten(1)[: spec.neurons].T.contiguous()
    model = IPVAE(
        dataclasses.replace(
            base.config, n_inputs=spec.pixels, input_shape=(1, spec.side, spec.side), n_latents=spec.neurons
        )
    )
    with torch.no_grad():
        layer, trained = model.layer, base.layer
        layer.dec_log_sigma.fill_(float(trained.dec_log_sigma.mean()))
        if spec.side == side:
            layer.dec_log_sigma.copy_(trained.dec_log_sigma)
        layer.log_bias.copy_(trained.log_bias.repeat(1, n_copies)[:, : spec.neurons])
        layer.u_init[0].copy_(trained.u_init[0].repeat(1, n_copies)[:, : spec.neurons])
        layer.log_lr[0].copy_(trained.log_lr[0])
        layer.phi.weight.copy_(dictionary)
        layer.phi.weight.mul_((_largest_eigenvalue(base) / _largest_eigenvalue(model)).sqrt())
    return model if spec.firing is None else _at_firing(model, spec.firing, x[:64])


def _placed(features: Tensor, side: int) -> list[Tensor]:
    """Features [K, s, s] at the places of an even 4x4 grid within [side, side]; [K, side, side] each."""
    n, small = len(features), features.shape[-1]
    places = [round(i * (side - small) / 3) for i in range(4)]
    copies = []
    for top in places:
        for left in places:
            copy = features.new_zeros(n, side, side)
            copy[:, top : top + small, left : left + small] = features
            copies.append(copy)
    return copies


def _offsets(n_copies: float) -> list[tuple[int, int]]:
    """Different cyclic shifts, as far from each other as a regular grid of so many has them."""
    n = max(1, round(n_copies))
    rows = 2 ** (round(math.log2(n)) // 2)
    columns = n // rows
    return [(i * 16 // rows, j * 16 // columns) for i in range(rows) for j in range(columns)]


def _largest_eigenvalue(model: IPVAE) -> Tensor:
    """Of Phi^T diag(1/var) Phi, by way of the smaller [M, M] matrix with the same non-zero eigenvalues."""
    weighted = model.dictionary.detach() * (-model.log_sigma.detach()).exp().unsqueeze(1)
    eigenvalues: Tensor = torch.linalg.eigvalsh(weighted @ weighted.T)
    return eigenvalues[-1]


def _at_firing(base: IPVAE, share: float, x: Tensor) -> IPVAE:
    """Moves initial log rates by s, and inhibition by -s, until a share of the counts is not 0, by bisection.

    For s < 0 the log step size moves by s too, so that the rates stay low. From s = -8 to 2 the share grows
    from .05 % to 99 %, with mean counts up to 7; from s = 3 rates run into the clamp.
    """

    def moved(s: float) -> IPVAE:
        model = copy.deepcopy(base)
        with torch.no_grad():
            model.layer.u_init[0].add_(s)
            model.layer.log_bias.sub_(s)
            model.layer.log_lr[0].add_(min(s, 0.0))
        return model

    low, high = FIRING_SHIFTS
    for _ in range(12):
        middle = 0.5 * (low + high)
        if nonzero(moved(middle), x, FIRING_STEPS)[0] < share:
            low = middle
        else:
            high = middle
    return moved(high)


def nonzero(model: VAE, x: Tensor, steps: int) -> tuple[float, float]:
    """Share of counts that are not 0, and mean count per neuron, over steps."""
    records = model.infer(x, steps, record=("zeros", "spikes"), seed=0).records
    rate = float(records["spikes"].mean()) / model.config.n_latents
    return 1.0 - float(records["zeros"].mean()), rate


def clone(model: IPVAE, device: str) -> IPVAE:
    """A copy that a contestant may change."""
    return copy.deepcopy(model).to(device)

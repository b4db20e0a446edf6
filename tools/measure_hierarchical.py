"""One layer against two of as many parameters: `docs/models.md`, "Hierarchical", has the result.

    python tools/measure_hierarchical.py patches --neurons 128 --upper 32 --updates 600 --seed 0

Models are trained on the free energy with beta 1, and measured on the test images: means over the steps
(R2, zeros, recon, KL; NELBO a = recon + KL to the prior that moves), and after the last step against the
prior that does not (NELBO b).
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from ipvae import HIPVAE, IPVAE, HIPVAEConfig, IPVAEConfig, TrainConfig, evaluate, train
from ipvae.data import load_dataset
from torch import Tensor

from ipvae_kernels import poisson_kl, poisson_sample

TEST_IMAGES = 500


@torch.no_grad()
def static_nelbo(model: IPVAE | HIPVAE, x: Tensor, steps: int) -> float:
    """recon + KL to the static prior after some steps, nats an image; one draw an image."""
    result = model.infer(x, steps, seed=1, record=("recon",), record_every=steps)
    total, states = result.records["recon"][-1], result.state.log_rate
    if not isinstance(model, HIPVAE):
        return float((total + poisson_kl(states, model.prior).sum(-1)).mean())
    return float((total + static_kl(model, states)).mean())


def static_kl(model: HIPVAE, states: Tensor) -> Tensor:
    """KL of all layers to what does not move: what is predicted from above; on top, the first log rates."""
    total, above = states.new_zeros(len(states)), None
    for i, (layer, u) in reversed(list(enumerate(zip(model.levels, model.split(states), strict=True)))):
        prior = layer.start.expand_as(u) if above is None else layer.predicted(above, model.config.clamp_u)
        total = total + poisson_kl(u, prior).sum(-1)
        above = poisson_sample(u, seed=2 + i)
    return total


def models(m: int, neurons: int, upper: int, seed: int, share: float) -> dict[str, IPVAE | HIPVAE]:
    """One layer, and two with at most as many parameters."""
    single = IPVAE(IPVAEConfig(n_inputs=m, n_latents=neurons, seed=seed))
    # m + 2 parameters a neuron of one layer; upper + 2 more below an upper layer, which has 2 a neuron.
    below = (neurons * (m + 2) - 2 * upper - 1) // (m + 2 + upper + 2)
    config = HIPVAEConfig(n_inputs=m, n_latents=below, upper_latents=(upper,), init_share=share, seed=seed)
    return {"one": single, "two": HIPVAE(config)}


def main() -> None:
    """Trains, measures, prints a row of Markdown for each model and number of steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--data-dir")
    for name, value in {"neurons": 128, "upper": 32, "updates": 600, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--share", type=float, default=0.05)
    given = parser.parse_args()
    splits = load_dataset(given.data, data_dir=given.data_dir)
    test = splits.test.x[:TEST_IMAGES] if hasattr(splits.test, "x") else splits.test[:TEST_IMAGES]
    test = test.flatten(1)
    recipe = TrainConfig(max_steps=given.updates, batch_size=100, beta_outer=1.0, seed=given.seed)
    found = models(test.shape[-1], given.neurons, given.upper, given.seed, given.share)
    for name, model in found.items():
        with tempfile.TemporaryDirectory() as folder:
            train(model, splits, recipe, folder, progress=False, logger=None)
        if isinstance(model, HIPVAE):
            (shares,) = model.shares
            print(f"shares learned: mean {float(shares.mean()):.3f}, largest {float(shares.max()):.3f}")
        size = sum(p.numel() for p in model.parameters())
        for steps in (16, 128):
            curve = evaluate(model, test, steps=steps, seed=0)
            r2, zeros, recon, kl = (getattr(curve, n).mean() for n in ("r2", "zeros", "recon", "kl"))
            print(
                f"| {given.data} | {given.seed} | {name} | {size:,} | {steps} | {r2:.3f} | {zeros:.3f} | "
                f"{recon:.1f} | {kl:.2f} | {recon + kl:.1f} | {static_nelbo(model, test, steps):.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

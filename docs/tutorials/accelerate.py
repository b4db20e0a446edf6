"""
The authors' code, accelerated
==============================

One line makes a live model of `IterativeVAE <https://github.com/hadivafaii/IterativeVAE>`__ run on these
kernels. Its weights, its trainer, its evaluation and your analysis stay as they are.

A checkout of their code is needed: ``ITERATIVE_VAE=path/to/IterativeVAE python
docs/tutorials/accelerate.py``. Without one the functions below are shown and not run.
"""

# %%
# Their packages import plotting libraries that nothing here uses; `importable` does without those that are
# not installed.

import os
import time
from pathlib import Path
from typing import Any

import ipvae
import torch
from ipvae_bench.contestants import authors
from torch import Tensor

CHECKOUT = Path(os.environ.get("ITERATIVE_VAE", "not given"))
THERE = (CHECKOUT / "main" / "model.py").is_file()
LATENTS = 512
WINDOW = 16

# %%
# A model of theirs, as their scripts make one: 16 x 16 patches, a linear decoder. Weights are random here;
# yours come from their checkpoint.


def their_model() -> Any:
    """An IPVAE of theirs."""
    with authors.importable(CHECKOUT):
        config, models = authors.load("main.config"), authors.load("main.model")
    settings = config.ConfigPoisVAE(
        dataset="vH16-wht", t_train=WINDOW, n_latents=[LATENTS], init_scale=0.02, clamp_u=10.0, clamp_du=10.0,
        save=False,
    )  # fmt: skip
    return models.IPVAE(settings)


# %%
# What one does with it: a loop of inference, and a window of training. Nothing in these two functions knows
# of acceleration.


def inference(model: Any, x: Tensor) -> Tensor:
    """Their loop over steps; the reconstruction loss of each, [T, B]."""
    losses = []
    for t in range(WINDOW):
        model.update_time(t)
        losses.append(model.xtract_ftr(x)["loss_recon"])
    return torch.stack(losses)


def training(model: Any, x: Tensor) -> Tensor:
    """A window: the loss of its steps, and its gradient in their parameters."""
    model.zero_grad()
    loss = torch.zeros(())
    for t in range(WINDOW):
        model.update_time(t)
        output = model(x, temp=0.1)
        loss = loss + output["loss_recon"].mean() + 24.0 * output["loss_kl"].sum(-1).mean()
    (loss / WINDOW).backward()
    return loss.detach() / WINDOW


def seconds(run: Any, *arguments: Any) -> tuple[float, float]:
    """The second call's time, and the mean of what it returns."""
    run(*arguments)
    start = time.perf_counter()
    found = run(*arguments)
    return time.perf_counter() - start, float(found.mean())


# %%
# The same functions, before and after the line. Losses agree as two samples of one law do: the noise is
# another one.

if THERE:
    torch.manual_seed(0)
    model, x = their_model(), torch.randn(50, 256)
    for name, run in {"inference": inference, "training": training}.items():
        theirs, their_loss = seconds(run, model, x)
        ipvae.accelerate(model)  # the line
        ours, our_loss = seconds(run, model, x)
        ipvae.deaccelerate(model)
        print(f"{name}: {1e3 * theirs:.0f} ms, loss {their_loss:.1f}")
        print(f"    accelerated: {1e3 * ours:.0f} ms, loss {our_loss:.1f}; {theirs / ours:.0f} times as fast")
else:
    print("ITERATIVE_VAE names no checkout of their code: not run")

# %%
# A trainer of theirs takes it too, ``ipvae.accelerate(trainer)``, and so covers its moving average of weights
# and moving input; what the kernels do not have runs as before, with a warning that says why. ``ipvae bench
# --reference CHECKOUT`` measures it on your machine, in turns with everything else, and
# :meth:`ipvae.IPVAE.from_released` reads their checkpoints without their code.

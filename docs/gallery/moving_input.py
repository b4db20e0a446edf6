"""
A moving input
==============

Digits that stand still and then turn, at several speeds. The state is carried from frame to frame, so
inference follows: the slower the motion, the nearer R2 comes to that of digits that have stood at the angle
all along (dots). The dots fall too: a dictionary of upright digits describes turned ones less well.
"""

import tempfile

import torch
from ipvae import IPVAE, IPVAEConfig, TrainConfig, train
from ipvae.data import RotationFeeder, load_dataset
from ipvae.plots import raster
from ipvae.plots.canvas import new_figure, set_heading, with_grid

UPDATES = 300
IMAGES, STILL, FARTHEST = 200, 60, 30

data = load_dataset("digits")
model = IPVAE(IPVAEConfig(n_inputs=64, input_shape=(1, 8, 8), n_latents=128, estimator="fini2"))
with tempfile.TemporaryDirectory() as folder:
    train(model, data, TrainConfig(max_steps=UPDATES, batch_size=100), folder, progress=False)
images = data.test[:IMAGES].view(-1, 1, 8, 8)


def r2_and_counts(frames):
    """R2 of each step, mean over images, and their counts."""
    found = model.eval().infer(frames, len(frames), seed=0, record=("squared_error", "counts"))
    variation = (frames - frames.mean(-1, keepdim=True)).square().sum(-1)
    return (1 - found.records["squared_error"] / variation).mean(-1), found.records["counts"]


figure, (axes,) = new_figure((9.0, 3.8), 1, 1)
for speed in (0.5, 1.0, 2.0, 4.0):
    turning = RotationFeeder(images, degrees_per_step=speed).frames(0, int(FARTHEST / speed) + 1)
    moving = torch.cat([turning[:1].expand(STILL, -1, -1), turning])
    r2, counts = r2_and_counts(moving)
    angles = speed * torch.arange(len(turning))
    axes.plot(angles, r2[STILL:], label=f"{speed:g} degrees a step", lw=1.5)
for angle in range(0, FARTHEST + 1, 5):
    standing = RotationFeeder(images, start_degrees=angle, degrees_per_step=0.0).frames(0, STILL)
    r2, _ = r2_and_counts(standing)
    axes.plot(
        angle, r2[STILL // 2 :].mean(), "o", color="black", ms=4, label="standing" if not angle else None
    )
axes.set(xlabel="angle, degrees", ylabel="R2 of one draw of counts")
axes.legend(frameon=False, fontsize=9)
with_grid(axes)
set_heading(figure, "Inference follows what moves")

spikes = raster(counts[:, 0], title="Spikes of one digit: still, then turning by 4 degrees a step", limit=80)

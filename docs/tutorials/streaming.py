"""
Streaming
=========

Frames that keep coming: the state is carried, spikes go to disk, and a run that is stopped goes on where it
was. Needs ``pip install 'ipvae-kernels[train,records]'``.
"""

# %%
# A small model of the digits of scikit-learn, 8 x 8 pixels.

import tempfile
from pathlib import Path

import torch
from ipvae import IPVAE, IPVAEConfig, Stream, TrainConfig, train
from ipvae.data import RotationFeeder, load_dataset
from ipvae.plots import raster
from ipvae.records import SpikeRecord

UPDATES = 300
FRAMES = 400

data = load_dataset("digits")
folder = Path(tempfile.mkdtemp())
model = IPVAE(IPVAEConfig(n_inputs=64, input_shape=(1, 8, 8), n_latents=128, estimator="fini2"))
train(model, data, TrainConfig(max_steps=UPDATES, batch_size=100), folder / "run", progress=False)
model.eval()

# %%
# Moving input: four digits that turn, one frame a step. A memory map ``[T, B, M]``, an iterator of frames or
# a still image would do as well.

frames = RotationFeeder(data.test[:4].view(4, 1, 8, 8), degrees_per_step=4.0)

# %%
# A stream takes them as they come. ``record`` is the folder that spikes are written to while it runs.

stream = Stream(model, seed=0, record=folder / "spikes")
stream.run(frames, FRAMES // 2)
print(stream.steps, "steps taken")

# %%
# Suppose the process ends here. Another one takes up the folder: the state lies beside the spikes.

stream = Stream.resume(model, folder / "spikes")
stream.run(frames, FRAMES - stream.steps)
print(stream.steps, "steps taken")

# %%
# Frame by frame is the same: ``step`` returns the spikes at once. Noise is a function of seed, step, sample
# and neuron, so a stream without any interruption has the same spikes.

alone = Stream(model, seed=0)
counts = torch.stack([alone.step(frame) for frame in frames.frames(0, FRAMES)])
record = SpikeRecord(folder / "spikes")
print("the same spikes:", torch.equal(record.dense(0, FRAMES), counts))

# %%
# What is on disk: an event a row (step, sample, neuron, count), in Parquet files that pandas, Polars or
# DuckDB read as they are.

share = record.n_events / (FRAMES * 4 * 128)
print(record.events(0, 1).slice(0, 3).to_pydict())
print(f"{record.n_events:,} events, {100 * share:.0f} % of all counts; {record.n_spikes:,} spikes")
first = FRAMES - FRAMES // 4
spikes = raster(record.dense(first, FRAMES)[:, 0], first_step=first + 1, title="A digit that turns")

# %%
# From a shell: ``ipvae stream MODEL frames.npy --out spikes``, after a Ctrl-C the same with ``--resume``, and
# ``ipvae convert spikes --to nwb --out spikes.nwb`` for other tools.

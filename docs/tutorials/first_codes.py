"""
First codes from your own images
================================

From a folder of photographs to a dictionary, spikes and reconstructions, in a minute on a laptop.
"""

# %%
# Any folder with PNG, JPEG, TIFF, BMP or WebP files will do. Here it is the one with the two photographs that
# come with scikit-learn.

import tempfile
from pathlib import Path

import sklearn.datasets
from ipvae.data import load_dataset

FOLDER = Path(sklearn.datasets.__file__).parent / "images"
PATCHES = 20_000

data = load_dataset(FOLDER, size=8, n_train=PATCHES)
print(f"{len(data.train):,} patches of 8 x 8 to train on")
print(f"{len(data.test):,} from other regions of the photographs, to test with")

# %%
# Patches are whitened, as the retina does, and have a contrast of 1: that is what the model sees.
#
# A model is a configuration. ``fini2`` is the estimator that trains fastest: its counts are whole numbers,
# and their gradient is exact for what is quadratic in the counts. The recipe is short: more updates make
# finer features.

from ipvae import IPVAE, IPVAEConfig, TrainConfig, evaluate, train

UPDATES = 3000

config = IPVAEConfig(n_inputs=64, input_shape=(1, 8, 8), n_latents=96, estimator="fini2")
model = IPVAE(config)
with tempfile.TemporaryDirectory() as folder:
    recipe = TrainConfig(lr=0.005, max_steps=UPDATES, batch_size=50, beta_outer=12.0)
    run = train(model, data, recipe, folder, progress=False)
print(f"{UPDATES} updates in {run.seconds:.0f} s")

# %%
# What it learned: each tile is a column of the dictionary, the pattern that one spike of a neuron adds to the
# reconstruction. Those that explain most come first.

from ipvae.evaluation.metrics import explained_variance
from ipvae.plots import features, raster, reconstructions

STEPS = 64

dictionary, patches = model.eval().dictionary.detach(), data.test[:500]
rates = model.encode(patches, STEPS, last=16, seed=0)
use = explained_variance(patches, rates, dictionary)
figure = features(dictionary, (8, 8), use=use, columns=16)

# %%
# Codes are the spikes of each neuron, counted; most neurons are silent. ``infer`` records what is asked for,
# at as many steps as are asked for.

found = model.infer(patches, STEPS, seed=0, record=("counts", "reconstruction"))
counts, reconstruction = found.records["counts"], found.records["reconstruction"]
print(f"counts {list(counts.shape)}: {100 * float((counts[-1] == 0).float().mean()):.0f} % are 0")
spikes = raster(counts[:, 0])

# %%
# A single draw of counts is noisy; the mean over steps is what a decoder sees that listens for longer.

decoded = reconstructions(patches, reconstruction[STEPS // 2 :].mean(0), (8, 8), limit=8)

# %%
# How well that went on held-out patches: the share of their variance that one draw of counts explains, and
# how many neurons are silent, at the step that training stopped at and beyond it.

curves = evaluate(model, patches, steps=STEPS)
for step in sorted({min(16, STEPS), STEPS}):
    print(f"step {step:3}: R2 {curves.r2[step - 1]:.3f}, {100 * curves.zeros[step - 1]:.0f} % silent")

# %%
# Keep it: ``model.save_pretrained("folder")``, and ``ipvae.load_model("folder")`` brings it back. The same
# from a shell: ``ipvae train --data FOLDER --out run``. In a scikit-learn pipeline, :class:`ipvae.SpikeCoder`
# does all of it behind ``fit`` and ``transform``.

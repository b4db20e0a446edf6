"""
Features of natural images
==========================

What spikes mean, after a short training on whitened patches of two photographs: localised edges. Then how
inference goes on beyond the steps of training, better and sparser. ``ipvae demo`` draws the same of a longer
training.
"""

import tempfile

from ipvae import IPVAE, IPVAEConfig, TrainConfig, evaluate, train
from ipvae.data import load_dataset
from ipvae.evaluation.metrics import explained_variance
from ipvae.plots import convergence, features

UPDATES = 3000
PATCHES = 30_000
STEPS = 256

data = load_dataset("patches", size=8, n_train=PATCHES)
model = IPVAE(IPVAEConfig(n_inputs=64, input_shape=(1, 8, 8), n_latents=96, estimator="fini2", clamp_u=10.0))
with tempfile.TemporaryDirectory() as folder:
    recipe = TrainConfig(lr=0.005, max_steps=UPDATES, batch_size=50, beta_outer=12.0)
    train(model, data, recipe, folder, progress=False)

dictionary, patches = model.eval().dictionary.detach(), data.test[:500]
use = explained_variance(patches, model.encode(patches, 64, last=16, seed=0), dictionary)
learned = features(dictionary, (8, 8), use=use, columns=16)

curves = evaluate(model, patches, steps=STEPS)
over_steps = convergence(curves.r2, curves.zeros, trained_steps=16)

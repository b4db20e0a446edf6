"""From an empty file to the spikes of a network that learned digits."""

import matplotlib.pyplot as plt
from ipvae import IPVAE, IPVAEConfig, TrainConfig, train
from ipvae.data import load_dataset
from ipvae.records import to_events

data = load_dataset("digits")
model = train(IPVAE(IPVAEConfig(64, 128)), data, TrainConfig(max_steps=100), "run").model
counts = model.infer(data.test[:1], 200, record=("counts",)).records["counts"]
step, _, neuron, count = to_events(counts)
plt.scatter(step, neuron, s=count)
plt.savefig("spikes.png")

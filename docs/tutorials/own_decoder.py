"""
A decoder of your own
=====================

Inference needs two things of a decoder: its mean, and how errors come back to the neurons. For any
``nn.Module`` the second is autograd's vector-Jacobian product, so a network of your own takes the place of
the dictionary.
"""

# %%
# Codes ``[B, K]`` go in, means ``[B, M]`` come out, each row by itself (no batch statistics). Here a linear
# decoder with a small network beside it.

import torch
from ipvae.data import load_dataset
from ipvae.plots import reconstructions
from torch import Tensor, nn

import ipvae_kernels
from ipvae_kernels import PoissonParams

M, K, T = 64, 64, 8
UPDATES = 150
torch.manual_seed(0)


class Decoder(nn.Module):
    """A dictionary, and a hidden layer that corrects its sum."""

    def __init__(self) -> None:
        super().__init__()
        self.dictionary = nn.Linear(K, M, bias=False)
        self.hidden = nn.Sequential(nn.Linear(K, 64), nn.Softplus(), nn.Linear(64, M))
        nn.init.normal_(self.dictionary.weight, std=0.05)
        nn.init.zeros_(self.hidden[-1].weight)

    def forward(self, counts: Tensor) -> Tensor:
        """Codes [B, K] to means [B, M]."""
        return self.dictionary(counts) + self.hidden(counts)


decoder = Decoder()

# %%
# The other parameters of the model are tensors: ``params.dictionary`` is None beside a decoder.

bias, log_lr = nn.Parameter(torch.full((K,), -3.0)), nn.Parameter(torch.zeros(()))
log_sigma, prior = nn.Parameter(torch.zeros(M)), nn.Parameter(torch.full((K,), 0.5))
params = PoissonParams(None, log_sigma, bias, log_lr, prior)

# %%
# ``elbo`` differentiates through all steps: the decoder's own backward is part of each of them, so the
# network has to be differentiable twice.

data = load_dataset("digits")
optimiser = torch.optim.Adam([*decoder.parameters(), bias, log_lr, log_sigma, prior], lr=0.01)
for update in range(UPDATES):
    batch = data.train[torch.randint(len(data.train), (50,))]
    result = ipvae_kernels.elbo(batch, params, T, decoder=decoder, estimator="fini2", beta=1.0, seed=update)
    optimiser.zero_grad()
    result.loss.backward()
    optimiser.step()
    if update in (0, UPDATES - 1):
        print(f"update {update + 1:4}: loss {result.loss.item():.1f}")

# %%
# Inference takes it by the same argument; records and state are those of the fused ops.

STEPS, IMAGES = 64, 300

x = data.test[:IMAGES]
found = ipvae_kernels.infer(
    x, params, STEPS, decoder=decoder, seed=0, record=("squared_error", "zeros", "reconstruction")
)
variation = (x - x.mean(-1, keepdim=True)).square().sum(-1)
r2 = 1 - found.records["squared_error"] / variation
for step in (T, STEPS):
    silent = float(found.records["zeros"][step - 1].mean())
    print(f"step {step}: R2 {float(r2[step - 1].mean()):.3f} on held-out digits, {100 * silent:.0f} % silent")
figure = reconstructions(x, found.records["reconstruction"][STEPS // 2 :].mean(0), (8, 8), limit=8)

# %%
# A linear decoder as a module gives what the fused kernels give, up to the order of sums; the fused ones are
# faster, since a step does not leave the kernel. ``decoder=`` is there for what a dictionary cannot do.

linear = decoder.dictionary
fused = PoissonParams(linear.weight, log_sigma, bias, log_lr, prior)
as_module = ipvae_kernels.elbo(x, params, T, decoder=linear, seed=1).loss
as_dictionary = ipvae_kernels.elbo(x, fused, T, seed=1).loss
print(f"loss as a module {as_module.item():.4f}, fused {as_dictionary.item():.4f}")

"""Trained models in NeuroBench (Yik et al., Nature Communications 2025, arXiv 2304.04640), with its metrics.

`Footprint`, `ParameterCount`, `ConnectionSparsity`, `ActivationSparsity`, `MembraneUpdates` and what judges
predictions are NeuroBench's own. Its `SynapticOperations` looks at the inputs of layers, of which a fused
rollout has none, and takes inputs above 1 for numbers to be multiplied; so it is refused for these models,
and the one of this file takes its place: a count of n is n events.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

import ipvae_kernels
from ipvae_kernels import Decoded, LinearDecoder, PoissonParams, checks

from ..extras import explained

with explained():
    import neurobench.models
    from neurobench.metrics.abstract import AccumulatedMetric

if TYPE_CHECKING:
    from ..models.iterative import IterativeVAE

OUTPUTS = ("counts", "rates", "reconstruction")
CIRCUITS = ("residual", "lateral")


@dataclass
class Operations:
    """Synaptic operations of a batch, summed over its samples.

    Attributes:
        accumulates: additions of a weight, one for each event and synapse.
        multiplies: products of a weight and a number that is not 0.
        dense: what a network of these connections does where nothing is 0.
        samples: how many samples they are of.
    """

    accumulates: int = 0
    multiplies: int = 0
    dense: int = 0
    samples: int = 0

    def __add__(self, other: Operations) -> Operations:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Operations(*(a + b for a, b in pairs))


class NeuroBenchVAE(neurobench.models.NeuroBenchModel):  # type: ignore[misc]
    """A trained iterative Poisson VAE as a model of NeuroBench.

    Spikes are the draws of the updates, which neurons send; the fresh draws that ``infer`` records are only
    looked at. S_k is the number of spikes of neuron k (a count of n is n events), and nnz counts weights that
    are not 0. An inference of T steps of n_inner updates then takes, by ``circuit``,

    - "residual": sum_k S_k nnz(Phi[:, k]) accumulations, for the spikes decoded, and sum over updates and
      pixels m with x_m - (Phi z)_m not 0 of nnz(Phi[m, :]) multiply-accumulations, for the errors fed back.
      Dense: 2 T n_inner M K.
    - "lateral": the same law in Gram form, spikes against spikes, as the Locally Competitive Algorithm has
      it: sum_k S_k nnz(G[:, k]) accumulations with G = Phi^T diag(1 / var) Phi, and for each frame sum over
      m with x_m not 0 of nnz(Phi[m, :]) multiply-accumulations, for the feed-forward drive. A still input is
      one frame. Dense: T n_inner K^2 + frames M K.

    Both count what a circuit of that wiring would do, not what these kernels do; what a neuron or a pixel
    does by itself (draws, updates, scaling by the variance) is no synaptic operation.

    Args:
        model: spiking, with a linear decoder; set to eval mode.
        steps: T, of inference on a still input; moving input has a frame a step.
        output: what predictions are: "counts" [B, T, K], the fresh draws, for postprocessors of spikes;
            "rates" [B, K] after the last step; or "reconstruction" of these, ``[B, *input_shape]``.
        circuit: "residual" or "lateral".
        seed: of the noise, which is indexed by the samples since the model was wrapped, or since `reset`.

    Attributes:
        operations: `Operations` of the last batch.

    Raises:
        TypeError, ValueError: an argument is not as described.
        MissingExtra: neurobench is not installed.

    Example:
        >>> wrapped = NeuroBenchVAE(model, steps=64, output="reconstruction")
        >>> metrics = [[Footprint, ConnectionSparsity], [ActivationSparsity, SynapticOperations, MSE]]
        >>> Benchmark(wrapped, DataLoader(TensorDataset(x, x)), [], [], metrics).run()
    """

    operations: Operations | None = None

    def __init__(
        self,
        model: IterativeVAE,
        *,
        steps: int = 128,
        output: Literal["counts", "rates", "reconstruction"] = "counts",
        circuit: Literal["residual", "lateral"] = "residual",
        seed: int = 0,
    ) -> None:
        super().__init__()
        params = getattr(model, "params", None)
        if not isinstance(params, PoissonParams) or params.dictionary is None:
            what = "a spiking model with a linear decoder, whose synapses can be counted"
            raise TypeError(f"model: expected {what}, such as IPVAE, found {type(model).__name__}")
        self.model = model.eval()
        self.steps = checks.integer("steps", steps, 1, 2**32 - 1)
        self.output = checks.choice("output", output, OUTPUTS)
        self.circuit = checks.choice("circuit", circuit, CIRCUITS)
        self.seed = checks.integer("seed", seed, -(2**63), 2**63 - 1)
        self.samples = 0
        self._net = _Network(model)
        self.add_activation_module(_Spikes)

    def __net__(self) -> nn.Module:
        """The model, with its dictionary as the layer that it is."""
        return self._net

    def reset(self) -> None:
        """The next sample is the first: a benchmark that runs again sees the same noise."""
        self.samples = 0

    def connection_layers(self) -> list[nn.Module]:
        """None: no layer is called with spikes."""
        return []

    def register_hooks(self) -> None:
        """Registers those of the spikes, and one that refuses NeuroBench's count of operations."""
        super().register_hooks()
        self.connection_hooks.append(_Refusal())

    @torch.no_grad()
    def __call__(self, batch: Tensor) -> Tensor:
        """Infers a batch, [B, ...], or [B, T, ...] of moving input; what it returns, ``output`` says.

        Raises:
            TypeError, ValueError: the batch is not as the model takes it.
        """
        model, config = self.model, self.model.config
        x = model.flatten(batch)
        x = x.transpose(0, 1).contiguous() if x.ndim == 3 else x
        steps = len(x) if x.ndim == 3 else self.steps
        params = model.params
        assert isinstance(params, PoissonParams)
        circuit = _Circuit(model.dictionary, params.log_sigma, x)
        state, records = ipvae_kernels.infer(
            x, replace(params, dictionary=None), steps, decoder=circuit, record=("log_rate", "counts"),
            seed=self.seed, sample_offset=self.samples, n_inner=config.n_inner,
            beta_inner=model.layer.read("beta_inner") if config.n_inner > 1 else 0.0, **model.clamps,
        )  # fmt: skip
        self.samples += x.shape[-2]
        self.operations = circuit.residual() if self.circuit == "residual" else circuit.lateral()
        self._net.spikes(torch.stack(circuit.sent, 1))
        start = params.log_rate_init.expand_as(state.log_rate)
        for hook in self.activation_hooks:
            hook.pre_fire_mem_potential += [start, *records["log_rate"][:-1]]
            hook.post_fire_mem_potential += list(records["log_rate"])
        if self.output == "counts":
            return records["counts"].transpose(0, 1)
        rates = model.rates(state.log_rate)
        return rates if self.output == "rates" else model.decode(rates).reshape(-1, *config.shape)


class SynapticOperations(AccumulatedMetric):  # type: ignore[misc]
    """Synaptic operations a sample, in the place and the words of NeuroBench's metric of this name.

    The formulas are those of `NeuroBenchVAE`: "Effective_ACs" the accumulations, "Effective_MACs" the
    multiply-accumulations, "Dense" both where nothing is 0.
    """

    def __init__(self) -> None:
        super().__init__(requires_hooks=False)
        self.reset()

    def reset(self) -> None:
        """Forgets what was counted."""
        self._sums = Operations()

    def __call__(self, model: NeuroBenchVAE, preds: Tensor, data: tuple[Tensor, Tensor]) -> dict[str, float]:
        """Adds the batch that the model last saw; the means so far.

        Raises:
            TypeError: for another kind of model.
        """
        batch = getattr(model, "operations", None)
        if not isinstance(batch, Operations):
            raise TypeError(f"model: expected a NeuroBenchVAE that saw a batch, found {type(model).__name__}")
        self._sums += batch
        return self.compute()

    def compute(self) -> dict[str, float]:
        """The means over samples."""
        sums, n = self._sums, max(self._sums.samples, 1)
        return {
            "Effective_MACs": sums.multiplies / n,
            "Effective_ACs": sums.accumulates / n,
            "Dense": sums.dense / n,
        }


class _Spikes(nn.Module):
    """What the spikes pass, for hooks."""

    def forward(self, spikes: Tensor) -> Tensor:
        return spikes


class _Network(nn.Module):
    """The model's parameters and buffers, once; the dictionary as a layer, for what looks for layers."""

    def __init__(self, model: IterativeVAE) -> None:
        super().__init__()
        self.model, self.spikes = model, _Spikes()
        self.decoder = nn.Linear(model.config.n_latents, model.config.n_inputs, bias=False, device="meta")
        self.decoder.weight = model.layer.phi.weight


class _Refusal:
    """In place of a hook of a layer."""

    @property
    def inputs(self) -> None:
        raise TypeError(
            "metrics: expected ipvae.interop.neurobench.SynapticOperations, found NeuroBench's own, which "
            "sees no inputs of layers here"
        )

    def reset(self) -> None:
        """Nothing was seen."""

    def close(self) -> None:
        """Nothing is hooked."""


class _Circuit:
    """A linear decoder that counts what its synapses do in the updates of one inference.

    Args:
        dictionary: Phi, [M, K].
        log_sigma: [M].
        x: [B, M] or [T, B, M].

    Attributes:
        sent: spikes of each update, [B, K].
    """

    def __init__(self, dictionary: Tensor, log_sigma: Tensor, x: Tensor) -> None:
        self.dictionary, self.log_sigma, self.x = dictionary, log_sigma, x
        self.sent: list[Tensor] = []
        self._errors = torch.zeros(len(dictionary), dtype=torch.int64, device=x.device)  # not 0, by pixel
        self._linear = LinearDecoder(dictionary)

    def __call__(self, code: Tensor) -> Decoded:
        """The decoder; a code whose errors come back is one of an update."""
        mean, back = self._linear(code)

        def drive(weighted: Tensor) -> Tensor:
            self.sent.append(code)
            self._errors += (weighted != 0).sum(0)
            return back(weighted)

        return Decoded(mean, drive)

    def residual(self) -> Operations:
        """Operations where spikes are decoded and errors are fed back."""
        there = self.dictionary != 0
        fed_back = int((self._errors * there.sum(1)).sum())
        return self._operations(there.sum(0), fed_back, 2 * self.dictionary.numel(), 0)

    def lateral(self) -> Operations:
        """Operations where spikes inhibit each other."""
        dictionary = self.dictionary
        gram = dictionary.T @ (dictionary * (-2 * self.log_sigma).exp()[:, None])
        frames = self.x.reshape(-1, self.x.shape[-1])
        forward = int(((frames != 0).sum(0) * (dictionary != 0).sum(1)).sum())
        return self._operations((gram != 0).sum(0), forward, gram.numel(), len(frames) * dictionary.numel())

    def _operations(self, fan_out: Tensor, multiplies: int, an_update: int, once: int) -> Operations:
        """Of spikes with so many synapses each; dense ones of an update of a sample, and of the batch."""
        spikes = sum(code.double().sum(0) for code in self.sent)
        samples = self.x.shape[-2]
        dense = len(self.sent) * samples * an_update + once
        return Operations(int((spikes * fan_out).sum()), multiplies, dense, samples)

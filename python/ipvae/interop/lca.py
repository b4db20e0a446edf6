"""Habits of the Locally Competitive Algorithm: its tuple, and convolutional layers that spike.

`sparse_code` gives (inputs, code, recon, recon_error) of a model. `LCAConv1D`, `LCAConv2D` and `LCAConv3D`
have the arguments, methods and variables of the layers of lca-pytorch (lanl/lca-pytorch), and minimise the
same energy, ||x - Phi a||^2 / 2 + lambda ||a||_1 (Rozell et al., Neural Computation 20, 2008), by spikes:
their states are log rates, their activations Poisson counts z with a = spike_size z, and each step is one of
`ipvae_kernels.infer` (arXiv 2410.19315) with the convolution as its decoder.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import ipvae_kernels
from ipvae_kernels import Decoded, PoissonParams, State, checks

if TYPE_CHECKING:
    from ..inputs import Inputs
    from ..models.iterative import IterativeVAE

VARIABLES = ("inputs", "input_drives", "states", "rates", "acts", "recons", "recon_errors")
_CONVOLUTIONS = {
    1: (functional.conv1d, functional.conv_transpose1d),
    2: (functional.conv2d, functional.conv_transpose2d),
    3: (functional.conv3d, functional.conv_transpose3d),
}
_FEW = 1e-12  # beside a norm or a deviation
# A soft ceiling lowers a log rate u by e^(u - CLAMP) in each step: at the default of 10 as much as lambda
# does at u = 4, with tau = 100. Here far less at any rate that inputs of unit variance ask for.
CLAMP = 16.0


class SparseCode(NamedTuple):
    """What the Locally Competitive Algorithm returns; with all steps, each but the inputs is [T, B, ...].

    Attributes:
        inputs: [B, M], or [T, B, M] of moving input.
        code: counts of the last step, [B, K].
        recon: the decoded counts, [B, M].
        recon_error: inputs less these.
    """

    inputs: Tensor
    code: Tensor
    recon: Tensor
    recon_error: Tensor


def sparse_code(
    model: IterativeVAE,
    x: Inputs,
    steps: int = 128,
    *,
    all_steps: bool = False,
    seed: int | Tensor | None = None,
    sample_offset: int | None = None,
) -> SparseCode:
    """The tuple (inputs, code, recon, recon_error) of a trained model.

    Args:
        model: with either cell.
        x: [B, M] or [steps, B, M], pixels unflattened if you like.
        steps: T, of inference.
        all_steps: of every step instead of the last.
        seed: of the noise; None: drawn from torch's generator.
        sample_offset: global index of the first row.

    Returns:
        The tuple, of hard counts (Gaussian models: activated samples).

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    inputs = model.flatten(x)
    all_steps = checks.flag("all_steps", all_steps)
    records = model.infer(
        inputs, steps, record=("counts", "reconstruction"), record_every=1 if all_steps else steps, seed=seed,
        sample_offset=sample_offset,
    ).records  # fmt: skip
    found = records if all_steps else {name: rows[0] for name, rows in records.items()}
    shown = inputs[-1] if inputs.ndim == 3 and not all_steps else inputs
    return SparseCode(inputs, found["counts"], found["reconstruction"], shown - found["reconstruction"])


class LCAConv(nn.Module):
    """Convolutional sparse coding by spikes: what `LCAConv1D`, `LCAConv2D` and `LCAConv3D` share.

    Args:
        out_neurons: features.
        in_neurons: channels of the input.
        kernel_size: of the features, a side or all sides.
        stride: of the features.
        lambda_: weight of the activations' sum; here a constant inhibition of every neuron.
        tau: time constant: a step changes a log rate by (drive - lambda) / tau.
        eta: learning rate of `update_weights`, in units of features of norm 1.
        lca_iters: steps of a forward pass.
        pad: "same", with odd kernels, or "valid".
        return_vars: names out of `VARIABLES`; the tuple of the algorithm is ("inputs", "acts", "recons",
            "recon_errors").
        return_all_ts: variables of every step, in a last dimension, instead of the last step.
        input_zero_mean: centre each input.
        input_unit_var: divide each input by its standard deviation.
        req_grad: whether ``weights`` are trained by an optimiser: variables then follow them in autograd.
        spike_size: norm of every feature, which is what one spike adds: a small one makes for more spikes and
            less noise, and reconstructions near those of the algorithm.
        init_log_rate: log rates before the first step.
        weight_init: the initial features, before they are normalised: a function that fills a tensor in
            place, and its keywords.

    Attributes:
        weights: ``[out_neurons, in_neurons, *kernel]``.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """

    dims: ClassVar[int]

    def __init__(
        self,
        out_neurons: int,
        in_neurons: int,
        *,
        kernel_size: int | Sequence[int] = 7,
        stride: int | Sequence[int] = 1,
        lambda_: float = 0.25,
        tau: float = 100.0,
        eta: float = 0.01,
        lca_iters: int = 1000,
        pad: Literal["same", "valid"] = "same",
        return_vars: Iterable[str] = ("acts",),
        return_all_ts: bool = False,
        input_zero_mean: bool = True,
        input_unit_var: bool = True,
        req_grad: bool = False,
        spike_size: float = 0.5,
        init_log_rate: float = -3.0,
        weight_init: tuple[Any, dict[str, Any]] = (nn.init.trunc_normal_, {}),
    ) -> None:
        if type(self) is LCAConv:
            raise TypeError("LCAConv: expected one of LCAConv1D, LCAConv2D, LCAConv3D")
        super().__init__()
        self.out_neurons = checks.integer("out_neurons", out_neurons, 1, 2**31)
        self.in_neurons = checks.integer("in_neurons", in_neurons, 1, 2**31)
        self.kernel_size = _sides("kernel_size", kernel_size, self.dims)
        self.stride = _sides("stride", stride, self.dims)
        if checks.choice("pad", pad, ("same", "valid")) == "same" and not all(
            k % 2 for k in self.kernel_size
        ):
            raise ValueError(f"kernel_size: expected odd sides with pad='same', found {self.kernel_size}")
        self.padding = tuple(k // 2 if pad == "same" else 0 for k in self.kernel_size)
        self.lambda_ = checks.number("lambda_", lambda_, 0.0, above=True)
        self.tau = checks.number("tau", tau, 0.0, above=True)
        self.eta = checks.number("eta", eta, 0.0)
        self.lca_iters = checks.integer("lca_iters", lca_iters, 1, 2**32 - 1)
        self.return_vars = _variables(return_vars)
        self.return_all_ts = checks.flag("return_all_ts", return_all_ts)
        self.input_zero_mean = checks.flag("input_zero_mean", input_zero_mean)
        self.input_unit_var = checks.flag("input_unit_var", input_unit_var)
        self.spike_size = checks.number("spike_size", spike_size, 0.0, above=True)
        self.init_log_rate = checks.number("init_log_rate", init_log_rate, -8.0, 10.0)
        fill, options = weight_init
        weights = fill(torch.empty(out_neurons, in_neurons, *self.kernel_size), **options)
        self.weights = nn.Parameter(weights, requires_grad=checks.flag("req_grad", req_grad))
        self.normalize_weights()

    def forward(
        self,
        inputs: Tensor,
        initial_states: Tensor | None = None,
        *,
        seed: int | Tensor | None = None,
        sample_offset: int = 0,
    ) -> Tensor | tuple[Tensor, ...]:
        """Infers codes.

        Args:
            inputs: ``[B, in_neurons, *sides]``.
            initial_states: log rates to start from, ``[B, out_neurons, *sides of the code]``: "states" of the
                frame before, for video; None: ``init_log_rate`` everywhere.
            seed: of the noise; None: drawn from torch's generator.
            sample_offset: global index of the first input, for batches that share a seed.

        Returns:
            The variables that ``return_vars`` names, one alone by itself. "acts" are counts. With
            ``req_grad``, "recons" and "recon_errors" follow ``weights`` in autograd and "acts" do not: the
            gradient of half the squared errors is, but for its rate, the rule of `update_weights`.

        Raises:
            TypeError, ValueError: an argument is not as described.
        """
        x, params, decoder = self.problem(inputs)
        state = None
        if initial_states is not None:
            expected = (len(x), *decoder.code_shape)
            checks.shape("initial_states", initial_states, expected, "[B, out_neurons, *sides]")
            state = State(initial_states.flatten(1))
        last = self.lca_iters
        state, records = ipvae_kernels.infer(
            x, params, last, decoder=decoder, state=state, clamp_u=CLAMP, clamp_du=CLAMP,
            record=("log_rate",), record_every=1 if self.return_all_ts else last, seed=seed,
            sample_offset=sample_offset,
        )  # fmt: skip
        log_rates = records["log_rate"]  # [T or 1, B, K]
        # Drawn here, as infer would, which would also decode those of steps that nobody looks at.
        steps = range(last - len(log_rates), last)
        counts = torch.stack(
            [
                ipvae_kernels.poisson_sample(
                    log_rate, seed=state.seed, draw="loss", step=t, sample_offset=sample_offset
                )
                for t, log_rate in zip(steps, log_rates, strict=True)
            ]
        )
        shape = (*counts.shape[:2], *decoder.code_shape)
        found = self._variables(
            x.reshape(inputs.shape), log_rates.reshape(shape), counts.reshape(shape), decoder
        )
        return found[0] if len(found) == 1 else found

    def _variables(
        self, images: Tensor, log_rates: Tensor, counts: Tensor, decoder: Convolution
    ) -> tuple[Tensor, ...]:
        """What is returned, of images [B, ...], states and counts [T or 1, B, ...]."""
        inputs = images.expand(len(counts), *images.shape)
        found = {"inputs": inputs, "states": log_rates, "rates": log_rates.exp(), "acts": counts}
        if "input_drives" in self.return_vars:
            drives = decoder.drive(images) / self.spike_size
            found["input_drives"] = drives.expand(counts.shape)
        if {"recons", "recon_errors"} & {*self.return_vars}:
            found["recons"] = decoder.mean(counts.flatten(0, 1)).reshape(inputs.shape)
            found["recon_errors"] = inputs - found["recons"]
        rows = (found[name] for name in self.return_vars)
        return tuple(row.movedim(0, -1) if self.return_all_ts else row[0] for row in rows)

    def problem(self, inputs: Tensor) -> tuple[Tensor, PoissonParams, Convolution]:
        """What a forward pass hands to `ipvae_kernels.infer`; `ipvae_kernels.elbo` takes the same.

        Args:
            inputs: ``[B, in_neurons, *sides]``.

        Returns:
            Flattened inputs [B, M], parameters, and the decoder, through which ``weights`` can be trained
            where ``req_grad``.

        Raises:
            TypeError, ValueError: inputs are not as described, or smaller than a feature.
        """
        checks.tensor("inputs", inputs)
        if inputs.ndim != self.dims + 2 or inputs.shape[1] != self.in_neurons:
            sides = {1: "L", 2: "H, W", 3: "D, H, W"}[self.dims]
            raise ValueError(f"inputs: expected [B, {self.in_neurons}, {sides}], found {list(inputs.shape)}")
        x = inputs.flatten(1)
        if self.input_zero_mean:
            x = x - x.mean(1, keepdim=True)
        if self.input_unit_var:
            x = x / (x.std(1, keepdim=True) + _FEW)
        decoder = Convolution(self.weights, self.stride, self.padding, tuple(inputs.shape[2:]))
        neurons = math.prod(decoder.code_shape)
        params = PoissonParams(
            dictionary=None,
            log_sigma=x.new_zeros(x.shape[1]),
            log_bias=x.new_full((neurons,), math.log(self.lambda_ * self.spike_size)),
            log_lr=x.new_tensor(-math.log(self.tau * self.spike_size)),
            log_rate_init=x.new_full((neurons,), self.init_log_rate),
        )
        return x, params, decoder

    def compute_recon(self, acts: Tensor, weights: Tensor, sides: Sequence[int] | None = None) -> Tensor:
        """Decodes counts.

        Args:
            acts: ``[B, out_neurons, *sides of the code]``.
            weights: features, as a rule the layer's own.
            sides: of the result; None: the strides times those of the code, as padding "same" has it.

        Returns:
            ``[B, in_neurons, *sides]``.
        """
        own = zip(acts.shape[2:], self.stride, strict=True)
        shape = tuple(sides) if sides is not None else tuple(side * stride for side, stride in own)
        return Convolution(weights, self.stride, self.padding, shape).mean(acts)

    @torch.no_grad()
    def update_weights(self, acts: Tensor, recon_errors: Tensor, normalize: bool = True) -> Tensor:
        """Learns: each feature moves along the errors where it was active.

        Args:
            acts: ``[B, out_neurons, *sides of the code]``, of a forward pass.
            recon_errors: ``[B, in_neurons, *sides]``, of the same.
            normalize: bring each feature back to its norm.

        Returns:
            What was added: eta / (1 + times active) of the errors' correlation with the activations, for
            features of norm 1; times the square of ``spike_size`` for these.
        """
        weights = self.weights.detach().requires_grad_()
        with torch.enable_grad():
            recon = self.compute_recon(acts.detach(), weights, recon_errors.shape[2:])
        (update,) = torch.autograd.grad(recon, weights, recon_errors.detach())
        active = (acts != 0).transpose(0, 1).flatten(1).sum(1)
        rate = self.eta * self.spike_size**2 / (1 + active)
        update *= rate.reshape(-1, *[1] * (self.dims + 1))
        self.weights.add_(update)
        if normalize:
            self.normalize_weights()
        return update

    @torch.no_grad()
    def normalize_weights(self) -> None:
        """Gives each feature the norm ``spike_size``."""
        norms = torch.linalg.vector_norm(self.weights.flatten(1), dim=1) + _FEW
        self.weights.mul_((self.spike_size / norms).reshape(-1, *[1] * (self.dims + 1)))

    @torch.no_grad()
    def assign_weight_values(self, tensor: Tensor, normalize: bool = True) -> None:
        """Sets the features, ``[out_neurons, in_neurons, *kernel]``.

        Raises:
            ValueError: for another shape.
        """
        checks.shape("tensor", tensor, self.weights.shape, "[out_neurons, in_neurons, *kernel]")
        self.weights.copy_(tensor)
        if normalize:
            self.normalize_weights()


class LCAConv1D(LCAConv):
    """`LCAConv` of [B, C, L]."""

    dims = 1


class LCAConv2D(LCAConv):
    """`LCAConv` of [B, C, H, W].

    Example:
        >>> lca = LCAConv2D(64, 3, stride=2, return_vars=("inputs", "acts", "recons", "recon_errors"))
        >>> for images in loader:
        ...     inputs, code, recon, recon_error = lca(images)
        ...     lca.update_weights(code, recon_error)
    """

    dims = 2


class LCAConv3D(LCAConv):
    """`LCAConv` of [B, C, D, H, W]."""

    dims = 3


class Convolution:
    """A transposed convolution as a decoder of `ipvae_kernels`; its drive is the convolution.

    Args:
        weights: features, ``[out_neurons, in_neurons, *kernel]``.
        stride: a number a side.
        padding: of the convolution.
        sides: of the input.

    Attributes:
        code_shape: ``[out_neurons, *sides of the code]``.

    Raises:
        ValueError: the input is smaller than a feature.
    """

    def __init__(
        self, weights: Tensor, stride: tuple[int, ...], padding: tuple[int, ...], sides: tuple[int, ...]
    ) -> None:
        kernel = weights.shape[2:]
        every = list(zip(sides, kernel, stride, padding, strict=True))
        if any(n + 2 * p < k for n, k, _, p in every):
            raise ValueError(f"inputs: expected sides of at least {list(kernel)}, found {list(sides)}")
        code = tuple((n + 2 * p - k) // s + 1 for n, k, s, p in every)
        self.weights, self.code_shape = weights, (len(weights), *code)
        self._input_shape = (weights.shape[1], *sides)
        self._how: dict[str, Any] = {"stride": stride, "padding": padding}
        self._beyond = tuple(
            n - ((c - 1) * s - 2 * p + k) for c, (n, k, s, p) in zip(code, every, strict=True)
        )
        self._forward, self._transposed = _CONVOLUTIONS[len(sides)]

    def __call__(self, code: Tensor) -> Decoded:
        """The decoder at flattened codes [B, K]."""
        mean = self.mean(code.reshape(-1, *self.code_shape)).flatten(1)
        return Decoded(mean, lambda weighted: self.drive(weighted.reshape(-1, *self._input_shape)).flatten(1))

    def mean(self, code: Tensor) -> Tensor:
        """Decoded codes, ``[B, in_neurons, *sides]``."""
        return self._transposed(code, self.weights, output_padding=self._beyond, **self._how)

    def drive(self, errors: Tensor) -> Tensor:
        """Correlations of errors with the features, ``[B, *code_shape]``."""
        return self._forward(errors, self.weights, **self._how)


def _sides(name: str, value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """A number for each side."""
    every = tuple(value) if isinstance(value, Sequence) else (value,) * dims
    if len(every) != dims:
        raise ValueError(f"{name}: expected an int or {dims} of them, found {every}")
    return tuple(checks.integer(name, side, 1, 2**31) for side in every)


def _variables(names: Iterable[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise TypeError(f"return_vars: expected a collection of names, found the string {names!r}")
    names = tuple(names)
    if "conns" in names:
        raise ValueError(
            "return_vars: 'conns' is not there: errors inhibit, and no table of connections is made"
        )
    if not names:
        raise ValueError(f"return_vars: expected names out of {', '.join(VARIABLES)}, found none")
    return tuple(checks.choice("return_vars", name, VARIABLES) for name in names)

"""The parameters and buffers of a model, under the names and shapes of the released code.

They live in a submodule `layer` (``layer.phi.weight`` [M, K], ``layer.dec_log_sigma`` [1, M],
``layer.log_bias`` [1, K], ``layer.log_lr.0`` [1], ``layer.u_init.0`` [1, K], and the buffers ``layer.temp``,
``layer.beta_inner``, ``layer.eps``, ``layer.n_exp``). So weights go to and from the authors' checkpoints by
`load_state_dict`, and there is no table of names that could be wrong. A decoder that is not linear stands in
place of ``layer.phi.weight``, in a submodule `decoder` of the model.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.weak import WeakTensorKeyDictionary

from ipvae_kernels import checks

from .config import ModelConfig

# What the released code starts from: the 0.999 quantile of Poisson(3).
INITIAL_N_EXP = 10
# What was read from a buffer on a device, and the version of the buffer at that time.
_READ: MutableMapping[Tensor, tuple[int, float]] = WeakTensorKeyDictionary()


def _constant(value: float, *shape: int) -> Tensor:
    """Filled with a value, in float32 whatever torch's default: a model is the same wherever it is made."""
    return torch.full(shape, value, dtype=torch.float32)


class _Dictionary(nn.Module):
    weight: nn.Parameter

    def __init__(self, n_inputs: int, n_latents: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_constant(0.0, n_inputs, n_latents))


class _Gain(nn.Module):
    log_gain: nn.Parameter

    def __init__(self, n_latents: int) -> None:
        super().__init__()
        self.log_gain = nn.Parameter(_constant(0.0, 1, n_latents))


class Layer(nn.Module):
    """Parameters and buffers under the names of the released ``PoissonLayer`` and ``GaussianLayer``.

    The buffers are the only place where temperature, opening of the clamps, weight of the leak and cut of the
    arrivals are kept: whatever writes them (an average of weights, `functional_call`, `fill_`, a file) is
    what inference follows.
    """

    temp: Tensor
    beta_inner: Tensor
    eps: Tensor
    n_exp: Tensor

    def __init__(self, config: ModelConfig, n_states: int, *, has_gain: bool, has_arrivals: bool) -> None:
        super().__init__()
        m, k = config.n_inputs, config.n_latents
        self.has_gain, self.has_arrivals = has_gain, has_arrivals
        if config.decoder == "linear":
            self.phi = _Dictionary(m, k)
        self.dec_log_sigma = nn.Parameter(_constant(0.0, 1, m))
        if has_gain:
            self.activation = _Gain(k)
        self.log_bias = nn.Parameter(_constant(0.0, 1, k))
        self.log_lr = nn.ParameterList([nn.Parameter(_constant(0.0, 1)) for _ in range(n_states)])
        self.u_init = nn.ParameterList(
            [nn.Parameter(_constant(0.0, 1, k), requires_grad=config.fit_prior) for _ in range(n_states)]
        )
        self._known: dict[str, float] = {}
        for name in ("temp", "beta_inner", "eps"):
            self.register_buffer(name, _constant(1.0))
        if has_arrivals:
            self.register_buffer("n_exp", torch.full((config.t_train,), INITIAL_N_EXP, dtype=torch.int32))
        self.register_load_state_dict_post_hook(_read_all)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def reset_constants(self, config: ModelConfig) -> None:
        """Brings every buffer back to where training starts."""
        self.write("temp", 1.0)
        self.write("eps", 1.0)
        self.write("beta_inner", config.beta_inner)
        if self.has_arrivals:
            self.n_exp = self.n_exp.new_full((config.t_train,), INITIAL_N_EXP)
            self.write("n_exp", INITIAL_N_EXP)

    def write(self, name: str, value: float) -> None:
        """Fills a buffer, and notes the number so that no device has to be asked for it.

        It is rounded to float32, as the buffers are, so that a loaded model computes the same numbers.
        """
        buffer: Tensor = getattr(self, name)
        value = float(np.float32(value))
        buffer.fill_(value)
        self._known[name] = value
        if not _is_read_each_time(buffer):
            _READ[buffer] = (buffer._version, value)

    def read(self, name: str) -> float:
        """The number in a buffer (of `n_exp`, the largest).

        On the CPU it is looked at each time, which takes microseconds and sees writes that leave no trace
        (through ``.data``). On a GPU the host would have to wait, so it is read again only where the tensor
        is another one or has a new version. Where there is no number to look at (on the meta device, among
        fake tensors) the last one known holds. A graph that torch.compile or torch.export makes looks at the
        buffer when it runs, and therefore is given the tensor; those of a GPU, and the whole number `n_exp`,
        are the last ones known there too.
        """
        buffer: Tensor = getattr(self, name)
        if torch.compiler.is_compiling() and buffer.device.type == "cpu" and buffer.is_floating_point():
            return cast(float, buffer)
        if torch.compiler.is_compiling() or _has_no_number(buffer):
            return self._known[name]
        checks.one_for_all_rows(f"layer.{name}", buffer)
        if _is_read_each_time(buffer):
            value = _number(buffer)
        else:
            version, value = _READ.get(buffer, (-1, 0.0))
            if version != buffer._version:
                value = _number(buffer)
                _READ[buffer] = (buffer._version, value)
        self._known[name] = value
        return value

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes over a cut of the arrivals for any number of steps, and keeps a Gaussian temperature at 1.

        Gaussian models trained by earlier versions of this package hold the annealed .01, which the released
        code multiplies sigma by.
        """
        n_exp = state_dict.get(f"{prefix}n_exp")
        if not self.has_arrivals:
            if f"{prefix}temp" in state_dict:
                state_dict[f"{prefix}temp"] = torch.ones_like(state_dict[f"{prefix}temp"])
        elif isinstance(n_exp, Tensor) and n_exp.ndim == 1 and n_exp.numel():
            self.n_exp = self.n_exp.new_full(n_exp.shape, INITIAL_N_EXP)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _number(buffer: Tensor) -> float:
    """The largest number in a buffer; of one on a GPU, this waits for it."""
    return float(buffer.max() if buffer.ndim else buffer)


def _has_no_number(buffer: Tensor) -> bool:
    """Whether a buffer has no data, or may not be looked at while other tensors have none."""
    mode = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    return buffer.is_meta or isinstance(buffer, FakeTensor) or mode is not None


def _is_read_each_time(buffer: Tensor) -> bool:
    return buffer.device.type == "cpu" or buffer.is_inference()


def _read_all(module: nn.Module, _: object) -> None:
    """After a load: notes the new numbers where a compiled graph looks for them."""
    assert isinstance(module, Layer)
    for name, _ in module.named_buffers(recurse=False):
        module.read(name)

"""The forward of an accelerated model: one step of a window that was computed at once."""

from __future__ import annotations

import functools
import warnings
from types import MethodType
from typing import Any

import torch
from torch import Tensor

import ipvae_kernels

from . import windows
from .frames import Upcoming
from .windows import Step, Window


class AccelerationWarning(UserWarning):
    """An accelerated model runs something as before, or step by step; the text says why."""


def forward(
    self: Any, x: Tensor, temp: float | None = None, return_extras: list[str] | None = None
) -> dict[str, Any]:
    """Their ``forward``: a step for frame x [B, M], with their arguments and results."""
    engine: Engine = self._accelerated
    return engine.step(self, x, temp, return_extras)


def engine_of(model: Any) -> Engine | None:
    """What accelerates a model, if anything does."""
    own = vars(model).get("forward")
    return model._accelerated if getattr(own, "__func__", None) is forward else None


def install(model: Any) -> None:
    """Puts an engine before a model's own forward."""
    model._accelerated = Engine()
    model.forward = MethodType(forward, model)


def remove(model: Any) -> None:
    """Takes it away again."""
    for name in ("forward", "_accelerated"):
        vars(model).pop(name, None)


class Engine:
    """What an accelerated model remembers between its steps.

    Copies and pickles of it are new ones: what was computed ahead belongs to one model.
    """

    def __init__(self) -> None:
        self.upcoming: Upcoming | None = None
        self._window: Window | None = None
        self._prepared: tuple[Any, Any] = (None, None)
        self._seed: Tensor | None = None
        self._next = 0  # index of the next step in the noise
        self._served = 0  # steps of this sequence
        self._length: int | None = None  # steps of the last one
        self._ahead: int | None = None  # steps that may be taken for still ones; None: any number
        self._said: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return Engine, ()

    def step(self, model: Any, x: Tensor, temp: float | None, extras: list[str] | None) -> dict[str, Any]:
        """`forward`."""
        layer = model.layer
        temperature = float(layer.temp if temp is None else temp)
        if reason := _unsupported(model, x, temperature):
            self._say(f"{reason}: this runs as before")
            output: dict[str, Any] = type(model).forward(model, x, temp=temp, return_extras=extras)
            return output
        if layer.time == 0 or layer.u is None:
            layer.reset_state(len(x))
            self._begin()
        key = _key(layer, temperature, len(x))
        window = self._window
        if window is None or not self._serves(window, key, layer, x):
            window = self._window = self._compute(layer, x, key, temperature)
        return self._hand_out(model, window, x, extras)

    def _begin(self) -> None:
        """A sequence from its start."""
        if self._served:
            self._length = self._served
        self._served, self._next, self._seed, self._window = 0, 0, None, None
        self._prepared = (None, None)  # averages of weights are written in ways that leave no trace

    def _serves(self, window: Window, key: tuple[Any, ...], layer: Any, x: Tensor) -> bool:
        """Whether the next step of a window is the one that is asked for."""
        i = window.taken
        if window.key != key or not window.continues(layer.u) or layer.time != window.time + i:
            return False
        if not window.left:
            if len(window.frames) == 1 and self._ahead is not None and window.takes(x, 0):
                self._ahead *= 2  # it stays, longer than was expected
            return False
        if window.takes(x, i):
            return True
        if len(window.frames) == 1:
            self._ahead = 1
            self._say(
                "the input moves, and only a trainer knows its next frames: step by step from here; "
                "ipvae.accelerate(trainer) goes by windows"
            )
        return False

    def _compute(self, layer: Any, x: Tensor, key: tuple[Any, ...], temperature: float) -> Window:
        """A window from the state that the layer is in."""
        n = min(self._steps(layer, torch.is_grad_enabled()), windows.longest(x, layer.latent_dim))
        if _counts_are_relaxed(layer, temperature):
            n = min(n, len(layer.n_exp) - layer.time)
        frames = self._frames(x, n)
        n = len(frames) if len(frames) > 1 else n
        inputs = torch.stack(frames) if len(frames) > 1 else x
        seen = inputs.detach().clone()
        # A copy unless it has a gradient: the tensor itself may be filled anew before the backward.
        taken = inputs if inputs.requires_grad else seen
        if self._seed is None:
            self._seed = torch.randint(2**63 - 1, (), dtype=torch.int64, device=x.device)
        relaxed = _relaxed(layer, temperature, n)
        params = self._fixed(layer, key) if relaxed is None else windows.parameters(layer)
        steps = windows.compute(layer, taken, n, layer.u, (self._next, self._seed), relaxed, params)
        window = Window(key, layer.time, frames, seen, steps, layer.get_dec_log_sigma())
        window.stand(layer.u)
        return window

    def _steps(self, layer: Any, gradient: bool) -> int:
        """How many steps are likely to come with these parameters."""
        expected = layer.t_total if self._length is None else self._length
        window: int = layer._cfg.t_train
        wanted = window - layer.time % window if gradient else max(expected - self._served, self._served, 1)
        return wanted if self.upcoming is not None or self._ahead is None else min(wanted, self._ahead)

    def _frames(self, x: Tensor, n: int) -> list[Tensor]:
        """The inputs of the next steps; one that stays, alone."""
        found = None if self.upcoming is None else self.upcoming.after(x, n)
        if found is None or all(_same_memory(frame, x) for frame in found):
            return [x]
        return found if n > 1 else [x]

    def _fixed(self, layer: Any, key: tuple[Any, ...]) -> Any:
        """The parameters, packed once for as long as they stay within a sequence."""
        known, prepared = self._prepared
        if known != key:
            # Tensors made in inference mode do not tell of changes, which what is prepared has to see.
            with torch.inference_mode(False), torch.no_grad():
                prepared = windows.parameters(layer)
                if not any(parameter.is_inference() for parameter in layer.parameters()):
                    prepared = ipvae_kernels.prepare(prepared)
            self._prepared = (key, prepared)
        return prepared

    def _hand_out(self, model: Any, window: Window, x: Tensor, extras: list[str] | None) -> dict[str, Any]:
        """The next step of a window as the state of the layer and the output of the model."""
        layer, step = model.layer, window.left.popleft()
        layer.u_prior, layer.u = layer.u, step.u
        window.stand(step.u)
        window.taken += 1
        self._served += 1
        self._next += 1
        layer.n_updates += layer._cfg.n_iters_inner
        layer.samples = step.samples
        layer.posterior, layer.conditional = _posterior(layer, window.key), _conditional(layer, window, step)
        output = {
            "loss_kl": layer.loss_kl() if step.kl is None else step.kl,
            "loss_recon": step.recon,
            "posterior": layer.posterior,
        }
        if extras:
            output = model._add_extras(x, output, extras)
        if model.cfg.track_stats:
            model._track_states()
        return output

    def _say(self, text: str) -> None:
        """Warns, once."""
        if text not in self._said:
            self._said.add(text)
            warnings.warn(text, AccelerationWarning, stacklevel=6)


def _unsupported(model: Any, x: Tensor, temperature: float) -> str:
    """Why the kernels cannot serve a step; empty where they can."""
    layer, settings = model.layer, model.layer._cfg
    activation = type(layer.activation).__name__
    poisson = len(layer.u_init) == 1
    if layer.activation is not None and activation != "ReLu":
        return f"the activation {activation} has no kernel (none and ReLu have)"
    if settings.inf_type != "grad":
        return f"inference by {settings.inf_type!r} has no kernel ('grad' has)"
    if not poisson and temperature != 1.0:
        return f"a Gaussian temperature of {temperature:g} has no kernel (1 has)"
    if _counts_are_relaxed(layer, temperature) and layer.time >= len(layer.n_exp):
        return "relaxed counts beyond the table n_exp are cut by the rates of each draw, which no kernel does"
    if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[-1] != layer.input_dim:
        return f"the input is not a tensor [B, {layer.input_dim}]"
    if x.dtype not in (torch.float32, torch.float64) or x.dtype != layer.phi.weight.dtype:
        return f"an input of {x.dtype} for weights of {layer.phi.weight.dtype} has no kernel"
    return ""


def _counts_are_relaxed(layer: Any, temperature: float) -> bool:
    return len(layer.u_init) == 1 and temperature > 0.0


def _relaxed(layer: Any, temperature: float, n: int) -> dict[str, Any] | None:
    """How `elbo` draws the next n steps; None: `infer` does, hard counts or normals without gradient."""
    if _counts_are_relaxed(layer, temperature):
        cuts = layer.n_exp[layer.time : layer.time + n].tolist()
        return {"estimator": "sigmoid", "temperature": temperature, "n_arrivals": cuts}
    if not torch.is_grad_enabled():
        return None
    return {"estimator": "sigmoid", "temperature": 0.0} if len(layer.u_init) == 1 else {}


def _key(layer: Any, temperature: float, batch: int) -> tuple[Any, ...]:
    """What steps depend on beside state and input: temperature, gradient, and every tensor as it is now."""
    tensors = (*layer.parameters(), *layer.buffers())
    return (temperature, torch.is_grad_enabled(), batch, *map(id, tensors), *windows.versions(tensors))


def _same_memory(x: Tensor, other: Tensor) -> bool:
    """Whether two frames that were made one after the other are one: a feeder's that stays."""
    places = [
        (frame.shape, frame.dtype, frame.device, frame.data_ptr(), frame.stride()) for frame in (x, other)
    ]
    return places[0] == places[1]


def _plain(theirs: type, values: dict[str, Any]) -> Any:
    """An object of a class of theirs that holds these values."""
    made: Any = object.__new__(theirs)
    made.__dict__.update(values)
    return made


@functools.cache
def _deferred(theirs: type) -> type:
    """A distribution of theirs that is made when it is first looked at: most steps never are.

    Copies and pickles are of their own class.
    """

    class Deferred(theirs):  # type: ignore[misc]
        def __init__(self, **arguments: Any) -> None:
            self.__dict__["_arguments"] = (torch.is_grad_enabled(), arguments)

        def _make(self) -> bool:
            """Whether it had not been made yet."""
            gradient, arguments = self.__dict__.pop("_arguments", (False, None))
            if arguments is not None:
                with torch.set_grad_enabled(gradient):
                    super().__init__(**arguments)
            return arguments is not None

        def __getattr__(self, name: str) -> Any:
            if self._make():
                return getattr(self, name)
            raise AttributeError(f"{theirs.__name__!r} has no attribute {name!r}")

        def __reduce__(self) -> tuple[Any, ...]:
            self._make()
            return _plain, (theirs, self.__dict__)

    Deferred.__name__, Deferred.__qualname__ = theirs.__name__, theirs.__qualname__
    return Deferred


def _theirs(method: Any, name: str) -> type:
    """A class as one of their methods sees it."""
    found: type = method.__func__.__globals__[name]
    return found


def _posterior(layer: Any, key: tuple[Any, ...]) -> Any:
    """What ``get_dist`` makes of the layer's state."""
    temp = layer.temp.new_tensor(key[0])
    if len(layer.u) == 2:
        normal = _deferred(_theirs(layer.get_dist, "Normal"))
        return normal(loc=layer.u[0], log_scale=layer.u[1], temp=temp, clamp=None)
    n_exp = layer.n_exp[layer.time] if layer.time < len(layer.n_exp) else "infer"
    poisson = _deferred(_theirs(layer.get_dist, "Poisson"))
    return poisson(log_rate=layer.u[0], temp=temp, n_exp=n_exp, n_exp_p=1e-3, clamp=None)


def _conditional(layer: Any, window: Window, step: Step) -> Any:
    """What ``generate`` leaves: the distribution of the pixels."""
    normal = _deferred(_theirs(layer.generate, "Normal"))
    return normal(loc=step.mean, log_scale=window.log_sigma, clamp=None, temp=1.0)

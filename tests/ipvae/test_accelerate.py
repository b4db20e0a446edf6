"""The authors' models and trainers, accelerated: the same numbers with the same noise, in fewer calls."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ipvae
import pytest
import torch
from ipvae import IPVAE, AccelerationWarning, CheckpointError
from ipvae.interop.accelerated import windows
from torch import Tensor

from . import theirs

EXTRAS = ["du", "u", "samples", "mse", "recon"]


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", AccelerationWarning)
        yield


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps of each call of the kernels."""
    made: list[int] = []
    compute = windows.compute

    def counted(layer: Any, x: Tensor, n: int, *rest: Any) -> Any:
        made.append(n)
        return compute(layer, x, n, *rest)

    monkeypatch.setattr(windows, "compute", counted)
    return made


def model(dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    torch.manual_seed(0)
    made = theirs.IPVAE(theirs.settings(**changes)).to(dtype)
    made.layer.temp.fill_(0.3)
    made.layer.eps.fill_(0.7)
    made.layer.n_exp[: min(3, made.layer.t_total)] = torch.tensor([5, 0, 6])
    return made


def x_of(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5)).to(dtype)


def loop(made: Any, frames: Any, steps: int, temp: float | None = None, extras: Any = None) -> Any:
    """A loop like theirs: the loss, and the output of each step."""
    torch.manual_seed(11)
    made.layer.seed = torch.randint(2**63 - 1, (), dtype=torch.int64)
    torch.manual_seed(11)
    outputs = []
    for t in range(steps):
        made.update_time(t)
        outputs.append(made(frames[t], temp=temp, return_extras=extras))
    losses = [o["loss_recon"] + 2.0 * o["loss_kl"].sum(-1) for o in outputs]
    return torch.stack(losses).mean(), outputs


def both(run: Callable[[Any], Any], **changes: Any) -> Any:
    """What `run` returns for a model as it is, and accelerated."""
    return run(model(**changes)), run(ipvae.accelerate(model(**changes)))


def close(ours: Any, expected: Any, tolerance: float) -> None:
    torch.testing.assert_close(
        ours, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max() + 1e-6)
    )


@pytest.mark.parametrize("inner", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
@pytest.mark.parametrize("outer", [1, 2])
def test_a_training_window(
    inner: int, dtype: torch.dtype, tolerance: float, outer: int, calls: list[int]
) -> None:
    def run(made: Any) -> Any:
        made.layer.temp = made.layer.temp.to(torch.float32)
        x, values = x_of(6, 12, dtype=dtype), []
        loss, outputs = loop(made, [x] * 4, 4)
        loss.backward()
        values += [p.grad.clone() for p in made.parameters()]
        if outer > 1:  # as their trainer goes on after a backward
            made.zero_grad()
            made.detach_inference_state()
            more = []
            for t in range(4, 8):
                made.update_time(t)
                more.append(made(x))
            (more[-1]["loss_recon"].sum() + more[-1]["loss_kl"].sum()).backward()
            values += [p.grad.clone() for p in made.parameters() if p.grad is not None]
            outputs += more
        values += [o[name].detach() for o in outputs for name in ("loss_kl", "loss_recon")]
        values += [o["posterior"].rate.detach() for o in outputs]
        return loss.detach(), values, [o["posterior"].n_exp for o in outputs]

    expected, found = both(run, n_iters_inner=inner, n_iters_outer=outer, dtype=dtype)
    close(found[0], expected[0], tolerance / 10)
    # The step size's gradient is a small difference of large sums: of float32 it has four digits, either way.
    assert len(found[1]) == len(expected[1])
    for ours, one in zip(found[1], expected[1], strict=True):
        close(ours, one, tolerance if ours.numel() > 1 else 10 * tolerance)
    assert found[2] == expected[2]
    assert found[2][:4] == [5, 0, 6, 10]
    assert calls == [4] * outer


def test_every_output_keeps_its_gradient() -> None:
    def run(made: Any) -> list[Tensor]:
        generator = torch.Generator().manual_seed(2)
        _, outputs = loop(made, [x_of(6, 12, dtype=torch.float64)] * 4, 4)
        layer, total = made.layer, torch.zeros(())
        for value in (layer.u[0], layer.samples, layer.conditional.loc, outputs[1]["loss_kl"]):
            total = total + (value * torch.randn(value.shape, generator=generator)).sum()
        return [
            g for g in torch.autograd.grad(total, list(made.parameters()), allow_unused=True) if g is not None
        ]

    expected, found = both(run, dtype=torch.float64)
    for ours, one in zip(found, expected, strict=True):
        close(ours, one, 1e-10)


@pytest.mark.parametrize("temp", [0.0, 0.4])
def test_an_evaluation_goes_as_far_as_the_last_one(temp: float, calls: list[int]) -> None:
    steps = 9 if temp == 0.0 else 4  # relaxed counts end with the table n_exp

    @torch.no_grad()
    def run(made: Any) -> Any:
        for _ in range(2):
            _, outputs = loop(made, [x_of(6, 12)] * steps, steps, temp=temp, extras=EXTRAS)
        return outputs, made.layer.n_updates

    expected, found = both(run)
    for ours, one in zip(found[0], expected[0], strict=True):
        for name in ("loss_kl", "loss_recon", *EXTRAS):
            close(ours[name], one[name], 1e-5)
    assert found[1] == expected[1] == steps
    assert calls == ([4, 4, 8, 9] if temp == 0.0 else [4, 4])


def test_inference_mode() -> None:
    def run(made: Any) -> list[Tensor]:
        with torch.inference_mode():
            _, outputs = loop(made, [x_of(6, 12)] * 6, 6, temp=0.0, extras=EXTRAS)
        loss, _ = loop(made, [x_of(6, 12)] * 4, 4)
        return [*(o["recon"] for o in outputs), torch.autograd.grad(loss, made.layer.phi.weight)[0]]

    expected, found = both(run)
    for ours, one in zip(found, expected, strict=True):
        close(ours, one, 1e-5)
    with torch.inference_mode():
        made = ipvae.accelerate(model())
        assert loop(made, [x_of(6, 12)] * 2, 2, temp=0.0)[0].isfinite()


def test_a_moving_input_goes_step_by_step_and_says_so(calls: list[int]) -> None:
    frames = x_of(4, 6, 12)

    def run(made: Any) -> list[Tensor]:
        loss, outputs = loop(made, frames, 4)
        loss.backward()
        return [*(p.grad for p in made.parameters()), *(o["loss_recon"].detach() for o in outputs)]

    expected = run(model())
    made = ipvae.accelerate(model())
    with pytest.warns(AccelerationWarning, match="the input moves, and only a trainer knows"):
        found = run(made)
    for ours, one in zip(found, expected, strict=True):
        close(ours, one, 2e-5)
    assert calls == [4, 1, 1, 1]


@pytest.mark.parametrize("moves", [False, True])
def test_a_trainer_knows_the_frames(moves: bool, calls: list[int]) -> None:
    def run(made: Any, accelerated: bool) -> tuple[Tensor, Any]:
        trainer = theirs.BaseTrainer(made, moves)
        if accelerated:
            assert ipvae.accelerate(trainer) is trainer
        feeder = trainer.get_feeder(x_of(6, 12))
        loss, _ = loop(made, feeder, 4)
        with torch.no_grad():
            loop(made, trainer.get_feeder(x_of(6, 12)), 9, temp=0.0)
        return loss.detach(), made.layer.u[0]

    expected, found = run(model(), False), run(model(), True)
    for ours, one in zip(found, expected, strict=True):
        close(ours, one, 1e-5)
    assert calls == [4, 4, 4, 8]


def test_a_model_that_is_updated_or_put_elsewhere_starts_a_window_anew(calls: list[int]) -> None:
    made, x = ipvae.accelerate(model()), x_of(6, 12)
    with torch.no_grad():
        loop(made, [x] * 2, 2, temp=0.0)
        made.layer.phi.weight.mul_(0.0)
        made.update_time(2)
        assert bool((made(x, temp=0.0, return_extras=["recon"])["recon"] == 0.0).all())
        made.layer.u = (torch.full((6, 20), -8.0),)
        made.update_time(3)
        assert float(made(x, temp=0.0, return_extras=["du"])["du"].abs().max()) < 1.0
    assert len(calls) == 3


def test_a_tensor_that_is_filled_anew_is_another_input(calls: list[int]) -> None:
    """As in a loop with one buffer, of torch or NumPy: where it lies does not say what it holds."""
    frames, buffer = x_of(4, 6, 12), torch.empty(6, 12)

    def fed(how: str) -> Iterator[Tensor]:
        for frame in frames:
            if how == "copy_":
                yield buffer.copy_(frame)
            else:
                buffer.numpy()[...] = frame.numpy()
                yield torch.from_numpy(buffer.numpy())

    class Feed:
        def __init__(self, how: str) -> None:
            self.frames = fed(how)

        def __getitem__(self, t: int) -> Tensor:
            return next(self.frames)

    with torch.no_grad():
        _, expected = loop(model(), frames, 4, temp=0.0, extras=EXTRAS)
        for how in ("copy_", "numpy"):
            made = ipvae.accelerate(model())
            with pytest.warns(AccelerationWarning, match="the input moves"):
                _, found = loop(made, Feed(how), 4, temp=0.0, extras=EXTRAS)
            for ours, one in zip(found, expected, strict=True):
                close(ours["recon"], one["recon"], 1e-5)


def test_a_tensor_may_be_filled_anew_before_the_backward() -> None:
    def run(made: Any) -> list[Tensor]:
        buffer = x_of(6, 12, dtype=torch.float64)
        loss, _ = loop(made, [buffer] * 4, 4)
        buffer.zero_()
        return list(torch.autograd.grad(loss, list(made.parameters())))

    expected, found = both(run, dtype=torch.float64)
    for ours, one in zip(found, expected, strict=True):
        close(ours, one, 1e-10)


def test_an_input_keeps_its_gradient() -> None:
    def run(made: Any) -> list[Tensor]:
        x = x_of(6, 12, dtype=torch.float64).requires_grad_()
        return [torch.autograd.grad(loop(made, [x] * 4, 4)[0], x)[0]]

    expected, found = both(run, dtype=torch.float64)
    close(found[0], expected[0], 1e-10)


def test_a_state_that_is_written_to_starts_a_window_anew(calls: list[int]) -> None:
    made, x = ipvae.accelerate(model()), x_of(6, 12)
    with torch.no_grad():
        loop(made, [x] * 2, 2, temp=0.0)
        made.layer.u[0].fill_(-8.0)
        made.update_time(2)
        assert bool((made(x, temp=0.0, return_extras=["u"])["u"] < -5.0).all())
    assert len(calls) == 2


def test_nothing_else_changes(tmp_path: Path) -> None:
    plain, made = model(), ipvae.accelerate(ipvae.accelerate(model()))
    assert type(made) is theirs.IPVAE
    assert list(made.state_dict()) == list(plain.state_dict())
    assert all(p is q for p, q in zip(made.parameters(), made.layer.parameters(), strict=True))
    with torch.no_grad():
        loop(made, [x_of(6, 12)] * 2, 2, temp=0.0)
    twin = copy.deepcopy(made)
    assert twin.forward.__self__ is twin
    with torch.no_grad():
        first, second = (loop(one, [x_of(6, 12)] * 3, 3, temp=0.0)[0] for one in (twin, made))
    assert torch.equal(first, second)
    loaded = pickle.loads(pickle.dumps(made))
    assert type(loaded.layer.posterior) is theirs.Poisson
    assert set(vars(ipvae.deaccelerate(made))) == set(vars(plain))
    assert ipvae.deaccelerate(made) is made


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda made: setattr(made.layer._cfg, "inf_type", "leapfrog"),
            "inference by 'leapfrog' has no kernel",
        ),
        (
            lambda made: setattr(made.layer, "activation", torch.nn.Tanh()),
            "the activation Tanh has no kernel",
        ),
        (lambda made: made.layer.n_exp.resize_(0), "relaxed counts beyond the table n_exp"),
    ],
)
def test_what_has_no_kernel_runs_as_before(change: Callable[[Any], Any], reason: str) -> None:
    def run(made: Any) -> Tensor:
        change(made)
        return loop(made, [x_of(6, 12)] * 2, 2)[0].detach()

    expected, made = run(model()), ipvae.accelerate(model())
    with pytest.warns(AccelerationWarning, match=reason) as caught:
        close(run(made), expected, 1e-5)
    assert len(caught) == 1


class OwnForward(theirs.IPVAE):
    def forward(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        return {}


class OwnDraw(theirs.PoissonLayer):
    def update_inference_state(self, *arguments: Any) -> None:
        pass


def with_layer() -> Any:
    made = model()
    made.layer = OwnDraw(12, 20, made.cfg)
    return made


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            lambda: torch.nn.Linear(2, 3),
            "expected an IPVAE or IGVAE of hadivafaii/IterativeVAE, or their Trainer",
        ),
        (lambda: 3, "found builtins.int"),
        (lambda: OwnForward(theirs.settings()), "OwnForward.forward: expected that of _IterativeVAE"),
        (with_layer, "OwnDraw.update_inference_state: expected that of _StochasticLayer"),
    ],
)
@pytest.mark.parametrize("function", [ipvae.accelerate, ipvae.deaccelerate])
def test_other_classes_are_refused(function: Any, value: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        function(value())


def test_a_live_model_becomes_one_of_ours() -> None:
    made = model(n_iters_inner=2)
    copied = IPVAE.from_released(made)
    assert copied.config.n_inner == 2
    for name, value in made.state_dict().items():
        assert torch.equal(copied.state_dict()[name], value)
    with torch.no_grad():
        made.layer.phi.weight.zero_()
    assert float(copied.dictionary.detach().abs().max()) > 0.0
    trainer = theirs.BaseTrainer(made, moves=False)
    assert float(IPVAE.from_released(trainer).dictionary.abs().max()) == 0.0
    with pytest.raises(CheckpointError, match="ema: it keeps no average"):
        IPVAE.from_released(trainer, ema=True)
    trainer.model_ema = model()
    assert float(IPVAE.from_released(trainer, ema=True).dictionary.abs().max()) > 0.0

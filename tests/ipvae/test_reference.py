"""The authors' own code, where a checkout is at hand: accelerated with equal noise, and reading our files."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ipvae
import pytest
import torch
from ipvae import IGVAE, IPVAE, IGVAEConfig, IPVAEConfig
from ipvae_bench.contestants import authors
from torch import Tensor

from ipvae_kernels import philox
from ipvae_kernels.poisson.noise import hard_counts
from ipvae_kernels.rollout import schedule
from ipvae_kernels.rollout.config import RolloutConfig

KINDS = ("poisson", "gaussian", "relu")
EXTRAS = ["du", "u", "samples", "r2", "mse", "recon"]


@pytest.fixture
def theirs(shared: Callable[[str], Path]) -> Iterator[Callable[[str], Any]]:
    """Imports a module of theirs."""
    with authors.importable(shared("IterativeVAE")):
        yield authors.load


class Noise:
    """Our noise in the order in which their code draws: per step the updates, then the loss."""

    def __init__(self, seed: Tensor, n_inner: int) -> None:
        self.seed, self.n_inner, self.drawn = seed, n_inner, 0

    def stream(self) -> Any:
        step, inner = divmod(self.drawn, self.n_inner + 1)
        self.drawn += 1
        cfg = RolloutConfig(steps=1, n_inner=self.n_inner)
        loss = inner == self.n_inner
        return schedule.loss_stream(cfg, step) if loss else schedule.update_stream(cfg, step, inner)

    def gaps(self, n: int, shape: torch.Size) -> Tensor:
        """Times between arrivals at rate 1, [n, B, K]."""
        stream, rows = self.stream(), torch.arange(shape.numel())
        first = philox.exponential(philox.first_words(self.seed, stream, shape), torch.float32)
        words = philox.own_words(self.seed, stream, rows // shape[1], rows % shape[1], 1, 1 + n // 4)
        more = philox.exponential(words, torch.float32).reshape(*shape, -1).permute(2, 0, 1)
        return torch.cat([first[None], more])[:n]

    def normals(self, shape: torch.Size, **_: object) -> Tensor:
        return philox.normal(philox.first_words(self.seed, self.stream(), shape), torch.float32)


@contextlib.contextmanager
def noise(n_inner: int) -> Iterator[None]:
    """Their draws from our noise, with the seed that an accelerated model draws after `manual_seed(11)`."""
    torch.manual_seed(11)
    ours = Noise(torch.randint(2**63 - 1, (), dtype=torch.int64), n_inner)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.distributions.Exponential, "rsample", lambda q, n: ours.gaps(n[0], q.rate.shape) / q.rate
        )
        patch.setattr(torch, "poisson", lambda rate: hard_counts(rate, ours.seed, ours.stream()))
        patch.setattr("torch.distributions.normal._standard_normal", ours.normals)
        yield


def model(theirs: Callable[[str], Any], kind: str, n_inner: int) -> Any:
    config, models = theirs("main.config"), theirs("main.model")
    how: dict[str, Any] = {
        "dataset": "vH16-wht", "t_train": 6, "n_iters_inner": n_inner, "n_latents": [40], "init_scale": 0.05,
        "save": False,
    }  # fmt: skip
    if kind == "poisson":
        made = models.IPVAE(config.ConfigPoisVAE(clamp_u=10.0, clamp_du=10.0, **how))
        made.layer.n_exp.copy_(torch.tensor([5, 0, 7, 7, 6, 3]))
        made.update_temp(0.3)
    else:
        how |= {
            "clamp_u": (7.0, 2.0),
            "clamp_du": (7.0, 3.0),
            "latent_act": "relu" if kind == "relu" else None,
        }
        made = models.IGVAE(config.ConfigGausVAE(**how))
    made.update_eps(0.7)
    return made


def loop(made: Any, x: Tensor, steps: int, **options: Any) -> list[dict[str, Any]]:
    torch.manual_seed(11)
    outputs = []
    for t in range(steps):
        made.update_time(t)
        outputs.append(made(x, **options))
    return outputs


def close(ours: Tensor, expected: Tensor, tolerance: float) -> None:
    """Within a share of the largest number."""
    scale = float(expected.detach().abs().max()) + 1e-6
    torch.testing.assert_close(ours, expected, rtol=0.0, atol=tolerance * scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_inner", [1, 2])
def test_equal_noise_gives_equal_numbers(theirs: Callable[[str], Any], kind: str, n_inner: int) -> None:
    made, x = model(theirs, kind, n_inner), torch.randn(7, 256, generator=torch.Generator().manual_seed(5))

    def train() -> tuple[Tensor, list[Tensor], list[Any]]:
        outputs = loop(made, x, 6)
        loss = sum((o["loss_recon"] + 2.0 * o["loss_kl"].sum(-1)).mean() for o in outputs)
        gradients = torch.autograd.grad(loss, list(made.parameters()))
        return loss.detach(), gradients, [getattr(o["posterior"], "n_exp", 0) for o in outputs]

    def evaluate() -> list[dict[str, Any]]:
        temp = 0.0 if kind == "poisson" else 1.0
        return loop(made, x, 9, temp=temp, return_extras=list(EXTRAS))

    with noise(n_inner):
        expected = train()
    with noise(n_inner), torch.no_grad():
        evaluated = evaluate()
    ipvae.accelerate(made)
    found = train()
    close(found[0], expected[0], 1e-6)
    assert found[2] == expected[2]
    for ours, one in zip(found[1], expected[1], strict=True):
        # 1e-6 to 1.2e-5: six steps of float32, whose sums are taken in another order.
        assert float((ours - one).norm()) <= 2e-5 * float(one.norm())
    with torch.no_grad():
        for ours, one in zip(evaluate(), evaluated, strict=True):
            for name in ("loss_kl", "loss_recon", *EXTRAS):
                close(ours[name], one[name], 2e-5)


def test_their_trainer_renews_its_table_alike(theirs: Callable[[str], Any]) -> None:
    train, config = theirs("main.train"), theirs("main.config")
    x = torch.randn(5, 1, 16, 16, generator=torch.Generator().manual_seed(3))

    class OneBatch(train.Trainer):  # type: ignore[misc, name-defined]
        def setup_data(self, gpu: bool = True) -> None:
            self.dl_trn = [(x,)]

    def iterated(accelerated: bool) -> tuple[list[int], list[Tensor]]:
        how = {"epochs": 3, "warmup_portion": 0.0, "temp_start": 0.3, "temp_stop": 0.3, "lr": 1e-3}
        trainer = OneBatch(model(theirs, "poisson", 1), config.ConfigTrain(**how))
        if accelerated:
            ipvae.accelerate(trainer)
        torch.manual_seed(11)
        trainer.iteration(0)  # the update in which the table is renewed
        return trainer.model.layer.n_exp.tolist(), list(trainer.model.parameters())

    with noise(1):
        table, parameters = iterated(accelerated=False)
    renewed, moved = iterated(accelerated=True)
    assert renewed == table
    assert table != [5, 0, 7, 7, 6, 3]
    for ours, one in zip(moved, parameters, strict=True):
        close(ours, one, 1e-5)


def keys(values: dict[Any, Any], prefix: str = "") -> set[str]:
    """All keys of dictionaries in dictionaries."""
    found = set()
    for name, value in values.items():
        found |= {f"{prefix}{name}"} | (keys(value, f"{prefix}{name}/") if isinstance(value, dict) else set())
    return found


@pytest.mark.parametrize("family", [IPVAE, IGVAE])
def test_their_loader_reads_our_files(theirs: Callable[[str], Any], family: Any, tmp_path: Path) -> None:
    config = {IPVAE: IPVAEConfig, IGVAE: IGVAEConfig}[family](
        n_inputs=256, n_latents=12, input_shape=(1, 16, 16), t_train=5
    )
    mine = family(config)
    file = mine.to_released(tmp_path / "mine")
    trainer = theirs("main.train").Trainer
    with pytest.MonkeyPatch.context() as patch:  # their data are not needed
        patch.setattr(trainer, "setup_data", lambda self, gpu=True: setattr(self, "dl_trn", range(7)))
        loaded, metadata = theirs("base.utils_model").load_model(str(tmp_path / "mine"), "cpu", lite=True)
    assert metadata["checkpoint"] == 0
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, mine.state_dict()[name])
    (tmp_path / "theirs").mkdir()
    loaded.save(str(tmp_path / "theirs"))
    (written,) = (tmp_path / "theirs").iterdir()
    one, other = (torch.load(path, weights_only=False) for path in (written, file))
    assert keys(one) == keys(other)
    assert list(one["model"]) == list(other["model"])
    assert set(one["optim"]["param_groups"][0]) == set(other["optim"]["param_groups"][0])
    back = family.from_released(loaded.model)
    assert dataclasses.replace(back.config, seed=0) == family.from_released(tmp_path / "mine").config

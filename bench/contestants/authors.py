"""The authors' code, from a checkout of github.com/hadivafaii/IterativeVAE: their layer, their trainer.

Nothing of it is copied or rewritten. Their modules import plotting and data packages at the top that timing
does not use; those that are not installed are replaced, in memory and only while theirs are imported, by
empty modules (`OPTIONAL`).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from ipvae import PVAE
from ipvae.interop.released import DATASETS, SHAPES
from torch import Tensor, nn

from ipvae_kernels import poisson_kl

from ..problem import (
    BETA,
    GRAD_CLIP,
    LR,
    Optimiser,
    Output,
    Prepared,
    Problem,
    Settings,
    Unavailable,
    upstream,
)

ITERATIVE, AMORTISED = "main/layers.py", "main/vae.py"
REPOSITORIES = {ITERATIVE: "hadivafaii/IterativeVAE", AMORTISED: "hadivafaii/PoissonVAE"}
"""A file of each, by which it is known."""
OPTIONAL = (
    "IPython", "PIL", "h5py", "joblib", "pandas", "prettytable", "seaborn", "sklearnex", "statsmodels",
    "torchvision",
)  # fmt: skip
THEIR_TEMPERATURE = 0.1
TRAINED_STEPS = 16
# Their trainer renews its cut of the arrivals at multiples of this update.
RENEW_EVERY = 200


def prepare(problem: Problem, settings: Settings, change: Callable[[Any], Any] = lambda it: it) -> Prepared:
    """Their model with our weights, or their sampler; cases with another estimator get their sigmoid.

    Args:
        problem: what to run.
        settings: how.
        change: applied to their trainer, or where none takes part to their model.

    Raises:
        Unavailable: no checkout given, or it cannot be imported.
    """
    if settings.reference is None:
        raise Unavailable("no --reference")
    case, note = problem.case, ""
    if case.estimator not in ("hard", "sigmoid"):
        theirs = replace(case, estimator="sigmoid", temperature=case.temperature or THEIR_TEMPERATURE)
        problem = replace(problem, case=theirs)
        note = f"their sigmoid, temperature {theirs.temperature:g}"
    if case.op == "amortised":
        with importable(settings.reference, AMORTISED):
            return Prepared(_amortised(problem), problem, "their linear P-VAE, n_exp 263 as at their start")
    with importable(settings.reference):
        if case.op in ("sample", "rsample"):
            return Prepared(_sampler(problem), problem, note)
        run = _inference(problem, change) if case.op == "infer" else _training(problem, change)
    return Prepared(run, problem, note)


def _sampler(problem: Problem) -> Any:
    case, u = problem.case, problem.log_rate
    poisson = load("main.distributions").Poisson

    def sample() -> Output:
        return {"counts": poisson(u, temp=0.0, n_exp=problem.arrivals[0]).rsample()}

    def rsample() -> Output:
        log_rate.grad = None
        # As their layer calls it where it has no table of arrivals.
        counts: Tensor = poisson(log_rate, temp=case.temperature, n_exp="infer", n_exp_p=1e-3).rsample()
        counts.backward(gradient)  # type: ignore[no-untyped-call]
        assert log_rate.grad is not None
        return {"counts": counts.detach(), "gradient": log_rate.grad}

    if case.op == "sample":
        return sample
    log_rate, gradient = u.clone().requires_grad_(), upstream(problem)
    return rsample


def _inference(problem: Problem, change: Callable[[Any], Any]) -> Any:
    """Their evaluation, ``Trainer.forward``, without its copies to numpy."""
    model, case = change(_model(problem, TRAINED_STEPS)), problem.case

    def infer() -> Output:
        recon, kl = [], []
        for t in range(case.steps):
            model.update_time(t)
            output = model.xtract_ftr(problem.x)
            recon.append(output["loss_recon"])
            kl.append(output["loss_kl"].sum(-1))
        return {"recon": torch.stack(recon), "kl": torch.stack(kl), "log_rate": model.layer.u[0]}

    return infer


def _training(problem: Problem, change: Callable[[Any], Any]) -> Any:
    """Their ``Trainer.iteration`` on one batch: annealing, loop, loss, backward, clipping, their Adamax."""
    case, x = problem.case, problem.x
    train, config = load("main.train"), load("main.config")
    model = _model(problem, case.steps)
    images = x.reshape(len(x), *model.cfg.input_sz)

    class OneBatch(train.Trainer):  # type: ignore[misc, name-defined]
        def setup_data(self, gpu: bool = True) -> None:
            self.dl_trn = [(images,)]

    schedule = {"lr": LR, "grad_clip": GRAD_CLIP, "batch_size": len(x), "warmup_portion": 0.0}
    settings = config.ConfigTrain(epochs=10 * RENEW_EVERY, **schedule)
    trainer = change(OneBatch(model, settings, device=problem.device))
    trainer.temperatures[:], trainer.epsilons[:], trainer.betas[:] = case.temperature, 1.0, BETA
    outputs: list[tuple[Tensor, Tensor]] = []
    layer = model.layer

    def keep(_: object, arguments: object, output: dict[str, Tensor]) -> None:
        outputs.append((output["loss_recon"].detach(), output["loss_kl"].detach().sum(-1)))

    model.register_forward_hook(keep)
    gradients: list[Tensor] = []
    layer.phi.weight.register_hook(gradients.append)

    def iteration(number: int) -> Output:
        outputs.clear()
        gradients.clear()
        trainer.iteration(number)
        recon, kl = (torch.stack(terms) for terms in zip(*outputs, strict=True))
        return {"recon": recon, "kl": kl, "log_rate": layer.u[0].detach(), "gradient": gradients[-1]}

    layer.n_exp.copy_(torch.tensor(problem.arrivals))
    updates = iter(range(1, 10**9))

    def run() -> Output:
        number = next(updates)
        return iteration(1 + number % (RENEW_EVERY - 1))

    return run


def _amortised(problem: Problem) -> Any:
    """A step of their P-VAE on one batch: forward, loss, backward, and the clipped Adamax of all."""
    ours, case = cast(PVAE, problem.amortised), problem.case
    sizes = {"dataset": "MNIST", "n_latents": ours.config.n_latents}
    config = importlib.import_module("main.config_vae").ConfigPoisVAE(**sizes, fit_prior=True, save=False)
    model = importlib.import_module("main.vae").PoissonVAE(config).to(problem.device)
    encoder = cast(nn.Sequential, ours.encoder)[-1]
    with torch.no_grad():
        model.fc_dec.weight.copy_(ours.dictionary)
        model.fc_enc.weight.copy_(cast(Tensor, encoder.weight))
        model.log_rate.copy_(ours.prior)
    model.update_t(case.temperature)
    x = problem.x.reshape(len(problem.x), 1, 28, 28)
    optimiser = Optimiser(model)
    # A Gaussian likelihood of variance 1/2 is their squared error and this.
    constant = 0.5 * math.log(math.pi) * problem.x.shape[-1]

    def run() -> Output:
        dist, log_dr, _, y = model(x)
        recon, kl = model.loss_recon(y, x), model.loss_kl(log_dr).sum(1)
        optimiser.step((recon + BETA * kl).mean() * (256.0 / problem.x.shape[-1]))
        # Their KL is that of rates before a clamp of 5; compared is that of the law they sample.
        log_rate, prior = dist.rate.detach().log(), model.log_rate.detach()
        return {
            "recon": recon.detach()[None] + constant, "kl": poisson_kl(log_rate, prior).sum(-1)[None],
            "log_rate": log_rate, "gradient": model.fc_dec.weight.grad,
        }  # fmt: skip

    return run


def _model(problem: Problem, t_train: int) -> Any:
    """Their IPVAE with the problem's parameters."""
    ours = problem.model
    m, k = ours.dictionary.shape
    config = load("main.config").ConfigPoisVAE(
        dataset=DATASETS[SHAPES[m]], t_train=t_train, n_latents=[k], beta_outer=BETA, init_scale=1e-4,
        save=False, clamp_u=ours.config.clamp_u, clamp_du=ours.config.clamp_du,
    )  # fmt: skip
    model = load("main.model").IPVAE(config).to(problem.device)
    weights = {name: value for name, value in ours.state_dict().items() if name != "layer.n_exp"}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if missing != ["layer.n_exp"] or unexpected:
        raise Unavailable(f"their parameters are not ours: missing {missing}, unexpected {unexpected}")
    return model


def load(name: str) -> Any:
    """A module of theirs; main.model goes first, since their circular imports allow no other order."""
    importlib.import_module("main.model")
    return importlib.import_module(name)


class _Nothing:
    """What an empty module holds under every name: may be called, or stand in an annotation."""

    def __init__(self, *arguments: object, **options: object) -> None:
        pass


class _Empty(ModuleType):
    """A module that has every name."""

    __path__: list[str] = []  # noqa: RUF012, what makes it a package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Nothing,), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the packages of `OPTIONAL` that are not installed, as empty modules."""

    def __init__(self) -> None:
        self.missing = {name for name in OPTIONAL if importlib.util.find_spec(name) is None}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in self.missing:
            return None
        return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to execute."""


@contextlib.contextmanager
def importable(reference: Path, file: str = ITERATIVE) -> Iterator[None]:
    """Their packages can be imported within, and what they print and seed at import is undone.

    Args:
        reference: a checkout.
        file: that tells which: of `REPOSITORIES`.
    """
    if not (reference / file).is_file():
        raise Unavailable(f"{reference} is not a checkout of {REPOSITORIES[file]}: no {file}")
    finder, state = _Finder(), torch.get_rng_state()
    sys.path.insert(0, str(reference))
    sys.meta_path.append(finder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        sys.path.remove(str(reference))
        sys.meta_path.remove(finder)
        torch.set_rng_state(state)
        for name in [n for n in sys.modules if n.partition(".")[0] in finder.missing]:
            del sys.modules[name]

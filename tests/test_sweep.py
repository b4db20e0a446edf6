"""A sweep of random calls over the public functions: odd arguments end in an error of a documented type.

Every call starts from arguments that work, of which up to three are replaced: by tensors of other shapes,
dtypes, strides, devices and values, by numbers of Python, NumPy and torch that may or may not do, by names
that exist or not. It may succeed, and then finite arguments give no NaN, or raise TypeError, ValueError or
what its package documents. `make sweep` runs more of them.
"""

import contextlib
import math
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import ipvae
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from ipvae import plots
from ipvae.data import DataSplits, JitterFeeder, RotationFeeder, SequenceFeeder, load_dataset, load_whole
from ipvae.data.patches import whiten
from ipvae.data.photographs import photo_patches
from ipvae.data.splits import random_split
from ipvae.evaluation import evaluate as evaluation
from ipvae.evaluation import metrics
from ipvae.models.iterative import opened
from ipvae.models.registry import FAMILIES
from ipvae.training import recipes, schedules
from torch import Tensor
from torch.distributions import kl_divergence

import ipvae_kernels as ik
from ipvae_kernels.distributions import EATPoisson, GumbelSoftmaxPoisson

B, M, K = 3, 6, 5
DOCUMENTED = (TypeError, ValueError, ik.BackendError)

Random = random.Random
Numbers = tuple[Any, ...]

_META = torch.zeros((), device="meta")
_NO_NUMBERS: Numbers = (
    None,
    "2",
    b"2",
    [],
    {},
    object(),
    1j,
    math.nan,
    _META,
    np.array([1, 2]),
    torch.ones(2),
)
COUNT: Numbers = (
    0,
    1,
    2,
    3,
    -1,
    True,
    2.0,
    1.5,
    2**64,
    -(2**64),
    10**400,
    math.inf,
    np.int64(2),
    np.uint8(1),
    np.float32(2),
    np.bool_(True),
    np.array(2),
    torch.tensor(2),
    torch.tensor(2.0),
    torch.tensor(True),
    *_NO_NUMBERS,
)
WORD: Numbers = (
    *COUNT,
    2**31,
    2**32,
    2**32 - 1,
    2**63 - 1,
    -(2**63),
    2**63,
    np.uint64(2**64 - 1),
    np.int64(-1),
)
REAL: Numbers = (
    *COUNT,
    0.0,
    -0.0,
    0.5,
    1e-30,
    1e30,
    -1e30,
    5e-324,
    sys.float_info.max,
    -math.inf,
    np.float16(0.5),
    np.float64(0.25),
    torch.tensor(0.5),
    torch.tensor(math.nan),
    (7.0, 2.0),
    (1.0,),
    [7.0, 2.0],
    (0.0, -1.0),
)
# Several devices would start this test again in other processes, and Lightning kills a parent with its child.
DEVICES: Numbers = (0, 1, -1, True, 1.5, 2**64, np.uint8(1), np.float32(1), [-1], ["0"], *_NO_NUMBERS)
FLAG: Numbers = (True, np.bool_(True), torch.tensor(True), 1, 0, "yes", None, _META)
NAME: Numbers = (
    "auto",
    "cpu",
    "triton",
    "eager",
    "autograd",
    "cubic",
    "gumbel",
    "hard",
    "fini2",
    "sigmoid",
    "exact",
    "released",
    "bf16",
    "",
    "nothing",
    None,
    3,
    np.str_("eager"),
    ["eager"],
    torch.zeros(2),
    np.array(["eager"]),
)
NAMES: Numbers = (
    (),
    ("counts",),
    ("counts", "counts"),
    {"kl", "recon"},
    ["log_rate"],
    "counts",
    ("nothing",),
    (3,),
    3,
    None,
    np.array(["zeros"]),
    ("reconstruction", "squared_error", "spikes"),
)
SHAPE: Numbers = (
    None,
    (6,),
    (2, 3),
    [1, 2, 3],
    (0, 6),
    (1, 6),
    "6",
    6,
    (6.0,),
    torch.Size([6]),
    np.array([3, 2]),
)
MARKS: Numbers = (
    (),
    (1,),
    [2, 2],
    {1, 2},
    (0,),
    (9,),
    (-1,),
    (1.5,),
    np.array([1]),
    torch.tensor([2]),
    2,
    "2",
    None,
)
KINDS = {
    "count": COUNT,
    "devices": DEVICES,
    "word": WORD,
    "real": REAL,
    "flag": FLAG,
    "name": NAME,
    "names": NAMES,
    "shape": SHAPE,
    "marks": MARKS,
}


@dataclass(frozen=True)
class Of:
    """An argument: a value that works, and the kind of values to try in its place."""

    value: Any
    kind: str = "tensor"


def tensor(*shape: int, scale: float = 1.0, shift: float = 0.0) -> Of:
    """A fixed normal tensor."""
    generator = torch.Generator().manual_seed(math.prod(shape))
    return Of(torch.randn(shape, generator=generator) * scale + shift)


def other_tensor(value: Tensor, r: Random) -> Any:
    """A relative of a tensor: another shape, dtype, stride, device or content, or no tensor at all."""
    flat = value.clone().flatten()
    real = value.is_floating_point()
    if flat.numel() and real:
        flat[r.randrange(flat.numel())] = r.choice(
            [math.nan, math.inf, -math.inf, 1e30, -1e30, 88.0, 0.0, 1e-40]
        )
    matrix = value if value.ndim > 1 else value.reshape(1, -1)
    return r.choice(
        [
            lambda: flat.view(value.shape),
            lambda: value.to(
                r.choice([torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8])
            ),
            lambda: value.to(r.choice([torch.bool, torch.complex64, torch.int32])),
            lambda: value.to(r.choice(["meta", torch.device("cpu")])),
            lambda: value.unsqueeze(r.randrange(value.ndim + 1)),
            lambda: matrix[..., :0],
            lambda: value[:0] if value.ndim else value,
            lambda: matrix[..., :1],
            lambda: value[:1] if value.ndim else value,
            lambda: value[0] if value.ndim and len(value) else value,
            lambda: matrix.mT.contiguous().mT,
            lambda: torch.stack([value, value], -1)[..., 0],
            lambda: value.T if value.ndim == 2 else value,
            lambda: torch.cat([matrix, matrix], r.randrange(2)),
            lambda: matrix[..., :1].expand(matrix.shape),
            lambda: value.expand(2, *value.shape),
            lambda: value.clone().requires_grad_(real),
            lambda: value.to_sparse() if value.ndim else value,
            lambda: value.numpy(),
            lambda: value.double().numpy(),
            lambda: value.byte().numpy(),
            lambda: np.flip(value.numpy()),
            lambda: value.tolist(),
            lambda: value.sum(),
            lambda: torch.zeros_like(value),
            lambda: value * r.choice([0.0, 1e-30, -1.0, 10.0, 1e6, 1e30]),
            lambda: r.choice([None, "x", 3, 0.5, [], {}, object(), np.float32(1)]),
        ]
    )()


def other(argument: Of, r: Random) -> Any:
    """Another value for an argument."""
    return other_tensor(argument.value, r) if argument.kind == "tensor" else r.choice(KINDS[argument.kind])


def leaves(value: Any) -> Iterator[Any]:
    """All that is in nested results and arguments."""
    if isinstance(value, Mapping):
        value = list(value.values())
    elif is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in fields(value)]
    if isinstance(value, (tuple, list, set)):
        for part in value:
            yield from leaves(part)
    else:
        yield value


def finite(value: Any, *, or_infinite: bool = False) -> bool:
    """Whether there is no NaN and no infinity in it."""
    for leaf in leaves(value):
        if isinstance(leaf, Tensor) and not leaf.is_meta and (leaf.is_floating_point() or leaf.is_complex()):
            dense = leaf.to_dense() if leaf.layout != torch.strided else leaf
            if not bool((~dense.isnan() if or_infinite else dense.isfinite()).all()):
                return False
            continue
        number = isinstance(leaf, (float, complex, np.floating))
        if number or (isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f"):
            good = ~np.isnan(leaf) if or_infinite else np.isfinite(leaf)
            if not bool(np.all(good)):
                return False
    return True


@dataclass(frozen=True)
class Target:
    """A public function with arguments that work, and the errors it documents besides those of all."""

    call: Callable[..., Any]
    arguments: dict[str, Of]
    errors: tuple[type[Exception], ...] = ()
    share: float = 1.0  # of the calls, less than 1 for slow ones


def sweep(name: str, target: Target, calls: int) -> list[str]:
    """Random calls of a function; what went wrong, a line each."""
    r, wrong = Random(name), []
    for number in range(max(int(calls * target.share), 1)):
        names = sorted(target.arguments)
        changed = {
            key: other(target.arguments[key], r)
            for key in r.sample(names, min(len(names), r.choice([1, 1, 2, 3])))
        }
        values = {key: argument.value for key, argument in target.arguments.items()} | changed
        shown = ", ".join(f"{key}={brief(value)}" for key, value in changed.items())
        try:
            with warnings.catch_warnings(), contextlib.redirect_stderr(None):
                warnings.simplefilter("ignore")
                result = target.call(**values)
        except (*DOCUMENTED, *target.errors):
            continue
        except Exception as error:
            wrong.append(f"{number}: {name}({shown}): {type(error).__name__}: {str(error)[:200]}")
            continue
        if finite(values) and not finite(result, or_infinite=True):
            wrong.append(f"{number}: {name}({shown}): NaN from finite arguments")
    return wrong


def brief(value: Any) -> str:
    """A value in a line."""
    if isinstance(value, Tensor):
        return f"<{value.dtype} {list(value.shape)} {value.device} {value.layout}>"
    if isinstance(value, np.ndarray):
        return f"<{value.dtype} {list(value.shape)}>"
    return repr(value)[:60]


# --- the functions ---

OP = {"backend": Of("auto", "name"), "check": Of(True, "flag")}
DRAW = {"seed": Of(1, "word"), "step": Of(0, "word"), "sample_offset": Of(0, "word"), **OP}
RUN = {
    "steps": Of(2, "count"),
    "seed": Of(1, "word"),
    "n_inner": Of(1, "count"),
    "beta_inner": Of(1.0, "real"),
    "decay": Of(0.0, "real"),
    "drive": Of("paper", "name"),
    "kl": Of("exact", "name"),
    "single_draw": Of(False, "flag"),
    "sample_offset": Of(None, "word"),
    "matmul_precision": Of("float32", "name"),
    **OP,
}
ESTIMATOR = {
    "estimator": Of("cubic", "name"),
    "temperature": Of(0.1, "real"),
    "n_arrivals": Of(None, "count"),
}
POISSON = {
    "dictionary": tensor(M, K),
    "log_sigma": tensor(M, scale=0.1),
    "log_bias": tensor(K, shift=-2.0),
    "log_lr": Of(torch.tensor(-1.0)),
    "log_rate_init": tensor(K),
}
GAUSSIAN = {
    "dictionary": tensor(M, K),
    "log_sigma": tensor(M, scale=0.1),
    "log_bias": tensor(K, shift=-2.0),
    "log_lr": Of(torch.full((2,), -1.0)),
    "state_init": tensor(2, K),
    "activation": Of("identity", "name"),
}
LAW = {"sample_shape": Of(None, "count")}
CLAMPS = {"clamp_u": Of(None, "real"), "clamp_du": Of(None, "real")}
STATE = {"log_rate": tensor(B, K), "state_step": Of(0, "word")}


def rollout(run: Callable[..., Any], kind: Callable[..., Any], own: dict[str, Of]) -> Callable[..., Any]:
    """`infer` or `elbo` from loose parameters and a loose state."""

    def call(x: Any, state: Any, **options: Any) -> Any:
        params = kind(**{name: options.pop(name) for name in own})
        continued = {"state": ik.State(*state)} if isinstance(state, tuple) else {"state": state}
        return run(x, params, options.pop("steps"), **continued, **options)

    return call


def with_gradients(call: Callable[..., Any]) -> Callable[..., Any]:
    """The result of a call, and the gradients of its sum in all floating point arguments."""

    def both(**options: Any) -> Any:
        tracked = {
            name: value.detach().clone().requires_grad_()
            for name, value in options.items()
            if isinstance(value, Tensor) and value.is_floating_point() and name in ("x", "log_rate", *POISSON)
        }
        result = call(**options | tracked)
        total = sum(leaf.sum() for leaf in leaves(result) if isinstance(leaf, Tensor) and leaf.requires_grad)
        if not isinstance(total, Tensor):
            return result
        return result, torch.autograd.grad(total, list(tracked.values()), allow_unused=True)

    return both


def log_rate_update(log_bias: Any, log_lr: Any, **options: Any) -> Any:
    params = ik.PoissonParams(None, None, log_bias, log_lr, None)  # type: ignore[arg-type]
    return ik.log_rate_update(**options, params=params)


def law(kind: Any) -> Callable[..., Any]:
    """A law's samples, with what they are worth."""

    def call(sample_shape: Any, **options: Any) -> Any:
        q = kind(**options, validate_args=True)
        z = q.rsample(sample_shape)
        return z, q.sample(sample_shape), q.log_prob(z), kl_divergence(q, q)

    return call


def step(x: Any, params: Any, steps: Any, **options: Any) -> Any:
    """One of `ik.step`, whose steps are one."""
    return ik.step(x, params, **options)


def use_backend(name: Any) -> None:
    with ik.use_backend(name):
        pass


KERNELS = {
    "poisson_sample": Target(ik.poisson_sample, {"log_rate": tensor(B, K), **DRAW}),
    "poisson_rsample": Target(
        with_gradients(ik.poisson_rsample),
        {"log_rate": tensor(B, K), **DRAW, **ESTIMATOR, "upper_bound": Of(None, "count")},
        share=2.0,
    ),
    "poisson_kl": Target(
        ik.poisson_kl,  # plain PyTorch, whose gradients overflow somewhat earlier
        {
            "log_rate": tensor(B, K),
            "log_rate_prior": tensor(K),
            "kind": Of("exact", "name"),
            "check": Of(True, "flag"),
        },
    ),
    "arrivals_quantile": Target(ik.arrivals_quantile, {"rate": Of(3.0, "real"), "tail": Of(1e-3, "real")}),
    "EATPoisson": Target(
        with_gradients(law(EATPoisson)),
        {
            "log_rate": tensor(B, K),
            "temp": Of(0.1, "real"),
            "indicator_approx": Of("cubic", "name"),
            "n_exp": Of("infer", "count"),
            "n_exp_p": Of(1e-3, "real"),
            "clamp": Of(None, "real"),
            **LAW,
        },
    ),
    "GumbelSoftmaxPoisson": Target(
        with_gradients(law(GumbelSoftmaxPoisson)),
        {
            "log_rate": tensor(B, K),
            "temp": Of(0.5, "real"),
            "upperbound_method": Of("fixed", "name"),
            "upperbound_param": Of(6, "count"),
            **LAW,
        },
    ),
    "log_rate_update": Target(
        with_gradients(log_rate_update),
        {
            "log_rate": tensor(B, K),
            "log_rate_prior": tensor(B, K),
            "drive": tensor(B, K),
            **OP,
            "log_bias": tensor(K),
            "log_lr": Of(torch.tensor(-1.0)),
            "leak": Of(0.0, "real"),
            "clamp_u": Of(10.0, "real"),
            "clamp_du": Of(10.0, "real"),
        },
    ),
    "infer": Target(
        rollout(ik.infer, ik.PoissonParams, POISSON),
        {
            "x": tensor(B, M),
            **POISSON,
            **RUN,
            **CLAMPS,
            "state": Of(None, "real"),
            "record": Of(("counts",), "names"),
            "record_every": Of(1, "count"),
        },
        share=3.0,
    ),
    "step": Target(
        rollout(step, ik.PoissonParams, POISSON),  # gradients are those of the ops, each of which is here
        {
            "x": tensor(B, M),
            **POISSON,
            **{name: value for name, value in RUN.items() if name != "matmul_precision"},
            **CLAMPS,
            **ESTIMATOR,
            "state": Of(None, "real"),
        },
    ),
    "infer gaussian": Target(
        rollout(ik.infer, ik.GaussianParams, GAUSSIAN),
        {
            "x": tensor(B, M),
            **GAUSSIAN,
            **RUN,
            **CLAMPS,
            "state": Of(None, "real"),
            "record": Of((), "names"),
        },
    ),
    "elbo": Target(
        with_gradients(rollout(ik.elbo, ik.PoissonParams, POISSON)),
        {
            "x": tensor(B, M),
            **POISSON,
            **RUN,
            **CLAMPS,
            **ESTIMATOR,
            "state": Of(None, "real"),
            "beta": Of(1.0, "real"),
            "truncate": Of(None, "count"),
            "checkpoint": Of(None, "count"),
        },
        share=3.0,
    ),
    "elbo gaussian": Target(
        with_gradients(rollout(ik.elbo, ik.GaussianParams, GAUSSIAN)),
        {"x": tensor(B, M), **GAUSSIAN, **RUN, **CLAMPS, "state": Of(None, "real"), "beta": Of(1.0, "real")},
    ),
    "infer from a state": Target(
        lambda log_rate, step, seed, sample_offset, backend: ik.infer(
            tensor(B, M).value,
            ik.PoissonParams(**{name: of.value for name, of in POISSON.items()}),
            2,
            state=ik.State(log_rate, step, seed, sample_offset),
            backend=backend,
        ),
        {
            "log_rate": tensor(B, K),
            "step": Of(0, "word"),
            "seed": Of(1, "word"),
            "sample_offset": Of(0, "word"),
            "backend": Of("auto", "name"),
        },
    ),
    "use_backend": Target(use_backend, {"name": Of("auto", "name")}),
}

CONFIG = {
    "n_inputs": Of(M, "count"),
    "n_latents": Of(K, "count"),
    "input_shape": Of(None, "shape"),
    "t_train": Of(2, "count"),
    "n_inner": Of(1, "count"),
    "beta_inner": Of(1.0, "real"),
    **CLAMPS,
    "kl": Of("exact", "name"),
    "fit_prior": Of(True, "flag"),
    "init_scale": Of(0.1, "real"),
    "init_log_bias": Of(-3.0, "real"),
    "init_log_lr": Of(0.0, "real"),
    "seed": Of(0, "word"),
}
OF_POISSON = {
    **CONFIG,
    "estimator": Of("cubic", "name"),
    "n_arrivals": Of(None, "count"),
    "init_log_rate": Of((-1.0, 0.0), "real"),
}
OF_GAUSSIAN = {**CONFIG, "activation": Of("identity", "name")}
RECIPE = {
    "max_steps": Of(2, "count"),
    "epochs": Of(None, "count"),
    "batch_size": Of(2, "count"),
    "steps": Of(None, "count"),
    "truncate": Of(None, "count"),
    "betas": Of((0.9, 0.99), "real"),
    "grad_clip": Of(None, "real"),
    "seed": Of(0, "word"),
    **{
        name: Of(value, "real")
        for name, value in {
            "lr": 0.005,
            "beta_outer": 1.0,
            "beta_min": 1e-4,
            "weight_decay": 0.0,
            "lr_min": 1e-5,
            "warmup_portion": 0.0,
            "anneal_portion": 0.1,
            "const_portion": 0.0,
            "temperature_start": 1.0,
            "temperature_stop": 0.1,
            "temperature_portion": 0.5,
        }.items()
    },
}
SEEDED = {"seed": Of(1, "word"), "backend": Of("auto", "name"), "check": Of(True, "flag")}
AVERAGED = {
    "x": tensor(B, M),
    "steps": Of(3, "count"),
    "last": Of(2, "count"),
    "counts": Of(False, "flag"),
    **SEEDED,
}
LABELS = Of(torch.tensor([0, 1, 0]))
SCHEDULE = {"step": Of(1, "count"), "total": Of(4, "count")}
COUNTS = Of(torch.tensor([[0.0, 1, 2], [3, 0, 0]]))


def model(cell: str = "poisson") -> ipvae.IterativeVAE:
    family = FAMILIES[cell]
    return family(family.config_class(n_inputs=M, n_latents=K, t_train=2, init_scale=0.2))


def method(name: str, cell: str = "poisson") -> Callable[..., Any]:
    """A method of a fresh model, which nothing of an earlier call has changed."""
    return lambda **options: getattr(model(cell), name)(**options)


def evaluate(x: Any, labels: Any, train_x: Any, train_labels: Any, **options: Any) -> Any:
    found = ipvae.evaluate(model(), x, labels=labels, train=(train_x, train_labels), **options)
    return found.r2, found.nelbo, found.lifetime


def feed(feeder: Callable[..., Any]) -> Callable[..., Any]:
    return lambda start, stop, **options: feeder(**options).frames(start, stop)


FRAMES = {"start": Of(0, "count"), "stop": Of(3, "count")}
WRAPPER = {
    "IPVAEConfig": Target(lambda **o: ipvae.IPVAEConfig(**o).to_dict(), OF_POISSON, share=3.0),
    "IGVAEConfig": Target(lambda **o: ipvae.IGVAEConfig(**o).to_dict(), OF_GAUSSIAN, share=3.0),
    "TrainConfig": Target(lambda **o: ipvae.TrainConfig(**o).to_dict(), RECIPE, share=3.0),
    "build_model": Target(lambda **o: ipvae.build_model(ipvae.IPVAEConfig(**o)).state_dict(), OF_POISSON),
    "released_recipe": Target(
        ipvae.released_recipe,
        {"name": Of("mnist", "name"), "cell": Of("poisson", "name"), "activation": Of("identity", "name")},
    ),
    "forward": Target(
        method("forward"),
        {
            "x": tensor(B, M),
            "steps": Of(2, "count"),
            "beta": Of(1.0, "real"),
            "temperature": Of(None, "real"),
            "estimator": Of(None, "name"),
            "truncate": Of(None, "count"),
            "state": Of(None, "real"),
            "sample_offset": Of(None, "word"),
            **SEEDED,
        },
    ),
    "IPVAE.infer": Target(
        method("infer"),
        {
            "x": tensor(B, M),
            "steps": Of(2, "count"),
            "record": Of((), "names"),
            "record_every": Of(1, "count"),
            "state": Of(None, "real"),
            "single_draw": Of(False, "flag"),
            "sample_offset": Of(0, "word"),
            **SEEDED,
        },
    ),
    "encode": Target(method("encode"), AVERAGED),
    "IGVAE.encode": Target(method("encode", "gaussian"), AVERAGED),
    "reconstruct": Target(method("reconstruct"), AVERAGED),
    "generate": Target(
        method("generate"), {"n": Of(2, "count"), "seed": Of(1, "word"), "pixel_noise": Of(False, "flag")}
    ),
    "decode": Target(method("decode"), {"latents": tensor(B, K)}),
    "rates": Target(method("rates"), {"log_rate": tensor(B, K)}),
    "IGVAE.rates": Target(method("rates", "gaussian"), {"log_rate": tensor(2, B, K)}),
    "flatten": Target(method("flatten"), {"x": tensor(B, M)}),
    "evaluate": Target(
        evaluate,
        {
            "x": tensor(B, M),
            "labels": LABELS,
            "train_x": tensor(B, M),
            "train_labels": LABELS,
            "steps": Of(3, "count"),
            "batch_size": Of(2, "count"),
            "marks": Of(None, "marks"),
            **SEEDED,
        },
        share=0.5,
    ),
    "latents_at": Target(
        lambda **o: evaluation.latents_at(model(), **o),
        {"x": tensor(B, M), "marks": Of((1, 2), "marks"), "batch_size": Of(2, "count"), **SEEDED},
    ),
    "SequenceFeeder": Target(feed(SequenceFeeder), {"sequence": tensor(4, B, M), **FRAMES}, (IndexError,)),
    "RotationFeeder": Target(
        feed(RotationFeeder),
        {
            "images": tensor(B, 1, 4, 4),
            "degrees_per_step": Of(8.0, "real"),
            "start_degrees": Of(0.0, "real"),
            **FRAMES,
        },
        (IndexError,),
    ),
    "JitterFeeder": Target(
        feed(JitterFeeder),
        {
            "images": tensor(B, 1, 4, 4),
            "diffusion": Of(0.6, "real"),
            "harmonic": Of(0.1, "real"),
            "window": Of(None, "shape"),
            "seed": Of(0, "word"),
            "sample_offset": Of(0, "word"),
            **FRAMES,
        },
        (IndexError,),
        share=0.4,
    ),
    "DataSplits": Target(
        lambda **o: DataSplits(**o, name="x").images("train"),
        {
            "train": tensor(B, M),
            "validation": tensor(0, M),
            "test": tensor(1, M),
            "shape": Of((1, 2, 3), "shape"),
        },
    ),
    "load_dataset": Target(
        lambda name, seed, data_dir, **o: load_dataset(name, seed=seed, data_dir=data_dir, **o).train[:1],
        {"name": Of("digits", "name"), "seed": Of(0, "word"), "data_dir": Of(None, "name")},
        (OSError,),
        share=0.1,
    ),
    "whiten": Target(whiten, {"image": tensor(8, 9), "f0": Of(0.8, "real")}),
    "lifetime_sparsity": Target(metrics.lifetime_sparsity, {"counts": COUNTS}),
    "population_sparsity": Target(metrics.population_sparsity, {"counts": COUNTS}),
    "zeros_fraction": Target(metrics.zeros_fraction, {"counts": COUNTS}),
    "r2": Target(metrics.r2, {"x": tensor(B, M), "reconstruction": tensor(B, M)}),
    "total_variation": Target(metrics.total_variation, {"x": tensor(B, M)}),
    "temperature": Target(schedules.temperature, {**SCHEDULE, "portion": Of(0.5, "real")}),
    "beta": Target(schedules.beta, {**SCHEDULE, "final": Of(2.0, "real"), "low": Of(0.1, "real")}),
    "learning_rate": Target(schedules.learning_rate, {**SCHEDULE, "peak": Of(0.1, "real")}),
}


CURVE = Of(torch.linspace(0.1, 0.9, 5))
CURVES = {
    "loss": np.ones(3),
    "step": np.arange(3.0),
    "recon": np.ones(3),
    "beta": np.ones(3),
    "kl": np.ones(3),
}
TITLE = {"title": Of("x", "name")}


def drawn(figure: Callable[..., Any]) -> Callable[..., None]:
    """A figure, drawn to the end."""

    def call(**options: Any) -> None:
        shown = figure(**options)
        shown.canvas.draw()
        plt.close(shown)

    return call


FIGURES = {
    "features": Target(
        drawn(plots.features),
        {
            "dictionary": tensor(M, K),
            "shape": Of((1, 2, 3), "shape"),
            "use": tensor(K),
            "limit": Of(None, "count"),
            "columns": Of(None, "count"),
            **TITLE,
        },
    ),
    "convergence": Target(
        drawn(plots.convergence), {"r2": CURVE, "zeros": CURVE, "trained_steps": Of(None, "count"), **TITLE}
    ),
    "raster": Target(
        drawn(plots.raster),
        {
            "counts": Of(torch.ones(4, K)),
            "first_step": Of(1, "count"),
            "sort": Of(True, "flag"),
            "limit": Of(3, "count"),
            **TITLE,
        },
    ),
    "reconstructions": Target(
        drawn(plots.reconstructions),
        {
            "x": tensor(B, M),
            "reconstruction": tensor(B, M),
            "shape": Of((1, 2, 3), "shape"),
            "limit": Of(2, "count"),
            **TITLE,
        },
    ),
    "training_curves": Target(
        drawn(lambda loss, **o: plots.training_curves({**CURVES, "loss": loss}, **o)),
        {"loss": Of(torch.ones(3)), **TITLE},
    ),
}
PATHS: Numbers = (
    "",
    "nothing",
    ".",
    Path("nothing"),
    b"nothing",
    "a\0b",
    3,
    None,
    [],
    object(),
    np.array(["a"]),
)
KINDS["path"] = PATHS
FILES = {
    "load_model": Target(ipvae.load_model, {"path": Of("nothing", "path")}, (OSError, ipvae.CheckpointError)),
    "from_pretrained": Target(
        ipvae.IPVAE.from_pretrained, {"folder": Of("nothing", "path")}, (OSError, ipvae.CheckpointError)
    ),
    "from_released": Target(
        ipvae.IPVAE.from_released,
        {"path": Of("nothing", "path"), "settings": Of(None, "path"), "config": Of(None, "name")},
        (OSError, ipvae.CheckpointError),
    ),
    "save_pretrained": Target(
        lambda folder: model().save_pretrained(folder), {"folder": Of("model", "path")}, (OSError,)
    ),
    "read_history": Target(ipvae.read_history, {"out_dir": Of("nothing", "path")}, (OSError,)),
    "load_whole": Target(load_whole, {"name": Of("nothing", "path"), "seed": Of(0, "word")}, (OSError,)),
    "photo_patches": Target(
        photo_patches,
        {"folder": Of("nothing", "path"), "size": Of(8, "count"), "seed": Of(0, "word")},
        (OSError,),
    ),
}
NUMBERS = {
    "eps": Target(
        schedules.eps, {**SCHEDULE, "anneal_portion": Of(0.1, "real"), "const_portion": Of(0.1, "real")}
    ),
    "warming_up": Target(schedules.warming_up, {**SCHEDULE, "portion": Of(0.5, "real")}),
    "opened": Target(opened, {"final": Of(6.0, "real"), "eps": Of(0.5, "real"), "init": Of(2.0, "real")}),
    "squared_error": Target(metrics.squared_error, {"x": tensor(B, M), "reconstruction": tensor(B, M)}),
    "explained_variance": Target(
        metrics.explained_variance,
        {"x": tensor(B, M), "latents": tensor(B, K), "dictionary": tensor(M, K)},
    ),
    "steps_to": Target(
        metrics.steps_to, {"curve": Of(torch.linspace(0, 1, 5).numpy(), "real"), "fraction": Of(0.9, "real")}
    ),
    "linear_readout": Target(
        evaluation.linear_readout,
        {
            "train_x": tensor(6, K),
            "train_y": Of(torch.tensor([0, 1, 0, 1, 0, 1])),
            "x": tensor(3, K),
            "y": LABELS,
            "C": Of(1.0, "real"),
            "max_iter": Of(5, "count"),
        },
    ),
    "random_split": Target(
        lambda n, share, seed: random_split(n, {"train": share, "test": 1.0}, seed),
        {"n": Of(10, "count"), "share": Of(0.5, "real"), "seed": Of(0, "word")},
    ),
    "paper_recipe": Target(
        recipes.paper_recipe,
        {
            "data": Of("mnist", "name"),
            "shape": Of((1, 2, 3), "shape"),
            "cell": Of("poisson", "name"),
            "activation": Of("identity", "name"),
        },
    ),
    "self_test": Target(
        lambda device: ik.self_test(device), {"device": Of("cpu", "path")}, (RuntimeError,), 0.02
    ),
}


@pytest.fixture
def calls(request: pytest.FixtureRequest) -> Iterator[int]:
    """Random calls of each function; on one thread, since the tensors are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield request.config.getoption("--calls")
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name: str, calls: int) -> None:
    assert not sweep(name, KERNELS[name], calls)


@pytest.mark.parametrize("name", WRAPPER)
def test_wrapper(name: str, calls: int) -> None:
    assert not sweep(name, WRAPPER[name], calls)


@pytest.mark.parametrize("name", FIGURES)
def test_figures(name: str, calls: int) -> None:
    assert not sweep(name, FIGURES[name], calls // 4)


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, calls: int) -> None:
    assert not sweep(name, FILES[name], calls)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name: str, calls: int) -> None:
    assert not sweep(name, NUMBERS[name], calls)


TRAINED = {
    "splits": tensor(B, M),
    "resume": Of(None, "flag"),
    "logger": Of(None, "name"),
    "log_every": Of(1, "count"),
    "validate_every": Of(None, "count"),
    "checkpoint_every": Of(None, "count"),
    "validation_samples": Of(2, "count"),
    "backend": Of("auto", "name"),
    "devices": Of(1, "devices"),
}


def test_training(tmp_path: Path, calls: int) -> None:
    folders = iter(range(10**9))

    def train(splits: Any, **options: Any) -> Any:
        config = ipvae.TrainConfig(max_steps=2, batch_size=2)
        folder = tmp_path / str(next(folders))
        return ipvae.train(model(), splits, config, folder, progress=False, **options).model.state_dict()

    target = Target(train, TRAINED, (OSError, ipvae.CheckpointError, ipvae.TrainingError), share=0.25)
    assert not sweep("train", target, calls)

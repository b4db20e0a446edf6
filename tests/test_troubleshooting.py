"""Every message that docs/troubleshooting.md shows is what the package says today."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from ipvae import IPVAE, IPVAEConfig, TrainConfig, train

import ipvae_kernels as ik
from ipvae_kernels.backend import choice, compiled, cuda, triton

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
BLOCKS = [" ".join(block.split()) for block in re.findall(r"(?:^    \S.*\n)+", PAGE, flags=re.MULTILINE)]
BUILD = "ipvae_kernels needs a C++17 compiler, and CMake finds none that works. ..."

X = torch.zeros(3, 8)


def _params(neurons: int = 8, dtype: torch.dtype = torch.float32) -> ik.PoissonParams:
    zeros = torch.zeros(neurons, dtype=dtype)
    dictionary = torch.full((8, neurons), 0.1, dtype=dtype)
    return ik.PoissonParams(dictionary, torch.zeros(8, dtype=dtype), zeros, zeros[0], zeros)


def without_cuda(folder: Path) -> None:
    built = SimpleNamespace(reason=lambda: None, load=lambda: SimpleNamespace(cuda=None))
    with mock.patch.object(cuda, "compiled", built):
        ik.infer(X, _params(), 1, backend="cuda")


@contextmanager
def _checkout(folder: Path) -> Iterator[None]:
    """A checkout with sources that were never built."""
    (folder / "csrc").mkdir()
    (folder / "CMakeLists.txt").touch()
    compiled.find.cache_clear()
    try:
        with (
            mock.patch.multiple(compiled, CHECKOUT=folder, PACKAGE=folder),
            mock.patch.object(compiled, "is_installed", return_value=False),
        ):
            yield
    finally:
        compiled.find.cache_clear()


def without_module(folder: Path) -> None:
    missing = ModuleNotFoundError("No module named 'ipvae_kernels._C'")
    with _checkout(folder), mock.patch.object(importlib, "import_module", side_effect=missing):
        ik.infer(X, _params(), 1, backend="cpu")


def with_an_older_module(folder: Path) -> None:
    with _checkout(folder):
        ik.infer(X, _params(), 1, backend="cpu")


def without_a_package(folder: Path) -> None:
    hidden = {name: None for name in ("pyarrow", "pyarrow.parquet")}
    with mock.patch.dict(sys.modules, hidden):
        for name in [name for name in sys.modules if name.startswith("ipvae.records")]:
            del sys.modules[name]
        importlib.import_module("ipvae.records.writer")


def in_float64(folder: Path) -> None:
    choice.forget_warnings()
    ik.infer(X.double(), _params(dtype=torch.float64), 1)


def without_a_gpu(folder: Path) -> None:
    with (
        mock.patch.object(torch.cuda, "is_available", return_value=False),
        mock.patch.object(triton, "missing", return_value=None),
        mock.patch.object(triton, "interpreted", return_value=False),
    ):
        ik.infer(X, _params(), 1, backend="triton")


def without_a_c_compiler(folder: Path) -> None:
    driver = SimpleNamespace(active=SimpleNamespace(get_current_device=mock.Mock(side_effect=OSError("gcc"))))
    runtime = SimpleNamespace(driver=driver)
    with (
        mock.patch.object(torch.cuda, "is_available", return_value=True),
        mock.patch.object(shutil, "which", return_value=None),
        mock.patch.object(triton, "missing", return_value=None),
        mock.patch.object(triton, "interpreted", return_value=False),
        mock.patch.dict("os.environ"),
        mock.patch.dict(sys.modules, {"triton": SimpleNamespace(runtime=runtime), "triton.runtime": runtime}),
    ):
        os.environ.pop("CC", None)
        triton.no_driver.cache_clear()
        reason = triton.reason()
    triton.no_driver.cache_clear()
    raise AssertionError(reason)


def twice(folder: Path) -> None:
    params = _params()
    assert params.dictionary is not None
    params.dictionary.requires_grad_()
    result = ik.elbo(X, params, 2)
    result.loss.backward()
    ik.elbo(X, params, 2, state=result.state).loss.backward()


def far_from_unit_scale(folder: Path) -> None:
    params = _params()
    assert params.dictionary is not None
    params.dictionary.fill_(1e30)
    ik.elbo(X + 1, params, 4)


def changed(folder: Path) -> None:
    params = _params()
    ready = ik.prepare(params)
    assert params.dictionary is not None
    params.dictionary.add_(1)
    ik.infer(X, ready, 1)


def _train(folder: Path, x: torch.Tensor, **options: float) -> None:
    model = IPVAE(IPVAEConfig(n_inputs=8, n_latents=4, t_train=2))
    train(model, x, TrainConfig(max_steps=1, batch_size=4, **options), folder, progress=False, logger=None)


def again(folder: Path) -> None:
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    _train(folder, torch.rand(8, 8))


PROVOKED: dict[str, Callable[[Path], object]] = {
    "without_cuda": without_cuda,
    "without_module": without_module,
    "with_an_older_module": with_an_older_module,
    "without_a_package": without_a_package,
    "in_float64": in_float64,
    "without_a_gpu": without_a_gpu,
    "without_a_c_compiler": without_a_c_compiler,
    "records": lambda _: ik.infer(torch.zeros(4, 8), _params(131072), 10**6, record=("counts",)),
    "twice": twice,
    "nan": lambda _: ik.infer(X * torch.nan, _params(), 1),
    "far_from_unit_scale": far_from_unit_scale,
    "pixels": lambda folder: _train(folder, torch.arange(64.0).view(8, 8) * 255 / 63),
    "large_log_rate": lambda _: ik.poisson_sample(torch.full((2,), 100.0)),
    "silent": lambda folder: _train(folder, torch.rand(8, 8), beta_outer=1e3),
    "vmap": lambda _: torch.vmap(lambda u: ik.poisson_sample(u, seed=0))(X),
    "changed": changed,
    "again": again,
}


def _said(provoke: Callable[[Path], object], folder: Path) -> str:
    """The error, or else the warning."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            provoke(folder)
        except AssertionError as error:
            return str(error)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    own = [w for w in warned if w.category.__module__.startswith("ipvae")]
    return f"{own[0].category.__name__}: {own[0].message}"


def _shown(block: str, message: str) -> bool:
    pattern = ".*".join(re.escape(part.strip()) for part in block.split("..."))
    return re.fullmatch(pattern, " ".join(message.split())) is not None


def test_every_message_is_provoked(tmp_path: Path) -> None:
    left = [block for block in BLOCKS if block != BUILD]
    for name, provoke in PROVOKED.items():
        (tmp_path / name).mkdir()
        message = _said(provoke, tmp_path / name)
        found = [block for block in left if _shown(block, message)]
        assert len(found) == 1, f"{name}: the page does not show {message!r}"
        left.remove(found[0])
    assert not left, f"nothing says {left}"


def test_what_the_build_says_is_in_its_source() -> None:
    assert BUILD in BLOCKS
    assert BUILD.removesuffix(" ...") in (ROOT / "CMakeLists.txt").read_text()

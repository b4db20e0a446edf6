"""What is installed is what the repository says: version, files, types, entry point."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path

import pytest

import ipvae_kernels
from ipvae_kernels.backend import compiled

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text()
FOLDERS = {"ipvae_kernels": "ipvae_kernels", "ipvae": "python/ipvae", "ipvae_bench": "bench"}


@pytest.fixture(scope="module")
def distribution() -> metadata.Distribution:
    # Building leaves an .egg-info in the checkout, which Python started there finds too, without a RECORD.
    for found in metadata.distributions(name="ipvae-kernels"):
        if found.read_text("RECORD"):
            return found
    pytest.skip("ipvae-kernels is not installed, only on the path")


@pytest.fixture(scope="module")
def in_place(distribution: metadata.Distribution) -> bool:
    """Whether the packages are those of this checkout (``pip install -e``), and not copies."""
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    return bool(origin.get("dir_info", {}).get("editable"))


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return _run(folder, environment, *arguments)


def run_bare_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the installed packages, but those that are installed in place."""
    packages = os.pathsep.join(path for path in sys.path if path.endswith("-packages"))
    return _run(folder, {**os.environ, "PYTHONPATH": packages}, "-S", *arguments)


def _run(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_one_version(distribution: metadata.Distribution) -> None:
    (stated,) = re.findall(r'^version = "(.+)"$', PYPROJECT, flags=re.MULTILINE)
    assert distribution.version == stated
    assert f"## {stated}" in (ROOT / "CHANGELOG.md").read_text()
    assert f'version: "{stated}"' in (ROOT / "CITATION.cff").read_text()


def test_links_of_the_readme_lead_somewhere(distribution: metadata.Distribution) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / "README.md").read_text())
    relative = [link for link in links if "://" not in link]
    assert relative
    for link in relative:
        assert (ROOT / link).exists(), link
    # What a package index shows has no relative link, and leads to the repository that the metadata names.
    urls = dict(url.split(", ") for url in distribution.metadata.get_all("Project-URL") or ())
    repository = urls["Repository"]
    shown_links = re.findall(r"\]\(([^)#]+)[^)]*\)", str(distribution.metadata.get_payload()))
    assert shown_links == [link if "://" in link else f"{repository}/blob/main/{link}" for link in links]


def test_links_of_the_documentation_lead_somewhere() -> None:
    pages = [ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    assert len(pages) > 10
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            made = link.startswith("_generated/")  # by `make docs`, which looks at all links of the site
            assert "://" in link or made or (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_repository_has_one_address() -> None:
    (table,) = re.findall(r"^\[project\.urls\]\n((?:\w+ = .+\n)+)", PYPROJECT, re.MULTILINE)
    urls = dict(re.findall(r'^(\w+) = "(.+)"$', table, re.MULTILINE))
    repository = urls.pop("Repository")
    assert f'repository-code: "{repository}"' in (ROOT / "CITATION.cff").read_text()
    assert all(url.startswith(f"{repository}/") for name, url in urls.items() if name != "Paper")


def test_every_source_file_is_installed(distribution: metadata.Distribution, in_place: bool) -> None:
    installed = {str(path) for path in distribution.files or ()}
    for package, folder in FOLDERS.items():
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        if in_place:
            assert Path(spec.origin).parent == ROOT / folder
            continue
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".pyi") or path.name == "py.typed":
                assert str(Path(package) / path.relative_to(ROOT / folder)) in installed


def test_the_compiled_module_is_installed() -> None:
    from ipvae_kernels import _C

    assert _C.__file__ is not None
    assert Path(_C.__file__).parent == Path(ipvae_kernels.__file__).parent
    assert ipvae_kernels.backends()["cpu"] == "available"


def test_python_in_the_checkout_has_the_compiled_module(in_place: bool) -> None:
    if not in_place:
        pytest.skip("in this checkout Python imports sources that were not installed in place")
    done = run_python(ROOT, "-m", "ipvae_kernels")
    assert re.search(r"^backend cpu +available$", done.stdout, re.MULTILINE), done


def checkout(folder: Path) -> Path:
    """A folder like a checkout, with the package of ops but without its compiled module."""
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    shutil.copy(ROOT / "CMakeLists.txt", folder)
    unwanted = shutil.ignore_patterns("__pycache__", "_C.*.so")
    shutil.copytree(ROOT / "ipvae_kernels", folder / "ipvae_kernels", ignore=unwanted)
    return folder


def test_without_the_compiled_module_a_user_is_warned_once(tmp_path: Path) -> None:
    script = checkout(tmp_path) / "script.py"
    lines = "import torch, ipvae_kernels as ik", "u = torch.zeros(2, 3)", "ik.poisson_sample(u, seed=1)"
    script.write_text("\n".join(2 * lines))
    done = run_bare_python(tmp_path, script.name)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "Warning" in line]
    assert line.startswith(f"{script}:3: BackendWarning: backend 'eager' serves where 'cpu' cannot: ")
    assert "the compiled module is missing" in line
    assert f"build it with 'python -m pip install -e .' in {tmp_path}" in line


def test_a_compiled_module_older_than_the_sources_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "CHECKOUT", checkout(tmp_path))
    assert compiled.find.__wrapped__()[1] is None
    with (tmp_path / "csrc" / "structs.h").open("a") as file:
        file.write("// changed\n")
    module, reason = compiled.find.__wrapped__()
    assert module is None
    assert reason is not None
    assert "older than the C++ sources beside it; build it with 'python -m pip install -e .'" in reason


def test_the_advice_names_what_lies_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "CHECKOUT", tmp_path)
    monkeypatch.setattr(compiled, "PACKAGE", tmp_path)
    assert "'python -m pip install .' in a checkout of the repository" in compiled.how_to_get_it()
    (tmp_path / "csrc").mkdir()
    for name in ("CMakeLists.txt", "_C.cpython-39-x86_64-linux-gnu.so"):
        (tmp_path / name).touch()
    monkeypatch.setattr(compiled, "is_installed", lambda: False)
    assert compiled.how_to_get_it().endswith("by this Python (_C.cpython-39-x86_64-linux-gnu.so lies there)")
    monkeypatch.setattr(compiled, "is_installed", lambda: True)
    assert "or start Python in another folder: the package is installed" in compiled.how_to_get_it()


def test_lowest_versions_are_read_from_what_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    environments = importlib.import_module("environments")
    lowest = dict(line.split("==") for line in environments.lowest())
    declared = {
        re.split(r"[\s><=;\[]", line)[0]
        for line in metadata.requires("ipvae-kernels") or ()
        if ";" not in line or 'extra == "train"' in line
    }
    assert set(lowest) == declared
    assert lowest["torch"] == "2.9"
    assert all((ROOT / test.partition("::")[0]).exists() for test in environments.CORE + environments.WRAPPER)


def test_make_builds_again_for_what_is_compiled_alone(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    stamp = tmp_path / ".installed"
    stamp.touch()
    for changed, status in {"ipvae_kernels/params.py": 0, "csrc/args.h": 1, "pyproject.toml": 1}.items():
        command = ["make", "-q", "-C", str(ROOT), f"VENV={tmp_path}", "-W", changed, str(stamp)]
        assert subprocess.run(command, capture_output=True, check=False).returncode == status, changed


def test_make_shows_what_is_compiled_and_the_end_of_a_failure(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    said = ["-- ipvae_kernels: $CMAKE_ARGS $CUDAARCHS", "  [3/9] Building CUDA object a.cu.o", "  chatter"]
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    for status in (0, 1):
        python.write_text("\n".join(["#!/bin/sh", *(f'echo "{line}"' for line in said), f"exit {status}"]))
        python.chmod(0o755)
        settings = (f"VENV={tmp_path}", "CUDA=OFF", "CUDAARCHS=90")
        command = ["make", "-s", "-C", str(ROOT), *settings, str(tmp_path / ".installed")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        lines = [line.strip() for line in done.stdout.splitlines()]
        assert re.match(r"-- ipvae_kernels: .*-DIPVAE_CUDA=OFF 90$", lines[1]), done
        assert lines[2] == "[3/9] Building CUDA object a.cu.o"
        assert (done.returncode == 0, "chatter" in lines) == ((True, False) if status == 0 else (False, True))
        (tmp_path / ".installed").unlink(missing_ok=True)


def test_without_a_compiler_the_error_says_what_to_install(tmp_path: Path) -> None:
    cmake = Path(pytest.importorskip("cmake").CMAKE_BIN_DIR) / "cmake"
    command = [str(cmake), "-S", str(ROOT), "-B", str(tmp_path)]
    environment = os.environ | {"CXX": "/nonexistent/g++"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    message = " ".join(done.stderr.split())
    assert done.returncode != 0
    assert "needs a C++17 compiler, and CMake finds none that works. Install GCC or Clang" in message
    assert "'apt install g++'" in message
    assert "(now: '/nonexistent/g++')" in message


def test_the_source_distribution_holds_what_is_tracked(tmp_path: Path) -> None:
    pytest.importorskip("scikit_build_core")
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("this is no checkout of git, which knows what belongs to the repository")
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True)
    tracked = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    setup = ("setup.py", "-q", "egg_info", "--egg-base", str(tmp_path), "sdist", "-d", str(tmp_path))
    done = run_python(ROOT, *setup)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked - packed == {".ci/run", ".gitignore"}, done.stderr


def test_entry_point(distribution: metadata.Distribution) -> None:
    entries = {entry.name: entry for entry in distribution.entry_points}
    assert set(entries) == {"ipvae", "bench"}
    pytest.importorskip("typer")  # the ops alone are installed without it
    assert all(callable(entry.load()) for entry in entries.values())


def test_the_stub_names_what_the_compiled_module_has() -> None:
    from ipvae_kernels import _C

    stub = (ROOT / "ipvae_kernels" / "_C.pyi").read_text()
    names = {
        *re.findall(r"^(?:def|class) (\w+)", stub, re.MULTILINE),
        *re.findall(r"^(\w+):", stub, re.MULTILINE),
    }
    assert names == {name for name in dir(_C) if not name.startswith("_")}
    for name, body in re.findall(r"^class (\w+):\n((?:    .+\n)+)", stub, re.MULTILINE):
        fields = set(re.findall(r"^    (\w+):", body, re.MULTILINE))
        assert fields == {field for field in dir(getattr(_C, name)) if not field.startswith("_")}


def test_the_compiled_module_includes_no_torch() -> None:
    for path in (ROOT / "csrc").rglob("*"):
        assert path.is_dir() or "#include <torch" not in path.read_text()
        assert path.is_dir() or "#include <ATen" not in path.read_text()

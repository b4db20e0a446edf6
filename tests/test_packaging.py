"""What is installed is what the repository says: version, files, types, entry point."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest

import ipvae_kernels

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text()


@pytest.fixture(scope="module")
def distribution() -> metadata.Distribution:
    try:
        return metadata.distribution("ipvae-kernels")
    except metadata.PackageNotFoundError:
        pytest.skip("ipvae-kernels is not installed, only on the path")


def test_one_version(distribution: metadata.Distribution) -> None:
    (stated,) = re.findall(r'^version = "(.+)"$', PYPROJECT, flags=re.MULTILINE)
    assert distribution.version == stated
    assert f"## {stated}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_source_file_is_installed(distribution: metadata.Distribution) -> None:
    installed = {str(path) for path in distribution.files or ()}
    folders = {"ipvae_kernels": "ipvae_kernels", "ipvae": "python/ipvae", "ipvae_bench": "bench"}
    for package, folder in folders.items():
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".pyi") or path.name == "py.typed":
                assert str(Path(package) / path.relative_to(ROOT / folder)) in installed


def test_the_compiled_module_is_installed(distribution: metadata.Distribution) -> None:
    assert any(
        re.fullmatch(r"ipvae_kernels/_C\..*\.(so|pyd)", str(path)) for path in distribution.files or ()
    )
    assert ipvae_kernels.backends()["native"] == "available"


def test_entry_point(distribution: metadata.Distribution) -> None:
    entries = {entry.name: entry for entry in distribution.entry_points}
    assert set(entries) == {"ipvae", "bench"}
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

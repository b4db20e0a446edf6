"""Sphinx configuration; ``make docs`` builds the site.

The source folder is the repository's root, so that README.md, CHANGELOG.md, the pages of docs and the tables of
bench/results are pages of the site where they lie, with the links that a code host follows too.
"""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
# Warnings that a tutorial or an import gives are not the reader's business, and differ by machine.
warnings.filterwarnings("ignore", category=UserWarning, module="torch|lightning")

project = "ipvae-kernels"
author = "the ipvae-kernels authors"
version = release = metadata.version("ipvae-kernels")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.typer",
]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**", "bench/results/**.md", "tests/**/README.md"]
exclude_patterns = [".*", "**/_build", "build", "dist", "docs/_templates", "docs/tutorials", "docs/gallery"]
templates_path = [str(Path(__file__).parent / "_templates")]  # autosummary looks from the source folder

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_root"]  # index.html, which leads from the root of the site to docs/index.html
html_copy_source = False
pygments_style, pygments_dark_style = "friendly", "github-dark"

myst_enable_extensions = ["dollarmath", "smartquotes"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

default_role = "code"  # `name` in a docstring
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
autoclass_content = "class"
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 100
copybutton_exclude = ".linenos, .gp, .go"

# Names that no page of this site describes: those of other packages, whose indices every build would have to download,
# and aliases of types, which the pages spell out where they matter.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|numpy|lightning|sklearn|scipy|pandas|matplotlib|np|nn|pynapple|typer)(\..*)?"),
    (r"py:.*", r"(collections|pathlib|typing|enum|os|dataclasses|types|datetime|abc)\..*"),
]
nitpick_ignore = [("py:class", name) for name in ("optional", "PathLike", "Frames", "Inputs", "ipvae.training.inputs.Splits")]
nitpick_ignore += [("py:class", "Path"), ("py:class", "Tensor"), ("py:exc", "NotFittedError")]
nitpick_ignore += [("py:class", "ipvae.models.base.VAE"), ("py:class", "ipvae_kernels.distributions.base.PoissonLaw")]

sphinx_gallery_conf = {
    "examples_dirs": ["docs/tutorials", "docs/gallery"],
    "gallery_dirs": ["docs/_generated/tutorials", "docs/_generated/gallery"],
    "filename_pattern": r"\.py$",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "remove_config_comments": True,
    "abort_on_example_error": True,
    "within_subsection_order": "FileNameSortKey",
    "min_reported_time": 0,
}

PACKAGES = (
    "ipvae_kernels", "ipvae_kernels.distributions", "ipvae", "ipvae.data", "ipvae.records", "ipvae.plots",
    "ipvae.evaluation.metrics", "ipvae.interop.released", "ipvae.extras",
)  # fmt: skip


def _public_names() -> dict[str, str]:
    """Names of objects, as docstrings and annotations write them -> where users import them, and find them."""
    names: dict[str, str] = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", vars(module)):
            thing = getattr(module, name)
            home, qualified = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
            names.setdefault(f"{home}.{qualified}", f"{package}.{name}")
            names.setdefault(name, f"{package}.{name}")
    return names


def _link_to_public(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Resolves a reference to an object's home, as annotations make it, to its public name."""
    public = env.config.public_names.get(node.get("reftarget"))
    if node.get("refdomain") != "py" or public is None:
        return None
    return env.get_domain("py").resolve_xref(env, node["refdoc"], app.builder, "obj", public, node, content)


def _leave_out(app: Any, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out what classes inherit from other packages, and fields that the docstring of a tuple describes."""
    function = inspect.unwrap(getattr(thing, "fget", None) or getattr(thing, "__func__", thing))
    home = getattr(function, "__module__", None) or "ipvae"
    return True if not home.startswith("ipvae") or type(thing).__name__ == "_tuplegetter" else None


def _link_to_scripts(app: Any, docname: str, source: list[str]) -> None:
    """Links to a script of the tutorials or the gallery lead to its page."""
    source[0] = re.sub(r"\]\(((?:\.\./)*)(tutorials|gallery)/(\w+)\.py\)", r"](\1_generated/\2/\3.rst)", source[0])


def setup(app: Any) -> None:
    """Registers what stands above."""
    app.add_config_value("public_names", _public_names(), "env")
    app.connect("missing-reference", _link_to_public)
    app.connect("autodoc-skip-member", _leave_out)
    app.connect("source-read", _link_to_scripts)

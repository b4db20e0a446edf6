"""What this site needs besides the extensions of conf.py: links, menus and figures."""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

PACKAGES = (
    "ipvae_kernels", "ipvae_kernels.distributions", "ipvae", "ipvae.data", "ipvae.records", "ipvae.plots",
    "ipvae.evaluation.metrics", "ipvae.interop.released", "ipvae.interop.lca",
    "ipvae.interop.hub", "ipvae.extras",
)  # fmt: skip
# Pages that list others, which the menu shows below them: what links to such pages look like; and where
# pages lie that are shown without a link.
LISTS = {
    "docs/ops/README": r"[\w-]+\.md",
    "docs/design/README": r"[\w-]+\.md",
    "docs/measurements": r"[\w./-]+\.md",
}
UNLISTED = {"docs/measurements": "../bench/results"}


def public_names() -> dict[str, str]:
    """Names of objects as docstrings and annotations write them -> where users import and find them."""
    names: dict[str, str] = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", vars(module)):
            thing = getattr(module, name)
            home, qualified = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
            names.setdefault(f"{home}.{qualified}", f"{package}.{name}")
            names.setdefault(name, f"{package}.{name}")
    return names


def link_to_public(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Resolves a reference to an object's home, as annotations make it, to its public name."""
    public = env.config.public_names.get(node.get("reftarget"))
    if node.get("refdomain") != "py" or public is None:
        return None
    return env.get_domain("py").resolve_xref(env, node["refdoc"], app.builder, "obj", public, node, content)


def leave_out(app: Any, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out what other packages' classes hand down, and fields that a tuple's docstring describes."""
    function = inspect.unwrap(getattr(thing, "fget", None) or getattr(thing, "__func__", thing))
    home = getattr(function, "__module__", None) or "ipvae"
    return True if not home.startswith("ipvae") or type(thing).__name__ == "_tuplegetter" else None


def menu(pages: Iterable[str], caption: str = "") -> str:
    """An entry of the menu for each page, as MyST has it."""
    options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
    return "\n".join(["\n```{toctree}", *options, "", *pages, "```", ""])


def read_source(app: Any, docname: str, source: list[str]) -> None:
    """Has links to scripts lead to their pages, and puts listed pages into the menu."""
    text = re.sub(r"\]\(((?:\.\./)*)(tutorials|gallery)/(\w+)\.py\)", r"](\1_generated/\2/\3.rst)", source[0])
    if docname in LISTS:
        listed = dict.fromkeys(re.findall(rf"\]\(({LISTS[docname]})\)", text))
        folder = Path(app.srcdir, docname).parent
        others = (folder / UNLISTED[docname]).rglob("*.md") if docname in UNLISTED else ()
        listed |= dict.fromkeys(os.path.relpath(page, folder) for page in sorted(others))
        text += menu(listed)
    if docname == "docs/index":
        pages = (page.stem for page in sorted(Path(app.srcdir, "docs").glob("*.md")))
        text += menu([page for page in pages if page != "index" and f"\n{page}\n" not in text], "Further")
    source[0] = text


def prepare_docstring(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Habits of ours that are markup to napoleon or docutils.

    The name of an attribute that ends in an underscore would be a link, "B." alone a list from B on; and in
    the text of "Returns:" and of a property napoleon expects a type before a colon.
    """
    if what in ("attribute", "property") and lines and ": " in lines[0]:
        lines[0] = f": {lines[0]}"
    for number, line in enumerate(lines):
        line = re.sub(r"^(\s+\w+)_: ", r"\1\\_: ", line)
        line = re.sub(r"^(\s+\S+: )(\w\.)$", r"\1\\\2", line)
        if number and lines[number - 1].strip() == "Returns:":
            line = re.sub(r"^(\s*)", r"\1: ", line)
        lines[number] = line


def scrape_figures(block: Any, variables: dict[str, Any], settings: dict[str, Any]) -> str:
    """Figures that a block of a script made, in the order of their names' first use; for sphinx-gallery.

    The figures of `ipvae.plots` are not pyplot's, so that pyplot does not know them.
    """
    shown = variables.setdefault("shown_figures", set())
    paths = []
    for thing in list(variables["example_globals"].values()):
        if isinstance(thing, Figure) and id(thing) not in shown:
            shown.add(id(thing))
            path = next(variables["image_path_iterator"])
            thing.savefig(path, dpi=110, bbox_inches="tight", facecolor="white")
            paths.append(path)
    folder = Path(settings["src_dir"]).as_posix()
    return "".join(figure_rst([path], folder) for path in paths)


def setup(app: Any) -> dict[str, Any]:
    """Registers what stands above."""
    app.add_config_value("public_names", public_names(), "env")
    app.connect("missing-reference", link_to_public)
    app.connect("autodoc-skip-member", leave_out)
    app.connect("autodoc-process-docstring", prepare_docstring, priority=400)  # napoleon's is 500
    app.connect("source-read", read_source)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

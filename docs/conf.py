"""Sphinx configuration; ``make docs`` builds the site.

The source folder is the repository's root, so that README.md, CHANGELOG.md, the pages of docs and the tables
of bench/results are pages of the site where they lie, with the links that a code host follows too.
"""

from __future__ import annotations

import sys
import warnings
from importlib import metadata
from pathlib import Path

import matplotlib as mpl

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
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
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.typer",
    "site_pages",
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
html_show_copyright = False
pygments_style, pygments_dark_style = "friendly", "github-dark"

smartquotes_action = "D"  # dashes alone: a name in quotes is to be copied
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

default_role = "code"  # `name` in a docstring
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
autodoc_mock_imports = ["neurobench"]  # brings much along, and its base classes alone are needed here
autoclass_content = "class"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 100
copybutton_exclude = ".linenos, .gp, .go"

# Names that no page of this site describes: those of other packages, whose indices every build would have to
# download; what annotations and base classes name at its home, in a module of ours that users do not import
# from (public names are linked to where they do); errors that a "Raises" names and no module exports; and
# aliases of types.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(torch|numpy|lightning|sklearn|scipy|pandas|matplotlib|neurobench|np|nn|pynapple|typer)(\..*)?",
    ),
    (r"py:.*", r"(collections|pathlib|typing|enum|os|dataclasses|types|datetime|abc)\..*"),
    (r"py:class", r"(ipvae|ipvae_kernels)(\.[a-z_]+)+\.\w+"),
    (r"py:exc", r"[A-Z]\w+Error"),
    (r"py:.*", r"optional|Path|PathLike|ProcessGroup|Tensor|Frames|Inputs|Source|NotFittedError|csr_array"),
]

sphinx_gallery_conf = {
    "examples_dirs": ["docs/tutorials", "docs/gallery"],
    "gallery_dirs": ["docs/_generated/tutorials", "docs/_generated/gallery"],
    "image_scrapers": ("site_pages.scrape_figures",),
    "filename_pattern": r"\.py$",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "remove_config_comments": True,
    "abort_on_example_error": True,
    "within_subsection_order": "FileNameSortKey",
    "write_computation_times": False,
}

"""Links within a built site: every file, and every place in a page, that a page of it refers to.

    python tools/site_links.py docs/_build/html

Sphinx checks what it resolves itself; this looks at the pages as a browser gets them. Other links are for
`make docs-links`. Ends with 1 where a link leads nowhere, and names it.
"""

from __future__ import annotations

import argparse
import functools
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Places and links of a page.

    Args:
        text: HTML.

    Attributes:
        places: what `#name` may name.
        links: as they are written.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.places: set[str] = set()
        self.links: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collects from a tag."""
        for name, value in attrs:
            if value and (name == "id" or (tag == "a" and name == "name")):
                self.places.add(value)
            elif value and name in ("href", "src"):
                self.links.add(value)


@functools.cache
def page_of(file: Path) -> Page:
    """A page of the site."""
    return Page(file.read_text("utf-8"))


def fault(file: Path, link: str) -> str | None:
    """What is wrong with a link of a page, or None."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    target = file if not parts.path else file.parent / unquote(parts.path)
    target = target / "index.html" if target.is_dir() else target
    if not target.is_file():
        return "no such file"
    place = unquote(parts.fragment)
    if place and target.suffix == ".html" and place not in page_of(target.resolve()).places:
        return "no such place in the page"
    return None


def faults(site: Path) -> list[str]:
    """What is wrong in a whole site, a line each."""
    found = []
    for file in sorted(site.rglob("*.html")):
        for link in sorted(page_of(file.resolve()).links):
            if (wrong := fault(file, link)) is not None:
                found.append(f"{file.relative_to(site)}: {link}: {wrong}")
    return found


def main() -> None:
    """Checks the site that is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("site", type=Path)
    site = parser.parse_args().site
    if not (site / "index.html").is_file():
        parser.error(f"{site}: expected a site, found no index.html")
    found = faults(site)
    print("\n".join(found) or f"{site}: every link within it leads somewhere")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()

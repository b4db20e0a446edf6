"""Links of a built site."""

from __future__ import annotations

from pathlib import Path

import site_links


def test_what_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "index.html").write_text('<h1 id="top">x</h1><a href="../a%20b.html#here">good</a>')
    (tmp_path / "a b.html").write_text(
        '<p id="here"><a href="#here">good</a> <a href="sub/#top">good</a> <a href="https://x.invalid/y">skip</a>'
        '<a href="#there">bad</a> <a href="sub/#nowhere">bad</a> <img src="missing.png">'
    )
    assert site_links.faults(tmp_path) == [
        "a b.html: #there: no such place in the page",
        "a b.html: missing.png: no such file",
        "a b.html: sub/#nowhere: no such place in the page",
    ]

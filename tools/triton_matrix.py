"""Runs ``triton_aot.py`` with several versions of Triton, which pip installs into folders thrown away after.

    python tools/triton_matrix.py [--all] [--arch 80 90 100] [--versions 3.3.0 ...] [--out FILE]

The table has a row for each kernel and architecture that spills, or has another fault, with any version; the
figures are bytes spilled by the default configuration. Without ``--all`` a version takes a minute or two. The
exit status is 1 where a kernel does not compile or exceeds the device.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

VERSIONS = ("3.3.0", "3.4.0", "3.5.1", "3.6.0", "3.7.1", "3.8.0", "3.9.0")
AOT = Path(__file__).with_name("triton_aot.py")


def rows_of(version: str, options: list[str]) -> list[dict[str, Any]]:
    """The rows of ``triton_aot.py`` with one version of Triton."""
    with tempfile.TemporaryDirectory() as folder:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
        subprocess.run([*install, f"triton=={version}"], check=True)
        rows = Path(folder, "rows.json")
        subprocess.run(
            [sys.executable, str(AOT), "--out", os.devnull, "--json", str(rows), *options],
            env={**os.environ, "PYTHONPATH": folder},
            check=False,  # 1 says that a row has a fault
        )
        found = json.loads(rows.read_text())
    if found["triton"] != version:
        raise RuntimeError(f"asked for Triton {version}, ran {found['triton']}")
    return list(found["rows"])


def table(by_version: dict[str, list[dict[str, Any]]]) -> tuple[str, bool]:
    """Counts for each version and what is wrong, as tables in Markdown; and whether nothing but spills is."""
    head = ["| " + " | ".join(["", *by_version]) + " |", "| --- " * (1 + len(by_version)) + "|"]
    spilling: dict[str, dict[str, int]] = {}
    counts: dict[str, dict[str, int]] = {"compiled": {}, "other faults": {}, "defaults that spill": {}}
    notes = []
    for version, rows in by_version.items():
        defaults = [row for row in rows if row["default"] and row["figures"]]
        spilled = [row for row in defaults if row["figures"]["spilled"]]
        wrong = [row for row in rows if row["fault"] and row not in spilled]
        counts["compiled"][version] = sum(row["figures"] is not None for row in rows)
        counts["other faults"][version] = len(wrong)
        counts["defaults that spill"][version] = len(spilled)
        for row in spilled:
            key = f"{row['name']}, sm_{row['arch']}"
            spilling.setdefault(key, {})[version] = row["figures"]["spilled"]
        notes += [
            f"- {version}, sm_{r['arch']}: {r['name']}, {r['configuration']}: {r['fault']}" for r in wrong
        ]
    lines = ["# Ahead of time with several versions of Triton, no GPU", "", *head]
    for name, values in counts.items():
        lines.append("| " + " | ".join([name, *(str(values[version]) for version in by_version)]) + " |")
    if spilling:
        lines += ["", "Bytes a thread that default configurations spill:", "", *head]
    for name, values in spilling.items():
        lines.append("| " + " | ".join([name, *(str(values.get(v, 0)) for v in by_version)]) + " |")
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n", not notes


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--all", action="store_true", help="every configuration, estimator, format of products"
    )
    parser.add_argument("--arch", nargs="+", default=["80", "90", "100"])
    parser.add_argument("--versions", nargs="+", default=VERSIONS)
    parser.add_argument("--out", type=Path, help="write the table here; default: standard output")
    arguments = parser.parse_args()
    options = ["--arch", *arguments.arch, *(["--all"] if arguments.all else [])]
    found = {version: rows_of(version, options) for version in arguments.versions}
    text, sound = table(found)
    if arguments.out:
        arguments.out.write_text(text)
    else:
        print(text)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())

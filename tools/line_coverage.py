# SPDX-License-Identifier: Apache-2.0
"""Reports which lines of C++ sources gcov saw executed. Exits 1 if one was not.

line_coverage.py OBJECTS FOLDER...

OBJECTS is the folder of a build tree with the objects that were compiled with --coverage and the
counts that their processes left (.gcda). Each file below a FOLDER of the repository that the
objects were compiled from gets a line: lines executed, lines in all, and the numbers of those that
were not. A line of brackets alone does not count: g++ gives it the code that unwinds a scope, which
runs only if the scope is left by an exception.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BRACKETS = re.compile(r"[\s{}();,]*")
Counts = dict[str, dict[int, int]]  # file: line: executions


def merge(reports: Iterable[Mapping[str, Any]], folders: Iterable[Path]) -> Counts:
    """Returns the counts of gcov's reports for the files below the folders.

    A line that belongs to several functions, as in a template, counts the executions of all.
    """
    counts: Counts = {}
    folders = [folder.resolve() for folder in folders]
    for report in reports:
        for file in report["files"]:
            path = Path(report["current_working_directory"], file["file"]).resolve()
            if not any(path.is_relative_to(folder) for folder in folders):
                continue
            text = path.read_text().splitlines()
            for line in file["lines"]:
                number = line["line_number"]
                if BRACKETS.fullmatch(text[number - 1]):
                    continue
                lines = counts.setdefault(path.as_posix(), {})
                lines[number] = lines.get(number, 0) + line["count"]
    return counts


def table(counts: Counts) -> tuple[list[str], bool]:
    """Returns a row for each file, and whether all lines were executed."""
    rows, complete = [], bool(counts)
    for file, lines in sorted(counts.items()):
        missing = sorted(number for number, count in lines.items() if count == 0)
        complete = complete and not missing
        row = f"{len(lines) - len(missing):4d} of {len(lines):4d} lines  {file}"
        rows.append(row + (f"  not: {', '.join(map(str, missing))}" if missing else ""))
    return rows, complete


def reports(objects: Path) -> list[dict[str, Any]]:
    """Returns gcov's report of each object that left counts."""
    found = []
    for counts in sorted(objects.rglob("*.gcda")):
        command = ["gcov", "--json-format", "--stdout", str(counts)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found += [json.loads(line) for line in output.splitlines() if line.strip()]
    return found


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("objects", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    args = parser.parse_args()
    counts = merge(reports(args.objects), args.folders)
    relative = {str(Path(file).relative_to(ROOT)): lines for file, lines in counts.items()}
    rows, complete = table(relative)
    print("\n".join(rows) or f"line_coverage: no counts in {args.objects}")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())

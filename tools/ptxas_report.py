# SPDX-License-Identifier: Apache-2.0
"""Reports the registers and spills of the CUDA kernels that ptxas prints.

ptxas_report.py record nvcc ... -o x.o ...   compiles and keeps what ptxas -v prints in x.o.ptxas
ptxas_report.py print FOLDER                 prints a table; the exit status is 1 if a kernel spills
"""

import re
import subprocess
import sys
from pathlib import Path

ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


def record(command: list[str]) -> int:
    """Runs the compiler. Returns its exit status."""
    output = Path(command[command.index("-o") + 1] + ".ptxas") if "-o" in command else None
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    lines = result.stderr.splitlines(keepends=True)
    info = "".join(line for line in lines if line.startswith(("ptxas info", "    ")))
    sys.stderr.writelines(line for line in lines if result.returncode or line not in info)
    if output and result.returncode == 0:
        output.write_text(info)
    return result.returncode


def demangle(names: list[str]) -> dict[str, str]:
    """Returns short readable names."""
    try:
        result = subprocess.run(
            ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
        )
    except OSError:  # without binutils, the mangled names are used
        return {name: name for name in names}
    short = []
    for line in result.stdout.splitlines():
        line = re.sub(r"\([\w:, ]*\)$|^void ", "", line)  # parameters, return type
        for i, dtype in enumerate(["fp32", "fp16", "bf16"]):
            line = line.replace(f"(retnet::kernels::cuda::DType){i}", dtype)
        short.append(re.sub(r"retnet::kernels::cuda::|\(anonymous namespace\)::", "", line))
    return dict(zip(names, short, strict=True))


def read(folder: Path) -> list[re.Match[str]]:
    """Returns what `record` kept under `folder`: a match of ENTRY for each kernel and
    architecture.
    """
    files = sorted(folder.rglob("*.ptxas"))
    return [m for file in files for m in ENTRY.finditer(file.read_text())]


def spills(entry: re.Match[str]) -> int:
    """Returns the bytes of local memory that a kernel has, stores or loads."""
    return sum(int(entry[key]) for key in ("stack", "stores", "loads"))


def print_table(folder: Path) -> int:
    """Prints the table of what `record` kept under `folder`. Returns the exit status."""
    entries = read(folder)
    if not entries:
        print(f"no ptxas output under {folder}", file=sys.stderr)
        return 1
    names = demangle(sorted({m["name"] for m in entries}))
    archs = sorted({m["arch"] for m in entries}, key=lambda a: int(re.sub(r"\D", "", a)))
    width = max(map(len, names.values()))
    print(f"{'registers':{width}} " + " ".join(f"{'sm_' + a:>6}" for a in archs))
    for mangled, name in sorted(names.items(), key=lambda item: item[1]):
        registers = {m["arch"]: m["registers"] for m in entries if m["name"] == mangled}
        print(f"{name:{width}} " + " ".join(f"{registers.get(a, '-'):>6}" for a in archs))
    spilling = [m for m in entries if spills(m)]
    for m in spilling:
        print(
            f"SPILL {names[m['name']]} sm_{m['arch']}: {m['stack']} bytes of stack, "
            f"{m['stores']} stored, {m['loads']} loaded"
        )
    print(f"{len(names)} kernels, {len(entries)} compilations, {len(spilling)} with local memory")
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(record(sys.argv[2:]) if sys.argv[1] == "record" else print_table(Path(sys.argv[2])))

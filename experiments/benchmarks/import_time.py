"""How long `import ld3_dist` takes, beyond what importing PyTorch takes.

    python experiments/benchmarks/import_time.py [--runs 10] [--out
    results/benchmarks/import_time.json]

Every run is a process of its own that imports PyTorch first and then the package. The first run
fills the file cache and is not counted. The least of the others is closest to what the imports cost
on an idle machine; the CPU seconds beside it do not depend on who else uses the machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ALLOWED = 0.2
"""Seconds that the package may take."""

TIMED = """
import time
began = time.perf_counter(), time.process_time()
import torch
between = time.perf_counter(), time.process_time()
import ld3_dist
end = time.perf_counter(), time.process_time()
print(*(b - a for a, b in zip(began, between)), *(b - a for a, b in zip(between, end)))
"""


def measure() -> tuple[float, ...]:
    """Wall and CPU seconds of PyTorch, then of the package."""
    done = subprocess.run([sys.executable, "-c", TIMED], capture_output=True, text=True, check=True)
    return tuple(map(float, done.stdout.split()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    measure()
    columns = zip(*(measure() for _ in range(asked.runs)), strict=True)
    torch_wall, torch_cpu, wall, cpu = (round(min(column), 3) for column in columns)
    print(f"import torch:    {torch_wall:.3f} s, {torch_cpu:.3f} s of CPU")
    print(f"import ld3_dist: {wall:.3f} s, {cpu:.3f} s of CPU beyond torch (allowed {ALLOWED} s)")
    if asked.out:
        found = {
            "command": " ".join(["python", "experiments/benchmarks/import_time.py", *sys.argv[1:]]),
            "python": platform.python_version(),
            "torch": version("torch"),
            "runs": asked.runs,
            "torch_wall_s": torch_wall,
            "torch_cpu_s": torch_cpu,
            "beyond_torch_wall_s": wall,
            "beyond_torch_cpu_s": cpu,
        }
        asked.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

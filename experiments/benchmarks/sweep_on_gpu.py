"""Does a sweep find on a GPU what it finds on two CPU cores, and how much sooner?

    ld3-dist sweep experiments/fashion.yaml --output runs/gpu      on a machine with a GPU
    python experiments/benchmarks/sweep_on_gpu.py results/fashion runs/gpu

On the GPU several trials should share the card, since one such trial leaves it idle; the file that
is committed was measured with `resources: {gpus_per_trial: 0.125, gpus_per_actor: 0.125}`.

Writes a row per trial, matched by its settings:

    first, second   its best held-out loss in the first and in the second folder
    seconds         what it took in each, its members together

and the summary: geometric mean, quartiles and ends of second over first, and both sums of seconds.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from ld3_dist import load_results
from ld3_dist.store.frames import of_kind, records

SETTINGS = ["cell", "coefficients", "distance"]


def trials(folder: str) -> dict[tuple[str, ...], dict[str, Any]]:
    """Best held-out loss, seconds and device of every trial of a sweep, by its settings."""
    learned = of_kind(load_results(folder), "learned", "ok")
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in records(learned):
        trial = found.setdefault(
            tuple(str(row[name]) for name in SETTINGS),
            {"loss": math.inf, "seconds": 0.0, "memory": 0, "rows": 0, "device": row["device"]},
        )
        trial["loss"] = min(trial["loss"], row["valid_loss"])
        trial["seconds"] += row["seconds"]
        trial["memory"] = max(trial["memory"], row["peak_memory"])
        trial["rows"] += 1
    return found


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("first", help="folder of the sweep to compare with")
    parser.add_argument("second", help="folder of the sweep on the GPU")
    parser.add_argument("--out", default="results/benchmarks/sweep_on_gpu.json", type=Path)
    given = parser.parse_args()
    first, second = trials(given.first), trials(given.second)
    both = [name for name in first if name in second]
    ratios = np.array([second[name]["loss"] / first[name]["loss"] for name in both])
    found = {
        "devices": [next(iter(one.values()))["device"] for one in (first, second)],
        "trials": len(both), "schedules": sum(trial["rows"] for trial in second.values()),
        "loss_ratio": {
            "geometric_mean": float(np.exp(np.log(ratios).mean())),
            **{f"quantile_{q}": float(np.quantile(ratios, q)) for q in (0, 0.25, 0.5, 0.75, 1)},
        },
        "seconds_of_trials": [
            sum(trial["seconds"] for trial in one.values()) for one in (first, second)
        ],
        "peak_memory_bytes": float(max(trial["memory"] for trial in second.values())),
        "rows": [
            {
                **dict(zip(SETTINGS, name, strict=True)),
                "first": first[name]["loss"], "second": second[name]["loss"],
                "seconds": [first[name]["seconds"], second[name]["seconds"]],
            }
            for name in sorted(both)
        ],
    }  # fmt: skip
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: value for name, value in found.items() if name != "rows"}, indent=1))


if __name__ == "__main__":
    main()

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
from pathlib import Path

import numpy as np
import pandas as pd

from ld3_dist import load_results

SETTINGS = ["cell", "coefficients", "distance"]


def trials(folder: str) -> pd.DataFrame:
    """Best held-out loss, seconds and device of every trial of a sweep, by its settings."""
    frame = load_results(folder)
    learned = frame[(frame["kind"] == "learned") & (frame["status"] == "ok")]
    return learned.groupby(SETTINGS).agg(
        loss=("valid_loss", "min"), seconds=("seconds", "sum"), device=("device", "first"),
        memory=("peak_memory", "max"), rows=("key", "size"),
    )  # fmt: skip


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("first", help="folder of the sweep to compare with")
    parser.add_argument("second", help="folder of the sweep on the GPU")
    parser.add_argument("--out", default="results/benchmarks/sweep_on_gpu.json", type=Path)
    given = parser.parse_args()
    first, second = trials(given.first), trials(given.second)
    both = first.join(second, suffixes=("_first", "_second"), how="inner")
    ratio = both["loss_second"] / both["loss_first"]
    found = {
        "devices": [str(one["device"].iloc[0]) for one in (first, second)],
        "trials": len(both), "schedules": int(second["rows"].sum()),
        "loss_ratio": {
            "geometric_mean": float(np.exp(np.log(ratio).mean())),
            **{f"quantile_{q}": float(ratio.quantile(q)) for q in (0, 0.25, 0.5, 0.75, 1)},
        },
        "seconds_of_trials": [float(one["seconds"].sum()) for one in (first, second)],
        "peak_memory_bytes": float(second["memory"].max()),
        "rows": [
            {
                **dict(zip(SETTINGS, map(str, name), strict=True)),
                "first": row["loss_first"], "second": row["loss_second"],
                "seconds": [row["seconds_first"], row["seconds_second"]],
            }
            for name, row in both.iterrows()
        ],
    }  # fmt: skip
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: value for name, value in found.items() if name != "rows"}, indent=1))


if __name__ == "__main__":
    main()

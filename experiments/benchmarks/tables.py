"""Time and memory of the result tables of a large sweep.

    python experiments/benchmarks/tables.py [--rows 60000] [--out results/benchmarks/tables.json]

    merge     the small files are merged by `Segments`: milliseconds of CPU a row; `merge_single`
              for files of one row each, the worst case
    load      `load_results` of the merged folder, in a process of its own; seconds and peak memory
    columns   `row_index` of the merged folder
    unmerged  `load_results` while the rows are still in small files
    s3        `load_results` of the merged folder through an S3 server (moto) on this machine

The rows are made up, with curves of 30 epochs, settings as JSON, and an evaluation for one in ten.
The server of the S3 measurement is a process beside the reader and shares its cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

LIMITS = {"load_seconds": 3.0, "load_bytes": 1e9, "s3_seconds": 15.0, "merge_ms_a_row": 5.0}
PER_FILE = 20
PER_CELL = 1000
BASELINES = 10

LOAD = """
import json, re, sys, time
import pandas, pyarrow, numpy
from ld3_dist import load_results
from ld3_dist.store.opening import open_storage
from ld3_dist.store.tables import row_index
def peak():  # of this process: ru_maxrss would begin with that of its parent
    text = open("/proc/self/status").read()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", text)[1]) * 1024
before = peak()
wall, cpu = time.perf_counter(), time.process_time()
frame = load_results(sys.argv[1])
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
most = peak()
start = time.process_time()
index = row_index(open_storage(sys.argv[1])) if "://" not in sys.argv[1] else ()
found = {"rows": len(frame), "seconds": wall, "cpu_seconds": cpu, "peak_bytes": most}
found |= {"bytes_at_start": before, "index_cpu_seconds": time.process_time() - start}
assert frame["gain"].notna().sum() == len(frame) and frame["best"].sum() > 0
print(json.dumps(found))
"""


def records(rows: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of hand-made grids and learned schedules, and evaluations of one in ten."""
    rng = np.random.default_rng(0)
    made: list[dict[str, Any]] = []
    cells = max(1, rows // PER_CELL)
    per_cell = rows // cells
    for c in range(cells):
        nfe = 4 + c % 7
        cell = f"digits/class/unipc-3/{c}"
        shared: dict[str, Any] = {
            "cell": cell, "experiment": "3f9a1c0de4", "model": "digits", "model_hash": "ab" * 32,
            "conditioning": "class", "guidance": 1.0, "solver": "unipc-3", "nfe": nfe,
            "steps": nfe, "distance": "l2", "teacher": "t" * 16, "status": "ok",
            "train_pairs": 50, "valid_pairs": 50, "host": "node-17", "device": "cuda: H100",
            "version": "0.1.0", "torch_version": "2.14.1", "started": "2026-11-26T10:00:00Z",
        }  # fmt: skip
        for b in range(BASELINES):
            made.append(shared | {"key": f"b{c}-{b}", "kind": "baseline", "start": f"grid-{b}",
                                  "knots": rng.random(nfe + 1).tolist(),
                                  "valid_loss": 1.0 + rng.random()})  # fmt: skip
        for i in range(per_cell - BASELINES):
            gamma = float(rng.choice([0.0, 0.001, 0.01]))
            point, seed = divmod(i, 10)
            learn = {"epochs": 30, "gamma": gamma, "lr": 0.1 + point, "procedure": "default"}
            settings = {"distance": "l2", "learn": learn, "seed": seed, "start": "karras"}
            valid = np.exp(-np.arange(31) / 10) * rng.random(31)
            made.append(shared | {
                "key": f"{rng.bytes(8).hex()}", "kind": "learned", "trial": f"t{c}-{point}",
                "seed": seed, "start": "karras", "gamma": gamma, "lr": 0.1 + point, "round": 0,
                "procedure": "default", "epochs": 30, "settings": json.dumps(settings),
                "knots": rng.random(nfe + 1).tolist(), "evals": rng.random(nfe).tolist(),
                "valid_loss": float(valid[-1] + 1e-3), "train_loss": float(valid[-1]),
                "valid_curve": valid.tolist(), "train_curve": valid[1:].tolist(),
                "best_epoch": 30, "epochs_run": 30, "seconds": 3.0, "network_evals": 10_000,
            })  # fmt: skip
    scores = [
        {"key": row["key"], "kind": row["kind"], "cell": row["cell"], "samples": 2000,
         "eval_loss": row["valid_loss"] * 1.1, "fid": 3.0}
        for row in made[::10]
    ]  # fmt: skip
    return made, scores


def write(folder: Path, rows: int, per_file: int = PER_FILE) -> int:
    """The small files of a sweep, as its trials write them; returns how many."""
    from ld3_dist.store.opening import open_storage
    from ld3_dist.store.table_files import encode_table

    made, scores = records(rows)
    storage = open_storage(folder)
    for table in ("rows", "evaluations"):
        (folder / table).mkdir(parents=True)
    files = 0
    for start in range(0, len(made), per_file):
        data = encode_table("rows", made[start : start + per_file])
        (folder / "rows" / f"{start:08d}.parquet").write_bytes(data)
        files += 1
    for start, score in enumerate(scores):
        path = folder / "evaluations" / f"{start:08d}.parquet"
        path.write_bytes(encode_table("evaluations", [score]))
    assert storage.exists("rows")
    return files


def load(place: str, environment: dict[str, str] | None = None) -> dict[str, float]:
    """`load_results` in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, place],
        capture_output=True,
        text=True,
        env=os.environ | (environment or {}),
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def merge(folder: Path, rows: int) -> dict[str, float]:
    """Merge as a running driver does: every time 500 files are there."""
    from ld3_dist.store.folding import Segments
    from ld3_dist.store.opening import open_storage
    from ld3_dist.store.segments import read_manifest

    storage = open_storage(folder)
    cpu, wall = time.process_time(), time.perf_counter()
    for table in ("rows", "evaluations"):
        Segments(storage, table).fold(1)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    segments = read_manifest(storage, "rows").segments
    size = sum(segment.bytes for segment in segments)
    return {"cpu_ms_a_row": 1e3 * cpu / rows, "wall_ms_a_row": 1e3 * wall / rows,
            "segments": len(segments), "bytes": size}  # fmt: skip


def through_s3(folder: Path) -> dict[str, float]:
    """`load_results` of a copy of the folder on an S3 server in a process of its own."""
    from pyarrow.fs import S3FileSystem

    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    keys |= {"AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    os.environ.update(keys)
    code = (
        "import time\nfrom moto.server import ThreadedMotoServer\n"
        "server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)\n"
        "server.start()\nprint(*server.get_host_and_port(), flush=True)\ntime.sleep(3600)"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert server.stdout is not None
        host, port = server.stdout.readline().split()
        files = S3FileSystem(endpoint_override=f"{host}:{port}", scheme="http", region="us-east-1",
                             allow_bucket_creation=True)  # fmt: skip
        files.create_dir("bucket")
        for path in folder.rglob("*"):
            if path.is_file():
                key = f"bucket/{path.relative_to(folder)}"
                with files.open_output_stream(key) as stream:
                    stream.write(path.read_bytes())
        url = f"s3://bucket?endpoint_override=http://{host}:{port}"
        return load(url, keys)
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--unmerged", type=int, default=3_000, help="Rows of that measurement.")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/tables.json"))
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": platform.processor() or platform.machine()}
    found |= {"cores": os.cpu_count(), "load_average_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as scratch:
        small = Path(scratch, "unmerged")
        files = write(small, options.unmerged, 1)
        found["unmerged"] = load(str(small)) | {"files": files}
        found["merge_single"] = merge(small, options.unmerged)
        folder = Path(scratch, "merged")
        found["files"] = write(folder, options.rows)
        found["merge"] = merge(folder, options.rows)
        found["load"] = load(str(folder))
        found["s3"] = through_s3(folder)
    found["load_average_after"] = os.getloadavg()[0]
    found["limits"] = LIMITS
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

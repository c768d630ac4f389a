"""What a stranger does on the first day, timed in a fresh clone.

    python tests/strangers.py [--keep FOLDER]    needs git, make and a package registry

    installation        make install (downloads included)
    first sight         make demo: the quickstart and its page
    a pipeline          the README's commands for a diffusers folder, on a tiny pipeline
    two nodes           a sweep on a cluster of two nodes that `ray start` made
    a network           the notebook with a network of one's own, all its cells

The clone is of the last commit; nothing of this folder's installation is used. Exits with 1 if a
step fails. The times are those of this machine; the README promises ten minutes for each of the
last three, reading aside.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SLOW = [".venv/bin/python", "-m", "pytest", "-m", "slow", "-p", "no:cacheprovider"]
STEPS = {
    "installation": ["make", "install"],
    "first sight": ["make", "demo"],
    "a pipeline": [*SLOW, "tests/docs/test_snippets.py", "-k", "slow-readme-pipeline"],
    "two nodes": [*SLOW, "tests/cluster/test_cluster_refusals.py", "-k", "ray_start"],
    "a network": [*SLOW, "tests/docs/test_tutorial_notebook.py"],
}
PROMISED = dict.fromkeys(("a pipeline", "two nodes", "a network"), 600.0)
"""Seconds."""


def clean() -> dict[str, str]:
    """The environment without what would lead to another installation."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="folder for the clone; a temporary one if not")
    given = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as temporary:
        clone = given.keep or Path(temporary) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        for name, command in STEPS.items():
            begin = time.monotonic()
            done = subprocess.run(
                command, cwd=clone, env=clean(), capture_output=True, text=True, check=False
            )
            seconds = time.monotonic() - begin
            late = seconds > PROMISED.get(name, float("inf"))
            fault = "failed" if done.returncode else "later than promised" if late else ""
            print(f"{name:14} {seconds:6.0f} s  {fault}", flush=True)
            if fault:
                failed.append(name)
                print(done.stdout[-3000:] + done.stderr[-3000:], file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())

"""The GPU benchmark runs where there is no GPU, on a tiny network, and measures every section."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # two minutes of processor time, most of it compilation
SCRIPT = Path(__file__).parents[2] / "experiments/benchmarks/gpu.py"


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("gpu") / "gpu.json"
    command = [sys.executable, str(SCRIPT), "--tiny", "--minutes", "60", "--out", str(out)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # tiny work: more threads only wait
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, env=one_thread)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text())["sections"]


def numbers(part: object) -> Iterator[float]:
    """Every number in nested lists and dicts."""
    if isinstance(part, dict):
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from numbers(inner)
    elif isinstance(part, int | float):
        yield part


def test_every_section_ran_and_its_numbers_are_finite(sections: dict) -> None:
    assert [*sections] == ["ceilings", "packing", "waits", "dtypes", "compile", "digits"]
    for name, part in sections.items():
        assert "error" not in part, f"{name}: {part}"
        assert all(math.isfinite(number) for number in numbers(part)), name


def test_packing_has_a_row_per_number_of_members_and_kind_of_activations(sections: dict) -> None:
    rows = sections["packing"]["rows"]
    assert {(r["members"], r["activations"]) for r in rows} == {
        (members, kind) for members in (1, 2) for kind in ("kept", "recomputed")
    }
    assert all(min(r["s"], r["over_bare"], r["of_bf16_peak"]) > 0 for r in rows)


def test_bf16_is_further_from_float64_than_float32(sections: dict) -> None:
    error = {r["dtype"]: r["error"] for r in sections["dtypes"]["rows"]}
    assert error["float32"] < 1e-5 < error["bfloat16"] < 0.1


def test_both_devices_learn_the_same(sections: dict) -> None:
    """One run is on the CPU; the other is on the GPU where there is one, else on the CPU too."""
    digits = sections["digits"]
    for pair in ("gpu_and_cpu", "gpu_and_float64", "cpu_and_float64"):
        assert max(max(gap["knots"], gap["evals"]) for gap in digits[pair][:2]) < 1e-3, pair


def test_both_ways_of_compiling_came_to_an_end(sections: dict) -> None:
    for way in ("blocks", "whole"):
        what = [row["what"] for row in sections["compile"][way]["rows"]]
        assert what == ["eager", "first", "later", "graphs"]

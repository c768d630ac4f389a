"""What a thread that outlives the sweep's Ray may do."""

from __future__ import annotations

import subprocess
import sys


def test_no_thread_starts_a_ray_of_its_own() -> None:
    """A call of Ray after the sweep has let go of it fails. By itself Ray would start anew, and its
    agents would outlive the process."""
    code = """
import ld3_dist.cluster.sweep, ray
try:
    ray.put(1)
except Exception as error:
    print(type(error).__name__)
print(ray.is_initialized())
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert ran.stdout.split() == ["RaySystemError", "False"], ran.stdout

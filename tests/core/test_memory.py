"""Memory is given back: learning leaves no tensor behind, and a process no freed memory."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch

import ld3_dist as ld3

GROWN = """
import threading
from ld3_dist.core.memory import give_back

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

kept = []

def work():
    pieces = [bytearray(50_000) for _ in range(4_000)]   # 200 MB, each below what glibc maps alone
    kept.append(pieces[-1])

before = resident()
for _ in range(4):                                       # side by side, so that each has an arena
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
grown = resident() - before
give_back()
print(grown, resident() - before)
"""


def live_tensors() -> int:
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # isinstance wakes deprecated attributes of torch
        return sum(isinstance(found, torch.Tensor) for found in gc.get_objects())


@pytest.mark.parametrize("settings", [{}, {"coefficients": True}, {"procedure": "paper"}])
def test_learning_leaves_no_tensor_behind(settings: dict[str, Any]) -> None:
    """The mixture's network keeps what it returns for its backward pass (softmax), as most do."""
    model = ld3.load_model("analytic:mixture-2d")
    pairs = ld3.teach(model, 8)
    learn = lambda: ld3.learn(model, "unipc-3", 3, pairs, epochs=1, **settings)
    learn()  # fills the caches
    before = live_tensors()
    for _ in range(3):
        learn()
    assert live_tensors() == before


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc has malloc_trim")
def test_a_process_gives_back_what_its_threads_freed() -> None:
    ran = subprocess.run([sys.executable, "-c", GROWN], capture_output=True, text=True, check=True)
    grown, left = map(int, ran.stdout.split())
    assert left < 0.5 * grown
    assert left < 50e6

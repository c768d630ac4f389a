"""The former default procedure, which the tables of docs/benchmarks.md were measured with."""

from __future__ import annotations

from typing import Any

STARTS = ("log_snr", "optimal-steps")
SETTINGS: dict[str, Any] = {"batch": 10, "epochs": 40}

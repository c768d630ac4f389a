"""Fixtures of the tests of schedules."""

from __future__ import annotations

from edm_pickles import format_modules

__all__ = ["format_modules"]

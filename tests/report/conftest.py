"""Fixtures of the report's tests."""

from __future__ import annotations

import pytest
from markupsafe import Markup, escape


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, but matplotlib does not draw them: it takes nine tenths of a report's time.

    For tests of what a page says.
    """
    style = "ld3_dist.report.figures.style"
    monkeypatch.setattr(f"{style}.as_png", lambda figure: b"")
    monkeypatch.setattr(f"{style}.panel_boxes", lambda figure: [])
    monkeypatch.setattr(
        f"{style}.as_svg",
        lambda figure, name, alt: Markup(f'<svg role="img" aria-label="{escape(alt)}"></svg>'),
    )

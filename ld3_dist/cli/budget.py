"""`ld3-dist learn --budget` and `--minutes`: the plan that is printed before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .console import option, say

if TYPE_CHECKING:
    from ..core.learning.config import LearnConfig
    from ..models import Model
    from ..schedule.budget import Plan, Start
    from ..schedule.teaching import Teacher


def fitted(
    model: Model,
    cell: dict[str, Any],
    config: LearnConfig,
    limit: dict[str, Any],
    *,
    starts: tuple[Start, ...],
    teacher: Teacher,
    count: int | None,
    epochs: int | None,
    shown: int,
) -> Plan:
    """Pairs, epochs and starts as given, or fitted to a budget; that plan is printed.

    Args:
        cell: solver, if given, and nfe.
        limit: budget or minutes; neither keeps everything as given.
        count, epochs: as many pairs to train on as held out, and epochs, if given.
        shown: samples that are drawn in the picture.
    """
    from ..schedule.baselines import BASELINES
    from ..schedule.budget import Cell, Plan, fit
    from ..schedule.ranges import HELD, PAIRS

    if not limit:
        train, valid = (PAIRS, HELD) if count is None else (count, count)
        return Plan(train, valid, config.epochs, starts, {}, float("nan"))
    asked = Cell(
        model,
        cell.get("solver", "ipndm-3"),
        cell["nfe"],
        config,
        teacher,
        BASELINES,
        starts=starts,
        counts=None if count is None else (count, count),
        epochs=epochs,
        shown=shown,
    )
    with option("--budget" if "budget" in limit else "--minutes"):
        plan = fit(asked, **limit)
    say(f"Plan: {plan}")
    return plan

"""The curve in a schedule file: the grids of every NFE from one set of numbers.

The file of a curve is the schedule of the most evaluations that the curve was learned on, and holds
the curve beside it; `Schedule.at` reads the grid of any NFE from that. The formulas are those of
`core.learning.curve`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError
from ..core.user_code import PREFIX

if TYPE_CHECKING:
    from ..core.learning.curve import Curve
    from ..core.learning.family import FamilyProgress
    from ..core.solver import Solver
    from .file import Schedule

PARAMETERS = ("logits", "tilt", "offsets", "drift")
START = ("begin", "delay", "variance")
"""Keys of a curve whose start time was learned; a file has all of them or none."""
MOST_POINTS = 64
"""Control points of a curve; the least of its gaps leave room for so many."""


def curve_body(
    progress: FamilyProgress, member: int, baselines: Mapping[int, Mapping[str, float | None]]
) -> dict[str, Any]:
    """A member's best curve as the value of the key `curve`.

    Args:
        baselines: held-out losses of hand-made grids by name, for every NFE.
    """
    curve = progress.curve
    values = {name: value[member].tolist() for name, value in curve.values().items()}
    start = {name: values.pop(name)[0] for name in START}
    losses = progress.each_best[:, member].tolist()
    return {
        "coordinate": curve.coordinate,
        "ends": curve.ends[member].tolist(),
        "window": curve.window,
        "nfes": list(curve.nfes),
        **values,
        **(start if bool(curve.later[member]) else {}),
        "losses": {str(n): loss for n, loss in zip(curve.nfes, losses, strict=True)},
        "baselines": {str(n): dict(found) for n, found in baselines.items()},
    }


def check_curve(body: Mapping[str, Any]) -> None:
    """Raise InputError for numbers that fit the schema but are no curve."""
    P = len(body["logits"])
    for name, size in (("logits", P), ("tilt", P), ("offsets", P + 1), ("drift", P + 1)):
        if len(body[name]) != size:
            raise InputError(
                f"curve.{name} holds {len(body[name])} numbers, need {size}: curve.logits holds {P}"
            )
    if (there := [name for name in START if name in body]) and len(there) < len(START):
        missing = ", ".join(f"curve.{name}" for name in START if name not in body)
        raise InputError(f"{missing} is missing: curve.{there[0]} says that the start was learned")
    if P > MOST_POINTS:
        raise InputError(f"curve.logits holds {P} numbers, at most {MOST_POINTS} are allowed")
    if len(body["ends"]) != 2 or not body["ends"][0] < body["ends"][1]:
        raise InputError(f"curve.ends = {list(body['ends'])}: need two numbers that increase")
    if not 0 <= body["window"] < 1:
        raise InputError(f"curve.window = {body['window']}: must lie in [0, 1)")
    if body["coordinate"] not in ("lambda", "time"):
        raise InputError(f"curve.coordinate = {body['coordinate']!r}: must be lambda or time")


def read_curve(schedule: Schedule, solver: Solver) -> Curve:
    """The curve of a schedule file."""
    import torch

    from ..core.learning.curve import Curve

    body = schedule.curve
    assert body is not None
    row = lambda name: torch.tensor([list(body[name])], dtype=torch.float64)
    made = Curve(
        schedule.noise_schedule,
        solver,
        body["nfes"],
        row("ends"),
        body["coordinate"],
        body["window"],
        len(body["logits"]),
        later=START[0] in body,
    )
    start = {name: torch.tensor([[body.get(name, 0.0)]], dtype=torch.float64) for name in START}
    return made.set({name: row(name) for name in PARAMETERS} | start).requires_grad_(False)


def schedule_at(schedule: Schedule, nfe: int, solver: Solver | None = None) -> Schedule:
    """See `Schedule.at`."""
    from ..core.solver import make_solver
    from .noise import LEVELS

    body = schedule.curve
    if body is None:
        if nfe == schedule.nfe:
            return schedule
        raise InputError(
            f"nfe = {nfe}: this schedule is for {schedule.nfe} evaluations alone; learn one for "
            "any number with procedure: curve, or give this one as a start"
        )
    if solver is None and schedule.solver.startswith(PREFIX):
        raise InputError(
            f"solver {schedule.solver}: it is code of a user's file, which no schedule file may "
            "run; in Python, give it: schedule.at(nfe, make_solver(NAME))"
        )
    student = solver or make_solver(schedule.solver)
    check_nfe(student, schedule.solver, nfe)
    grid, table = read_curve(schedule, student).tableau(nfe)
    known, others = body["losses"].get(str(nfe)), body["baselines"].get(str(nfe), {})
    told = ", ".join(map(str, body["nfes"]))
    same, scale = nfe == schedule.nfe, table.state[0, 0]
    return replace(
        schedule,
        knots=tuple(grid.knots[0].tolist()),
        evals=tuple(grid.evals[0].tolist()),
        state=tuple((table.state[0] / scale).tolist()),
        outputs=tuple(map(tuple, table.outputs[0].tolist())),
        noise={key: value for key, value in schedule.noise.items() if key not in LEVELS},
        prior_scale=schedule.noise_schedule.prior_scale * scale.item(),
        nfe=nfe,
        losses=schedule.losses if same else {} if known is None else {"valid_loss": known},
        metrics=schedule.metrics if same else {},
        baselines={name: {"valid_loss": loss} for name, loss in others.items()},
        versions={**schedule.versions, "curve_learned_on": told},
        row=schedule.row if same else None,
        curve=None,
    )


def check_nfe(student: Solver, name: str, nfe: object) -> None:
    """Raise InputError for an NFE that a solver, called `name`, cannot spend."""
    from ..core.solver import MOST_NFE

    if not isinstance(nfe, int) or isinstance(nfe, bool) or nfe < student.stages:
        raise InputError(
            f"nfe = {nfe!r}: must be a whole number of at least {student.stages} for {name}, "
            "the evaluations of one of its steps"
        )
    if nfe > MOST_NFE:
        raise InputError(f"nfe = {nfe}: must be at most {MOST_NFE}; few steps are the point")


def of_one_nfe(schedule: Schedule, remedy: str) -> Schedule:
    """The schedule itself; InputError with a remedy if it is a curve, whose NFE nobody named."""
    if schedule.curve is None:
        return schedule
    told = ", ".join(map(str, schedule.curve["nfes"]))
    raise InputError(
        f"it holds a curve for any number of evaluations (learned on {told}): {remedy}"
    )

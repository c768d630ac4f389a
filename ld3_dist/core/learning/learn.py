"""LD3: gradient descent on the grid of a solver (arXiv 2405.15506), for K members at once.

With the teacher Psi*, the student Psi_xi and unit-variance noise, soft teacher forcing minimises

    L(xi) = E_{x_T} min_{x' in Ball(x_T, r)} dist( Psi_xi(x'), Psi*(x_T) ),    r = gamma d / NFE^2

over the parameters xi of the schedule (section 3.2); d is the dimension of a sample. `learn` runs a
procedure and yields after every epoch. The caller may then log, plot, stop, or keep a snapshot from
which learning goes on later.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from .config import LearnConfig
from .objective import Objective
from .pairs import Pairs
from .problem import Problem, Progress
from .procedure import make_config, procedures

__all__ = ["LearnConfig", "Pairs", "Problem", "Progress", "learn", "make_config"]


def learn(
    problem: Problem,
    config: LearnConfig | None = None,
    *,
    objective: Objective | None = None,
    resume: tuple[int, dict[str, Tensor]] | None = None,
) -> Iterator[Progress]:
    """Learn K schedules; yields the start itself first, and then after every epoch.

    Args:
        problem: the students, their pairs, and the distance.
        config: settings of one procedure, from `make_config`; the default procedure's if not given.
        objective: another loss than the procedure's own.
        resume: (epoch, snapshot) of a run with the same arguments. Learning goes on after that
            epoch and ends as the first run would have.

    Raises:
        InputError: a start that is no grid of the model's noise schedule, or a snapshot of another
            run.
    """
    config = config or make_config()
    run = procedures.get(config.procedure)(problem, config, objective)
    if resume is None:
        yield run.validate(0)
        yield from run.run(1)
    else:
        epoch, state = resume
        run.restore(state)
        if run.active:
            yield from run.run(epoch + 1)

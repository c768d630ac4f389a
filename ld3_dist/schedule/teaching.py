"""Teacher pairs: unit noise, conditions, and the samples that a precise solver makes of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..core.denoiser import map_condition
from ..core.errors import InputError
from ..core.learning.pairs import Pairs
from ..core.solver import MOST_NFE, Tableau, make_solver
from ..models import Model
from ..models.loaded import check_model
from .sampling import BATCH, device_of, draw_inputs, in_loss_space, make_samples
from .starts import start_knots

_TEACHER = re.compile(r"(?P<solver>python:[^:]+:[^/]+|[^/]+)/(?P<nfe>[0-9]+)/(?P<start>.+)")
"""solver/NFE/grid; the path of a user's file may hold slashes too."""


class Diverged(RuntimeError):
    """Raised for numbers that are not finite, if there is no way to go on."""


@dataclass(frozen=True)
class Teacher:
    """The precise solver that is imitated: its name, evaluations and grid."""

    solver: str = "unipc-3"
    nfe: int = 20
    start: str = "karras"

    @classmethod
    def parse(cls, text: str) -> Teacher:
        """A teacher written as solver/NFE/grid, e.g. unipc-3/20/karras.

        Raises InputError for anything else.
        """
        found = _TEACHER.fullmatch(text)
        if not found or not found["nfe"].strip("0"):
            raise InputError(
                f"teacher {text!r}: write it as solver/NFE/grid, e.g. unipc-3/20/karras"
            )
        if len(found["nfe"]) > 9 or int(found["nfe"]) > MOST_NFE:
            raise InputError(
                f"teacher {text[:60]!r}: its NFE must be at most {MOST_NFE}; 20 to 50 are precise"
            )
        make_solver(found["solver"])
        return cls(found["solver"], int(found["nfe"]), found["start"])

    def tableau(self, model: Model) -> Tableau:
        """The teacher's table for a model. Raises InputError for a grid the model cannot have."""
        solver = make_solver(self.solver)
        knots = start_knots(self.start, model, solver, self.nfe)
        noise = model.denoiser.noise
        return solver.tableau(noise, solver.coupled(noise, knots, self.nfe))

    def __str__(self) -> str:
        return f"{self.solver}/{self.nfe}/{self.start}"


def teach(
    model: Model,
    n: int = 100,
    *,
    seed: int = 0,
    teacher: str | Teacher = "unipc-3/20/karras",
    space: str = "image",
    batch: int = BATCH,
    indices: Sequence[int] | None = None,
) -> Pairs:
    """Teacher pairs of n samples: unit noise and the teacher's samples, on the model's device.

    Args:
        seed, indices: sample i of a seed is the same on every machine; the first n if not given.
        teacher: solver/NFE/grid.
        space: "image", or "latent" to keep the teacher's undecoded samples of a latent model.
        batch: the most samples that go through the network at once.

    Raises InputError for a teacher that cannot be used, and Diverged if its samples are not
    finite.

    >>> import ld3_dist as ld3
    >>> model = ld3.load_model("analytic:mixture-2d")
    >>> pairs = ld3.teach(model, n=4, teacher="unipc-3/10/karras")
    >>> pairs.noise.shape, pairs.target.shape
    (torch.Size([4, 2]), torch.Size([4, 2]))
    """
    check_model(model)
    teacher = Teacher.parse(teacher) if isinstance(teacher, str) else teacher
    indices = range(n) if indices is None else indices
    if len(indices) < 1:
        raise InputError(f"n = {n}: at least one pair is needed")
    viewed = in_loss_space(model, space)
    table = teacher.tableau(viewed)
    home = device_of(model)
    z, condition = draw_inputs(model, seed, indices)
    given = map_condition(lambda c: c.to(home), condition)
    target = make_samples(viewed, table, z.to(home), given, batch)
    lost = int((~torch.isfinite(target).flatten(1).all(1)).sum())
    if lost:
        raise Diverged(
            f"{lost} of {len(indices)} samples of the teacher {teacher} are not finite, so that "
            "there is nothing to learn from: use another teacher or dtype, or look at what "
            f"{model.id} returns"
        )
    return Pairs(z.to(home), target, given, _origin(model))


def split(pairs: Pairs, valid: Pairs | None, model: Model) -> tuple[Pairs, Pairs]:
    """(train, held out): as given, or the first half of the pairs held out.

    Args:
        model: that is learned for, with losses in their space (`in_loss_space`).

    Raises InputError for fewer than three pairs that are to be split, and for pairs of another
    model, guidance or space.
    """
    _check_pairs(pairs, model)
    if valid is not None:
        _check_pairs(valid, model)
        return pairs, valid
    half = len(pairs) // 2
    if half < 1 or len(pairs) - half < 2:
        raise InputError(
            f"{len(pairs)} teacher pairs: at least 3 are needed, half of them held out"
        )
    return pairs[half:], pairs[:half]


def _check_pairs(pairs: object, model: Model) -> None:
    if not isinstance(pairs, Pairs):
        raise InputError(
            f"pairs are of type {type(pairs).__name__}: teach(model) makes them, and "
            "core.learning.pairs.Pairs(noise, target) holds your own"
        )
    for name, tensor, shape in (
        ("noise", pairs.noise, model.shape),
        ("target", pairs.target, tuple(model.image_shape)),
    ):
        if tuple(tensor.shape[1:]) != shape:
            raise InputError(
                f"pairs: {name} has shape {list(tensor.shape)}, but {model.id} needs "
                f"[M, {', '.join(map(str, shape))}]: make them by teach(model, space=...) for the "
                "same model and space"
            )
    if pairs.origin not in ("", _origin(model)):
        raise InputError(
            f"pairs were made by another model ({pairs.origin}) than they are to teach "
            f"({_origin(model)}): teach(model) makes its own"
        )


def _origin(model: Model) -> str:
    guided = "" if model.guidance is None else f", guidance {model.guidance:g}"
    return f"weights {model.hash[:12]}{guided}"

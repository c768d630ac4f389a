"""Schedules scored where they were not learned: another fine-tune, guidance, dtype, size, solver.

At each site (`sites.py`) a teacher of that site makes fresh pairs. The schedules and the hand-made
grids of the same solver and NFE start from the same noise, so that they are compared in pairs:

    eval_gain = mean loss of the best hand-made grid here / mean loss of the schedule

with the 95 % interval of `metrics.paired`. The grid is the one with the smallest mean on these
samples, which makes the gain smaller than it is, if anything.

    prepare   everything that is asked for, checked at every site before any work
    score     a generator over sites; what is done is kept, if there is a folder
    transfer  the same as one frame
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core.combined import written
from ..core.errors import InputError, unknown
from ..core.solver import make_solver
from ..core.user_code import FILE, PREFIX, absolute, content_in, label
from ..models import Model
from ..store.tables import frame_of
from .baselines import BASELINES, hand_made
from .curves import of_one_nfe
from .distances import open_distance
from .elsewhere import left_behind, table_in
from .file import Schedule, load_schedule
from .learning import check_student
from .ranges import MOST_SEEDS, SET_STRIDE
from .sampling import device_of
from .several import several
from .site_scores import Entry, Scored, Work, score_sites
from .sites import Site, Size, make_sites, repeated
from .starts import check_start, looks_at_pairs
from .teaching import Teacher

if TYPE_CHECKING:
    import pandas as pd

VERSION = 1
"""Part of every key: raise it when losses of the same settings change."""

MAPPINGS = ("lambda",)

HOW = ("device", "channels_last", "compile")
"""Options of a model that change how its samples are made, not which."""


@dataclass(frozen=True)
class Prepared:
    """Sites with the work at each, all of it checked."""

    sites: tuple[Site, ...]
    work: tuple[Work, ...]

    @property
    def network_evals(self) -> int:
        """Network evaluations of all sites, counted per sample; the teachers' included."""
        return sum(work.network_evals for work in self.work)


def prepare(
    schedules: Sequence[Schedule | str | os.PathLike[str]],
    models: Sequence[str | Model] = (),
    *,
    guidance: Sequence[float] = (),
    sizes: Sequence[Size] = (),
    dtypes: Sequence[str] = (),
    solvers: Sequence[str] = (),
    nfe: int | Sequence[int] = (),
    samples: int = 2000,
    repeats: int = 1,
    seed: int = 0,
    teacher: str | Teacher = "unipc-3/20/karras",
    distance: str | Mapping[str, float] = "l2",
    baselines: Sequence[str] = BASELINES,
    mapping: str | None = None,
    **options: Any,
) -> Prepared:
    """Everything that `transfer` is asked for; it takes the same arguments.

    Every model is opened once. Raises InputError for anything that cannot be used, with the site
    that it cannot be used at.
    """
    models, guidance, sizes, dtypes, solvers, nfe, baselines = map(
        several, (models, guidance, sizes, dtypes, solvers, nfe, baselines)
    )
    _check_counts(samples, repeats, seed)
    if mapping not in (None, *MAPPINGS):
        raise unknown("mapping", mapping, MAPPINGS)
    teacher = Teacher.parse(teacher) if isinstance(teacher, str) else teacher
    named = _named(schedules, nfe)
    for name in (teacher.start, *baselines):
        check_start(name)
    if not baselines:
        raise InputError("baselines: none is given; name at least one hand-made grid")
    repeated("baselines", baselines)
    repeated("solvers", map(absolute, solvers))
    for name in solvers:
        make_solver(name)
    distance = distance if isinstance(distance, str) else written(distance)
    sites = make_sites([s for _, s in named], models, guidance, sizes, dtypes, options)
    common = {
        "named": tuple(named),
        "samples": samples,
        "repeats": repeats,
        "seed": seed,
        "teacher": teacher,
        "distance": distance,
        "mapped": mapping is not None,
    }
    asked = _Asked(named, tuple(solvers), tuple(baselines), common)
    return Prepared(tuple(sites), tuple(_work_at(site, asked) for site in sites))


def score(
    prepared: Prepared, out: str | os.PathLike[str] | None = None, jobs: int = 1
) -> Iterator[Scored]:
    """Score one site after the other; yields the records of each in the table `transfers`.

    Args:
        out: folder or URL that keeps the losses of every row, so that what is there is not done
            again.
        jobs: sites at a time, each in a process of its own.

    A site whose teacher diverges, or that does not fit into memory, has rows with the status
    "failed"; the others go on.
    """
    if jobs < 1:
        raise InputError(f"jobs = {jobs}: at least 1 process is needed")
    if jobs > 1 and any(isinstance(site.model, Model) for site in prepared.sites):
        raise InputError(f"jobs = {jobs}: an open model stays in its process; give its name")
    yield from score_sites(prepared.sites, prepared.work, out, jobs)


# Most lines are the arguments and what each of them means.
def transfer(
    schedules: Schedule | str | Sequence[Schedule | str | os.PathLike[str]],
    models: Sequence[str | Model] = (),
    *,
    guidance: Sequence[float] = (),
    sizes: Sequence[Size] = (),
    dtypes: Sequence[str] = (),
    solvers: Sequence[str] = (),
    nfe: int | Sequence[int] = (),
    samples: int = 2000,
    repeats: int = 1,
    seed: int = 0,
    teacher: str | Teacher = "unipc-3/20/karras",
    distance: str | Mapping[str, float] = "l2",
    baselines: Sequence[str] = BASELINES,
    mapping: str | None = None,
    out: str | os.PathLike[str] | None = None,
    jobs: int = 1,
    **options: Any,
) -> pd.DataFrame:
    """Score schedules where they were not learned, against the hand-made grids there, in pairs.

    Every combination of models, guidance, sizes and dtypes is a site. What is not given stays as it
    was where the schedules were learned, or is the model's own.

    Args:
        schedules: schedules or their files.
        models: names of models ("base" is the schedules' own, "NAME=MODEL" gives one a name), or
            open models.
        guidance, sizes, dtypes: scales, (height, width), and dtypes of the network.
        solvers: solvers to run the schedules' knots and network times with, in as many evaluations;
            each schedule's own, with its own table, if not given.
        nfe: network evaluations, for schedules that are curves; each is scored at each of them.
        samples, repeats, seed: fresh samples of a set, and the number of sets.
        teacher: solver/NFE/grid of each site's teacher.
        distance: name of a distance, or a mapping of names to weights.
        baselines: hand-made grids, measured at each site with the same solver and NFE.
        mapping: "lambda" maps times to the same noise levels where a model has another noise
            schedule; such models are refused otherwise.
        out: folder that keeps what is done, so that the same call goes on where it ended.
        jobs: sites at a time, each in a process of its own.
        options: other options of all models, as for `load_model`.

    Returns a frame with a row per schedule and hand-made grid at each site and solver, the columns
    of the table `transfers`. `eval_gain` above 1 is nearer to the teacher than the best hand-made
    grid there; `verdict` says if the interval decides. Raises InputError before any work.

    >>> import ld3_dist as ld3
    >>> model = ld3.load_model("analytic:mixture-2d")
    >>> schedule = ld3.learn(model, "ddim", 3, ld3.teach(model, 12), starts=["karras"], epochs=2)
    >>> other = "wider=analytic:mixture-2d?std=0.2"
    >>> frame = ld3.transfer(schedule, ["base", other], samples=20, baselines=["karras"])
    >>> frame[frame["kind"] == "learned"]["site"].tolist()
    ['analytic:mixture-2d', 'wider']
    """
    prepared = prepare(
        several(schedules),
        models,
        guidance=guidance,
        sizes=sizes,
        dtypes=dtypes,
        solvers=solvers,
        nfe=nfe,
        samples=samples,
        repeats=repeats,
        seed=seed,
        teacher=teacher,
        distance=distance,
        baselines=baselines,
        mapping=mapping,
        **options,
    )
    return frame_of("transfers", [r for one in score(prepared, out, jobs) for r in one.records])


@dataclass(frozen=True)
class _Asked:
    """What is asked for at every site."""

    named: Sequence[tuple[str, Schedule]]
    solvers: tuple[str, ...]
    baselines: tuple[str, ...]
    common: Mapping[str, Any]

    def cells(self) -> Iterator[tuple[str, int, list[str]]]:
        """(solver, NFE, names of the schedules) of each cell."""
        found: dict[tuple[str, int], list[str]] = {}
        for name, schedule in self.named:
            if not self.solvers and schedule.solver.startswith(PREFIX):
                raise InputError(
                    f"{name}: its solver is code of a user's file ({schedule.solver}), which no "
                    "schedule file may run; name it in solvers (--solvers)"
                )
            for solver in self.solvers or (schedule.solver,):
                found.setdefault((solver, schedule.nfe), []).append(name)
        for (solver, nfe), names in found.items():
            yield solver, nfe, names


def _check_counts(samples: int, repeats: int, seed: int) -> None:
    for name, value in (("samples", samples), ("repeats", repeats), ("seed", seed)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise InputError(f"{name} = {value!r}: must be a whole number")
    if not 2 <= samples <= SET_STRIDE:
        raise InputError(f"samples = {samples}: give 2 to {SET_STRIDE:,}")
    if not 1 <= repeats <= MOST_SEEDS:
        raise InputError(f"repeats = {repeats}: give 1 to {MOST_SEEDS}")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed = {seed}: must be a whole number from 0 to 2^63 - 1")


def _named(
    schedules: Sequence[Schedule | str | os.PathLike[str]], nfe: Sequence[int]
) -> list[tuple[str, Schedule]]:
    """The schedules by names that differ: a file's own name, or the cell it was learned for.

    A curve is there at every NFE that is asked for, as "NAME at 7".
    """
    if not schedules:
        raise InputError("schedules: none is given; name a schedule file")
    repeated("nfe", nfe)
    given: list[tuple[str, Schedule]] = []
    for item in schedules:
        if isinstance(item, Schedule):
            schedule = item
            guided = "" if item.guidance in (None, 1) else f"-w{item.guidance:g}"
            name = f"{label(item.model)}{guided}-{label(item.solver)}-{item.nfe}"
        else:
            schedule = load_schedule(item)
            name = os.fspath(item).rpartition("/")[2].removesuffix(".json")
        given.append((name, schedule))
    if nfe and all(schedule.curve is None for _, schedule in given):
        names = ", ".join(name for name, _ in given)
        raise InputError(f"nfe: is given, and no schedule is a curve: {names}")
    found: dict[str, Schedule] = {}
    for single, schedule in (one for pair in given for one in _at_each(*pair, nfe)):
        number, name = 2, single
        while name in found:
            name, number = f"{single}-{number}", number + 1
        found[name] = schedule
    return list(found.items())


def _at_each(name: str, schedule: Schedule, nfe: Sequence[int]) -> list[tuple[str, Schedule]]:
    """A curve at every NFE; a schedule of one NFE as it is."""
    try:
        if schedule.curve is None or not nfe:
            return [(name, of_one_nfe(schedule, "say which (--nfe 4-10)"))]
        return [(f"{name} at {n}", schedule.at(n)) for n in nfe]
    except InputError as error:
        raise InputError(f"schedule {name}: {error}") from error


def _work_at(site: Site, asked: _Asked) -> Work:
    """The work at a site; everything that can be tried without running the network was tried."""
    model, common = site.open(), asked.common
    try:
        common["teacher"].tableau(model)
        open_distance(common["distance"], model, str(device_of(model)))
        facts = {
            "model": model.hash,
            "conditioning": model.conditioning,
            "guidance": model.guidance,
            "options": {k: v for k, v in site.options.items() if k not in HOW},
            "teacher": str(common["teacher"]),
            "distance": [common["distance"], content_in(common["distance"])],
            "seed": common["seed"],
            "samples": common["samples"],
            "version": VERSION,
        }
        entries = list(_entries(model, asked, facts))
    except InputError as error:
        raise InputError(f"{site}: {error}") from error
    return Work(
        **common,
        model_hash=model.hash,
        conditioning=model.conditioning,
        guidance=model.guidance,
        entries=tuple(entries),
    )


def _entries(model: Model, asked: _Asked, facts: Mapping[str, Any]) -> Iterator[Entry]:
    """Schedules and hand-made grids of every cell at a model; each table is made once."""
    schedules, mapped = dict(asked.named), asked.common["mapped"]
    for solver, nfe, names in asked.cells():
        student = check_student(solver, nfe)
        cell = {"solver": [label(solver), content_in(solver)], "nfe": nfe} | dict(facts)
        for grid in asked.baselines:
            if not looks_at_pairs(grid):
                hand_made(grid, model, student, nfe)
            key = _key(cell | {"grid": [label(grid), _content(grid)]})
            yield Entry(key, "baseline", grid, solver, nfe)
        for name in names:
            schedule = schedules[name]
            try:
                table = table_in(schedule, model, solver, mapped)
            except InputError as error:
                raise InputError(f"schedule {name}: {error}") from error
            if not all(bool(torch.isfinite(v).all()) for v in (table.state, table.outputs)):
                raise InputError(f"schedule {name}: its coefficients in {solver} are not finite")
            said = "; ".join(left_behind(schedule, model, solver))
            text = json.dumps([schedule.to_json(), mapped])
            yield Entry(_key(cell | {"schedule": text}), "learned", name, solver, nfe, said)


def _content(grid: str) -> str | None:
    """The content of the file behind the name of a grid; None if there is no file."""
    place = Path(grid.removeprefix(FILE)).expanduser()
    if grid.startswith(FILE) or (grid.endswith(".json") and not grid.startswith(PREFIX)):
        if place.is_file():
            return hashlib.sha256(place.read_bytes()).hexdigest()
        return load_schedule(grid.removeprefix(FILE)).to_json()
    return content_in(grid)


def _key(settings: Mapping[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True, default=str)
    return "transfer-" + hashlib.sha256(text.encode()).hexdigest()[:16]

"""The schedule file: a learned or hand-made time grid, its coefficient table and its provenance.

    y_i = state_i x_T + sum_{j<i} outputs_ij m_j,   m_j = D(y_j, evals_j),   x_T = prior_scale *
    unit noise,   y_E = x_0

The numbers in the file suffice to run it anywhere. It is JSON with one key per line. Every float is
written so that reading it gives the same float64.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.denoiser import PREDICTIONS, map_condition
from ..core.errors import InputError, unknown
from ..core.noise import NoiseSchedule
from ..core.text import decode_text, parse_json, read_text
from ..core.user_code import PREFIX
from ..store.opening import open_storage
from ..store.storage import Storage
from .curves import check_curve, of_one_nfe, schedule_at
from .noise import BUILT_IN, LEVELS, check_same_noise, noise_from_dict, noise_to_dict, same_noise
from .schema import check_body

if TYPE_CHECKING:
    from torch import Tensor

    from ..core.solver import Solver, Tableau
    from ..models import Model

__all__ = [
    "FORMAT",
    "Schedule",
    "check_same_noise",
    "load_schedule",
    "noise_from_dict",
    "noise_to_dict",
    "parse_schedule",
    "read_schedule",
    "same_noise",
]

FORMAT = 2
"""Format 1 had neither order nor prediction; such files still load."""

LIMIT = 20_000_000
"""The most bytes of a schedule file; a table of a thousand evaluations has fewer."""

NETWORK_PREDICTIONS = (*PREDICTIONS, "-velocity")
"""The predictions of networks; -velocity points from noise to data."""

Numbers = Mapping[str, float | None]


@dataclass(frozen=True)
class Schedule:
    """A schedule that validates itself; raises InputError naming the key and the value."""

    knots: tuple[float, ...]
    """Integration times t_0 > … > t_N."""
    evals: tuple[float, ...]
    """Network times, one per evaluation: E of them."""
    state: tuple[float, ...]
    """E + 1 coefficients of x_T."""
    outputs: tuple[tuple[float, ...], ...]
    """E + 1 rows of E coefficients of the network's outputs, strictly lower triangular."""
    noise: Mapping[str, Any]
    """Noise schedule of the model: its name and its parameters (see `noise_to_dict`)."""
    prior_scale: float
    """x_T = prior_scale * unit noise."""
    solver: str
    nfe: int
    model: str
    order: int | None = None
    """Order of the solver. It follows from the solver's name if it is not given.

    A solver of a user's own file needs it.
    """
    prediction: str | None = None
    """The prediction of the model's network, one of NETWORK_PREDICTIONS.

    The table itself is for predictions of x_0.
    """
    model_hash: str | None = None
    conditioning: str | None = None
    guidance: float | None = None
    shift: float | None = None
    coefficients: bool = False
    """True if the solver's coefficients were learned too."""
    procedure: str | None = None
    """Procedure of learning."""
    start: str | None = None
    """Grid that learning started from."""
    losses: Numbers = field(default_factory=dict)
    metrics: Numbers = field(default_factory=dict)
    baselines: Mapping[str, Numbers] = field(default_factory=dict)
    """Losses and metrics of the hand-made grids of the same cell, by their names."""
    seeds: Mapping[str, int | None] = field(default_factory=dict)
    versions: Mapping[str, str | None] = field(default_factory=dict)
    experiment: str | None = None
    """Fingerprint of the experiment."""
    row: str | None = None
    """Key of the row it belongs to."""
    curve: Mapping[str, Any] | None = None
    """A curve from which `at` reads the grid of any NFE; this one is that of nfe evaluations."""
    format: int = FORMAT

    def __post_init__(self) -> None:
        body = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        check_body(body)
        for key in ("knots", "evals", "state"):
            object.__setattr__(self, key, tuple(map(float, body[key])))
        rows = tuple(tuple(map(float, row)) for row in body["outputs"])
        object.__setattr__(self, "outputs", rows)
        object.__setattr__(self, "prior_scale", float(self.prior_scale))
        self._check_solver()
        self._check_shapes()
        self._check_values()
        self._check_noise()
        if self.curve is not None:
            check_curve(self.curve)

    def _check_solver(self) -> None:
        from ..core.solver import make_solver

        # the solver of a user's file is never imported here: a file must not choose code to run
        own = self.solver.startswith(PREFIX)
        order = self.order if own else make_solver(self.solver).order
        if self.order not in (None, order):
            raise InputError(f"order = {self.order!r}, but the order of {self.solver} is {order}")
        object.__setattr__(self, "order", order)
        if self.prediction not in (None, *NETWORK_PREDICTIONS):
            raise unknown("prediction", self.prediction, NETWORK_PREDICTIONS)

    def _check_shapes(self) -> None:
        E = self.nfe
        if len(self.evals) != E:
            raise InputError(
                f"evals holds {len(self.evals)} network times, nfe is {E}; they must agree"
            )
        if len(self.state) != E + 1:
            raise InputError(f"state holds {len(self.state)} numbers, need nfe + 1 = {E + 1}")
        if len(self.outputs) != E + 1:
            raise InputError(f"outputs has {len(self.outputs)} rows, need nfe + 1 = {E + 1}")
        for i, row in enumerate(self.outputs):
            if len(row) != E:
                raise InputError(f"outputs[{i}] holds {len(row)} numbers, need nfe = {E}")

    def _check_values(self) -> None:
        for i in range(1, len(self.knots)):
            if not self.knots[i] < self.knots[i - 1]:
                raise InputError(
                    f"knots must decrease, but knots[{i}] = {self.knots[i]} after knots[{i - 1}] "
                    f"= {self.knots[i - 1]}"
                )
        for i, row in enumerate(self.outputs):
            for j in range(i, self.nfe):
                if row[j] != 0.0:
                    raise InputError(
                        f"outputs must be strictly lower triangular, but outputs[{i}][{j}] = "
                        f"{row[j]}"
                    )
        if self.state[0] != 1.0:
            raise InputError(f"state[0] = {self.state[0]}, but y_0 = x_T needs 1")

    def _check_noise(self) -> None:
        """Check that times lie inside the noise schedule, and that levels are there if needed."""
        low, high = self.noise.get("t_min", 0.0), self.noise.get("t_max", float("inf"))
        if self.noise["name"] in BUILT_IN:
            built = self.noise_schedule
            low, high = built.t_min, built.t_max
            for key in LEVELS:
                if key in self.noise:
                    raise InputError(
                        f"noise.{key}: the levels of noise schedule {self.noise['name']} are "
                        "computed, a file does not hold them; remove the key"
                    )
        elif not all(key in self.noise for key in LEVELS):
            complete = noise_to_dict(self.noise_schedule, self.knots)
            object.__setattr__(self, "noise", complete)
        self._check_levels()
        slack = 1e-6 * max(1.0, high if high < float("inf") else 1.0)
        for key in ("knots", "evals"):
            for i, time in enumerate(getattr(self, key)):
                if not low - slack <= time <= high + slack:
                    raise InputError(
                        f"{key}[{i}] = {time}: lies outside the noise schedule "
                        f"{self.noise['name']}, whose times go from {low:g} to {high:g}"
                    )

    def _check_levels(self) -> None:
        """Check the levels that are kept at the knots: one each, and less noise at every knot."""
        for key in LEVELS:
            if len(self.noise.get(key, self.knots)) != len(self.knots):
                raise InputError(
                    f"noise.{key} holds {len(self.noise[key])} levels, need one per knot: "
                    f"{len(self.knots)}"
                )
        if not all(key in self.noise for key in LEVELS):
            return
        alpha, sigma = (self.noise[key] for key in LEVELS)
        for i, (a, s) in enumerate(zip(alpha, sigma, strict=True)):
            # alpha may be 0 where sampling begins, sigma where it ends
            for key, value, at in (("alpha", a, 0), ("sigma", s, len(self.knots) - 1)):
                if value < 0 or (value == 0 and i != at):
                    raise InputError(f"noise.{key}[{i}] = {value}: a level must be positive")
            if i and a * sigma[i - 1] < alpha[i - 1] * s:
                raise InputError(
                    f"noise.alpha / noise.sigma must grow from knot to knot, but falls from "
                    f"{alpha[i - 1] / sigma[i - 1]:g} to {a / s:g} at knots[{i}]"
                )

    @property
    def noise_schedule(self) -> NoiseSchedule:
        """The noise schedule as an object.

        Raises InputError if it is a class of a user's file that is not imported. Neither the table
        nor the
        levels at the knots need it.
        """
        return noise_from_dict(self.noise)

    @property
    def tableau(self) -> Tableau:
        """The table as float64 tensors, for x_T = prior_scale * unit noise of this schedule.

        `table_for` gives the one for a model's own x_T, which `core.sample.sample` takes.
        """
        import torch

        from ..core.solver import Tableau

        evals, state, outputs = (
            torch.tensor(v, dtype=torch.float64) for v in (self.evals, self.state, self.outputs)
        )
        return Tableau(evals, state, outputs)

    def table_for(self, model: Model) -> Tableau:
        """The table in units of a model's own prior_scale, ready for `core.sample.sample`.

        It differs from `tableau` in y_0 = state_0 x_T where a start time was learned: the file's
        prior_scale is then that of its first knot. Raises InputError for a model of another noise
        schedule.
        """
        from ..core.solver import Tableau

        noise = model.denoiser.noise
        of_one_nfe(self, "choose one with schedule.at(7)")
        check_same_noise(self, noise, model.id)
        table, level = self.tableau, self.prior_scale / noise.prior_scale
        return Tableau(table.evals, level * table.state, table.outputs, noise)

    def at(self, nfe: int, solver: Solver | None = None) -> Schedule:
        """The schedule of nfe evaluations, read from the curve; itself if there is no curve.

        Args:
            nfe: any number that the solver can spend, also one that was not learned on.
            solver: for a curve of a solver of a user's own file.

        Raises InputError for fewer evaluations than a step of the solver takes, for more than
        MOST_NFE, and for a schedule without a curve that is of another NFE.

        >>> import ld3_dist as ld3
        >>> model = ld3.load_model("analytic:mixture-2d")
        >>> pairs = ld3.teach(model, 8)
        >>> curve = ld3.learn(model, "ddim", [2, 4], pairs, procedure="curve", epochs=1)
        >>> curve.at(3).sample(model, n=5).shape
        torch.Size([5, 2])
        """
        return schedule_at(self, nfe, solver)

    def sample(self, model: Model, n: int = 16, *, seed: int = 0) -> Tensor:
        """n decoded samples [n, …] of a model, on its device; sample i is the same for every n.

        Raises InputError for a model of another noise schedule.

        >>> import ld3_dist as ld3
        >>> model = ld3.load_model("analytic:mixture-2d")
        >>> schedule = ld3.learn(model, "ddim", 2, ld3.teach(model, 8), starts=["karras"], epochs=1)
        >>> schedule.sample(model, n=3, seed=1).shape
        torch.Size([3, 2])
        """
        from ..models.loaded import check_model
        from .sampling import device_of, draw_inputs, make_samples

        check_model(model)
        if n < 1:
            raise InputError(f"n = {n}: at least one sample is needed")
        home = device_of(model)
        z, condition = draw_inputs(model, seed, range(n))
        given = map_condition(lambda c: c.to(home), condition)
        return make_samples(model, self.table_for(model), z.to(home), given)

    def to_json(self) -> str:
        """The text of the file."""
        body = {"format": self.format} | {
            f.name: getattr(self, f.name) for f in fields(self) if f.name != "format"
        }
        if self.curve is None:
            del body["curve"]
        return (
            "{\n"
            + ",\n".join(f"  {json.dumps(key)}: {_text(key, value)}" for key, value in body.items())
            + "\n}\n"
        )

    def save(self, place: str | os.PathLike[str]) -> None:
        """Write the file (path or URL), atomically."""
        folder, name = _split(place)
        folder.write_bytes(name, self.to_json().encode())

    def write(self, storage: Storage, name: str) -> None:
        """Write it as a file of a storage, atomically."""
        storage.write_bytes(name, self.to_json().encode())


def load_schedule(place: str | os.PathLike[str]) -> Schedule:
    """Read a schedule file (path or URL). Raises InputError naming the file and the key.

    >>> import ld3_dist as ld3
    >>> model = ld3.load_model("analytic:mixture-2d")
    >>> schedule = ld3.learn(model, "ddim", 2, ld3.teach(model, 8), starts=["karras"], epochs=1)
    >>> schedule.save("mine.json")
    >>> ld3.load_schedule("mine.json") == schedule
    True
    """
    folder, name = _split(place)
    return read_schedule(folder, name)


def read_schedule(storage: Storage, name: str) -> Schedule:
    """Read a schedule file of a storage."""
    where = storage.address(name)
    try:
        if storage.local_path is not None and storage.exists(name):
            text = read_text(storage.local_path / name, "a schedule file", LIMIT)
        else:
            text = decode_text(storage.read_bytes(name), where)
    except FileNotFoundError:
        raise InputError(f"{where}: no such schedule file") from None
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error}); give a schedule file") from error
    try:
        return parse_schedule(text)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def parse_schedule(text: str) -> Schedule:
    """The text of a schedule file -> Schedule; InputError naming the key that is wrong."""
    try:
        body = parse_json(text)
    except InputError as error:
        raise InputError(f"not a schedule file: {error}") from error
    if not isinstance(body, dict) or "format" not in body:
        raise InputError("not a schedule file (no key 'format')")
    version = body["format"]
    if isinstance(version, int) and version > FORMAT:
        raise InputError(
            f"format {version!r} is not one this version reads (up to {FORMAT}); update ld3_dist"
        )
    check_body(body)
    return replace(Schedule(**body), format=FORMAT)


def _split(place: str | os.PathLike[str]) -> tuple[Storage, str]:
    """A file's path or URL -> the storage of its folder, and its name."""
    text = os.fspath(place)
    if "://" in text:
        address, mark, options = text.partition("?")
        folder, _, name = address.rpartition("/")
        return open_storage(f"{folder}{mark}{options}"), name
    path = Path(text).expanduser()
    return open_storage(path.parent), path.name


def _plain(value: Any) -> Any:
    """The same value with the lists and mappings that JSON has."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _text(key: str, value: Any) -> str:
    """The JSON text of a value: a matrix gets one line per row, everything else one line.

    json writes the shortest text of a float that reads back exactly.
    """
    if key == "outputs":
        return (
            "[\n" + ",\n".join("    " + json.dumps(row, allow_nan=False) for row in value) + "\n  ]"
        )
    return json.dumps(value, allow_nan=False, ensure_ascii=False)

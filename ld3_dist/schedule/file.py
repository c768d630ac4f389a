"""The schedule file: a learned (or hand-made) time grid with its coefficient table, and where it
came from.

    y_i = state_i x_T + sum_{j<i} outputs_ij m_j,   m_j = D(y_j, evals_j),   x_T = prior_scale *
    unit noise,   y_E = x_0

so the numbers in the file suffice to run it anywhere. JSON, one key a line, every float written so
that reading it gives the same float64."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import noise as noises
from ..core.denoiser import PREDICTIONS, map_condition
from ..core.errors import InputError, unknown
from ..store.storage import Storage, open_storage

if TYPE_CHECKING:
    from torch import Tensor

    from ..core.solver import Tableau
    from ..models import Model

FORMAT = 2
"""1 had neither order nor prediction; such files still load."""

NETWORK_PREDICTIONS = (*PREDICTIONS, "-velocity")
"""What a network may predict; -velocity points from noise to data."""

Numbers = Mapping[str, float | None]

_SCHEDULES: dict[str, type[noises.NoiseSchedule]] = {
    "edm": noises.EDM,
    "vp-linear": noises.VPLinear,
    "vp-cosine": noises.VPCosine,
    "vp-discrete": noises.VPDiscrete,
    "flow": noises.FlowMatching,
}


@dataclass(frozen=True)
class Schedule:
    """A schedule that validates itself; raises InputError naming the key and the value."""

    knots: tuple[float, ...]
    """Integration times t_0 > … > t_N."""
    evals: tuple[float, ...]
    """Network times, one an evaluation: E of them."""
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
    """Order of the solver; follows from its name where it is not given."""
    prediction: str | None = None
    """What the model's network predicts, one of NETWORK_PREDICTIONS. The table itself is of
    predictions of x_0.
    """
    model_hash: str | None = None
    conditioning: str | None = None
    guidance: float | None = None
    shift: float | None = None
    coefficients: bool = False
    """Were the solver's coefficients learned too?"""
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
    format: int = FORMAT

    def __post_init__(self) -> None:
        for key in ("knots", "evals", "state"):
            object.__setattr__(self, key, _vector(key, getattr(self, key)))
        rows = _rows("outputs", self.outputs)
        object.__setattr__(
            self, "outputs", tuple(_vector(f"outputs[{i}]", row) for i, row in enumerate(rows))
        )
        for key, kind in (
            ("solver", str),
            ("model", str),
            ("nfe", int),
            ("noise", Mapping),
            ("coefficients", bool),
        ):
            if not isinstance(getattr(self, key), kind):
                raise InputError(
                    f"{key} must be of type {kind.__name__}, got {getattr(self, key)!r}"
                )
        self._check_solver()
        object.__setattr__(self, "prior_scale", _vector("prior_scale", [self.prior_scale])[0])
        if "name" not in self.noise:
            raise InputError("noise has no key 'name'")
        self._check_shapes()
        self._check_values()

    def _check_solver(self) -> None:
        from ..core.solver import make_solver

        order = make_solver(self.solver).order
        if self.order not in (None, order):
            raise InputError(f"order = {self.order!r}, but the order of {self.solver} is {order}")
        object.__setattr__(self, "order", order)
        if self.prediction not in (None, *NETWORK_PREDICTIONS):
            raise unknown("prediction", self.prediction, NETWORK_PREDICTIONS)

    def _check_shapes(self) -> None:
        E = self.nfe
        if E < 1 or len(self.evals) != E:
            raise InputError(
                f"evals holds {len(self.evals)} network times, nfe is {E}; they must agree and "
                f"be at least 1"
            )
        if len(self.state) != E + 1:
            raise InputError(f"state holds {len(self.state)} numbers, need nfe + 1 = {E + 1}")
        if len(self.outputs) != E + 1:
            raise InputError(f"outputs has {len(self.outputs)} rows, need nfe + 1 = {E + 1}")
        for i, row in enumerate(self.outputs):
            if len(row) != E:
                raise InputError(f"outputs[{i}] holds {len(row)} numbers, need nfe = {E}")
        if len(self.knots) < 2:
            raise InputError(f"knots holds {len(self.knots)} times, need at least 2")

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
        for i, time in enumerate(self.evals):
            if time < 0:
                raise InputError(f"evals[{i}] = {time} is negative")

    @property
    def noise_schedule(self) -> noises.NoiseSchedule:
        """The noise schedule as an object."""
        return noise_from_dict(self.noise)

    @property
    def tableau(self) -> Tableau:
        """The table as float64 tensors, ready for `core.sample.sample`."""
        import torch

        from ..core.solver import Tableau

        evals, state, outputs = (
            torch.tensor(v, dtype=torch.float64) for v in (self.evals, self.state, self.outputs)
        )
        return Tableau(evals, state, outputs)

    def table_for(self, model: Model) -> Tableau:
        """The table, for a model; InputError for a model of another noise schedule."""
        ours, theirs = model.denoiser.noise, self.noise_schedule
        if not noises.same_noise(ours, theirs):
            raise InputError(
                f"the schedule of {self.model} has times of {noises.describe(theirs)}, {model.id} "
                f"has {noises.describe(ours)}; use a schedule that was learned for this model"
            )
        return self.tableau

    def sample(self, model: Model, n: int = 16, *, seed: int = 0) -> Tensor:
        """n decoded samples [n, …] of a model, on its device; sample i is the same for every n.

        Raises InputError for a model of another noise schedule.

        >>> import ld3_dist as ld3
        >>> model = ld3.load_model("analytic:mixture-2d")
        >>> schedule = ld3.learn(model, "ddim", 2, ld3.teach(model, 8), starts=["karras"], epochs=1)
        >>> schedule.sample(model, n=3, seed=1).shape
        torch.Size([3, 2])
        """
        from .sampling import device_of, draw_inputs, make_samples

        home = device_of(model)
        z, condition = draw_inputs(model, seed, range(n))
        given = map_condition(lambda c: c.to(home), condition)
        return make_samples(model, self.table_for(model), z.to(home), given)

    def to_json(self) -> str:
        """The text of the file."""
        body = {"format": self.format} | {
            f.name: getattr(self, f.name) for f in fields(self) if f.name != "format"
        }
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
    """Read a schedule file (path or URL). Raises InputError naming the file and the key."""
    folder, name = _split(place)
    return read_schedule(folder, name)


def read_schedule(storage: Storage, name: str) -> Schedule:
    """Read a schedule file of a storage."""
    where = storage.address(name)
    try:
        return parse_schedule(storage.read_bytes(name).decode())
    except FileNotFoundError:
        raise InputError(f"{where}: no such schedule file") from None
    except (InputError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{where}: {error}") from error


def parse_schedule(text: str) -> Schedule:
    """The text of a schedule file -> Schedule."""
    try:
        body = json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise InputError(f"not a schedule file, or cut short: {error}") from error
    if not isinstance(body, dict) or "format" not in body:
        raise InputError("not a schedule file (no key 'format')")
    if not isinstance(body["format"], int) or body["format"] > FORMAT:
        raise InputError(
            f"format {body['format']!r} is not one this version reads (up to {FORMAT}); update "
            f"ld3_dist"
        )
    known = [f.name for f in fields(Schedule)]
    for key in body:
        if key not in known:
            raise unknown("key", key, known)
    for key in (
        "knots",
        "evals",
        "state",
        "outputs",
        "noise",
        "prior_scale",
        "solver",
        "nfe",
        "model",
    ):
        if key not in body:
            raise InputError(f"key {key!r} is missing")
    body["format"] = FORMAT
    return Schedule(**body)


def noise_to_dict(noise: noises.NoiseSchedule) -> dict[str, Any]:
    """Name and parameters of a noise schedule, as the schedule file keeps them."""
    if type(noise) not in _SCHEDULES.values():
        raise InputError(
            f"noise schedule {type(noise).__name__} cannot be written to a schedule file"
        )
    parameters = {f.name: getattr(noise, f.name) for f in fields(noise) if f.name != "name"}  # type: ignore[arg-type]
    listed = {k: v if isinstance(v, (int, float)) else v.tolist() for k, v in parameters.items()}
    return {
        "name": next(name for name, kind in _SCHEDULES.items() if kind is type(noise)),
        **listed,
    }


def noise_from_dict(described: Mapping[str, Any]) -> noises.NoiseSchedule:
    """The inverse of `noise_to_dict`; InputError for an unknown name or parameter."""
    name = described.get("name")
    if name not in _SCHEDULES:
        raise unknown("noise schedule", name, list(_SCHEDULES))
    try:
        return _SCHEDULES[name](**{key: value for key, value in described.items() if key != "name"})
    except (TypeError, ValueError) as error:
        raise InputError(f"noise schedule {name!r}: {error}") from error


def _split(place: str | os.PathLike[str]) -> tuple[Storage, str]:
    """A file's path or URL -> the storage of its folder, and its name."""
    text = os.fspath(place)
    if "://" in text:
        address, mark, options = text.partition("?")
        folder, _, name = address.rpartition("/")
        return open_storage(f"{folder}{mark}{options}"), name
    path = Path(text).expanduser()
    return open_storage(path.parent), path.name


def _rows(key: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{key} must be a list, got {value!r}")
    return value


def _vector(key: str, value: Any) -> tuple[float, ...]:
    for i, number in enumerate(_rows(key, value)):
        good = (
            isinstance(number, (int, float))
            and not isinstance(number, bool)
            and math.isfinite(number)
        )
        if not good:
            raise InputError(f"{key}[{i}] must be a finite number, got {number!r}")
    return tuple(float(number) for number in value)


def _refuse(constant: str) -> None:
    raise InputError(f"{constant} is not a number a schedule may hold")


def _text(key: str, value: Any) -> str:
    """A matrix gets one line a row, everything else one line; json writes the shortest exact repr
    of a float.
    """
    if key == "outputs":
        return (
            "[\n" + ",\n".join("    " + json.dumps(row, allow_nan=False) for row in value) + "\n  ]"
        )
    return json.dumps(value, allow_nan=False, ensure_ascii=False)

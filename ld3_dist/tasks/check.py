"""Everything in the output folder of a sweep, verified from the files alone.

    experiment.json     is there and readable, and so are the experiments that ran
    rows                readable; every file holds the rows that its name says; every cell with
                        learned rows has its hand-made grids; no trial failed
    schedules           one for each learned row that came out ok, and equal to it
    evaluations         readable, and there for the rows that a sweep evaluates
    pairs               shards by their own digests and by length and hash in the manifest
    samples             readable; there for cells of images
    failures, studies   readable
    parts, checkpoints, temporary files     left over from a process that was killed

Models are not opened, so that a folder can be checked on any machine. The next run of the sweep
makes again what `remedy` says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.errors import InputError
from ..core.text import file_name
from ..core.user_code import label
from ..experiment.plan import digest
from ..experiment.sections import BestPer
from ..store.columns import IDENTITY
from ..store.lineage import CLAIM, FOLDER, current, lineage_name, read_claim, read_lineage
from ..store.pairs import BadShard, Manifest, read_shard
from ..store.results import load_results
from ..store.sealed import unseal
from ..store.segments import is_segment, problems
from ..store.storage import Storage
from ..store.tables import SUFFIX, read_records, read_table
from .curves import curve_is_there
from .schedules import complaint, schedule_name
from .scored import grids_of, learned_of

Rows = list[dict[str, Any]]

AGAIN = "the next sweep makes it again"
LEARN = "the next sweep learns its trial again"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong in an output folder.

    file: its name in the folder.
    problem: what is wrong with it.
    remedy: what the next sweep does about it, or what you can do.
    """

    file: str
    problem: str
    remedy: str


def check(storage: Storage) -> Iterator[Finding]:
    """Everything that is wrong in an output folder, in the order of its parts.

    Raises InputError where there is no folder, or no sweep in it.
    """
    if not storage.exists():
        raise InputError(f"{storage.url}: no such folder; give the output folder of a sweep")
    if not any(storage.exists(name) for name in ("experiment.json", "rows", "pairs")):
        raise InputError(f"{storage.url}: holds no sweep; give the output folder of one")
    experiment: dict[str, Any] = {}
    yield from _experiment(storage, experiment)
    places: dict[str, str] = {}
    yield from _tables(storage, places)
    rows: Rows = []
    if storage.exists("rows"):
        rows = [dict(row) for row in load_results(storage).to_dict("records")]
        yield from _rows(rows, places)
        yield from _schedules(storage, rows)
        yield from _evaluations(storage, rows, experiment)
    yield from _pairs(storage, rows)
    yield from _samples(storage)
    yield from _studies(storage)
    yield from _leftovers(storage)


def _experiment(storage: Storage, found: dict[str, Any]) -> Iterator[Finding]:
    """Check the experiments of a folder and put the current one into `found`."""
    names = storage.list(FOLDER)
    for name in names:
        stem = name.removeprefix(f"{FOLDER}/").removesuffix(".json")
        if not name.endswith(".json"):
            yield Finding(name, "is no part of a sweep", "remove it")
        elif read_lineage(storage, stem) is None:
            yield Finding(name, "is damaged, or describes another experiment", AGAIN)
    found |= current(storage)
    if not storage.exists(CLAIM):
        yield Finding(CLAIM, "is missing", AGAIN)
        return
    claim = read_claim(storage)
    if claim is None:
        yield Finding(CLAIM, "is damaged, or does not name an experiment", AGAIN)
    elif "current" in claim and lineage_name(claim["current"]) not in names:
        yield Finding(lineage_name(claim["current"]), "is missing", AGAIN)


def _tables(storage: Storage, places: dict[str, str]) -> Iterator[Finding]:
    """Check that the files of tables can be read and hold the rows that their names say.

    Args:
        places: takes the file of every row, by the row's key.
    """
    remedies = {
        "rows": AGAIN,
        "evaluations": f"{AGAIN}, if it is still wanted; else remove it",
        "losses": f"{AGAIN}, if it is still wanted; else remove it",
        "failures": "remove it: the record of an earlier failure is lost",
    }
    for folder in IDENTITY:
        for name, problem in problems(storage, folder):
            yield Finding(name, problem, "the next sweep merges what is there, and makes the rest")
    for folder, remedy in remedies.items():
        for name in storage.list(folder):
            if is_segment(name):
                continue
            stem = name.removeprefix(f"{folder}/").removesuffix(SUFFIX)
            if not name.endswith(SUFFIX):
                yield Finding(name, "is no part of a sweep", "remove it")
                continue
            try:
                records = read_records(storage, folder, stem)
            except InputError as error:
                yield Finding(name, str(error), "update ld3_dist")
                continue
            if records is None:
                yield Finding(name, "cannot be read", remedy)
            elif folder != "failures" and not _named(folder, stem, records):
                yield Finding(name, "holds what belongs to another file", remedy)
            elif folder == "rows":
                places |= {str(record["key"]): name for record in records}


def _named(folder: str, stem: str, records: list[dict[str, Any]]) -> bool:
    """True if the records of a file are those that its name says."""
    keys = [str(record["key"]) for record in records]
    if folder == "rows":
        baselines = stem.startswith("baseline-") and stem.endswith(f"-{digest(keys)}")
        trial = records[0]["trial"] if records else None
        return baselines or stem == digest([trial, keys])
    evaluations = [f"{file_name(str(r['key']))}-{r['evaluation']}" for r in records]
    older = (file_name(keys[0]), keys[0].replace(":", "_")) if keys else ()
    return len(set(keys)) == 1 and stem in (*evaluations, *older)


def _rows(rows: Rows, places: dict[str, str]) -> Iterator[Finding]:
    for row in rows:
        if row["status"] == "failed":
            file = places.get(str(row["key"]), "rows")
            yield Finding(file, f"the trial failed: {row['message']}", "the next sweep tries again")
    learned, grids = (
        {row["cell"] for row in rows if row["kind"] == kind} for kind in ("learned", "baseline")
    )
    for cell in sorted(learned - grids):
        yield Finding("rows", f"cell {cell} has no hand-made grids", AGAIN)


def _schedules(storage: Storage, rows: Rows) -> Iterator[Finding]:
    known = set()
    for row in rows:
        if (row["kind"], row["status"]) != ("learned", "ok"):
            continue
        name = schedule_name(row["key"])
        known.add(name)
        if reason := complaint(storage, row):
            problem = reason.removeprefix(f"{storage.address(name)}: ")
            config = json.loads(row["settings"]).get("learn", {})
            remedy = LEARN if config.get("coefficients") else f"{AGAIN}, from its row"
            yield Finding(name, problem, remedy)
    curves = {row["family"] for row in rows if isinstance(row.get("family"), str)}
    known |= set(map(schedule_name, curves))
    for curve in sorted(curves):
        if not curve_is_there(storage, curve):
            yield Finding(schedule_name(curve), "is no curve, or is missing", LEARN)
    for name in storage.list("schedules"):
        if name not in known:
            yield Finding(name, "belongs to no row", f"{LEARN}, or nothing needs it: remove it")


def _evaluations(storage: Storage, rows: Rows, experiment: dict[str, Any]) -> Iterator[Finding]:
    """Rows and teachers whose evaluation is missing, where a sweep has begun to evaluate."""
    table = read_table(storage, "evaluations", ["key", "evaluation"])
    wanted = experiment.get("evaluation")
    asked = [name for name in table["evaluation"] if isinstance(wanted, list) and name in wanted]
    there = {key for key, name in table.itertuples(index=False) if not asked or name in asked}
    kept = set(read_table(storage, "losses", ["key"])["key"])
    settings = experiment.get("settings", {})
    if not there and not storage.list("evaluations"):
        return
    suffix = f"-{wanted[0]}{SUFFIX}" if isinstance(wanted, list) and len(wanted) == 1 else SUFFIX
    for row in evaluated_rows(rows, settings):
        if row["key"] not in there:
            yield Finding(f"evaluations/{file_name(row['key'])}{suffix}", "is missing", AGAIN)
        elif row["key"] not in kept:
            yield Finding(f"losses/{file_name(row['key'])}{suffix}", "is missing", AGAIN)
    for teacher in sorted(_teachers(row for row in rows if _own_teacher(row, settings))):
        name = f"teacher:{teacher}"
        if name not in there:
            yield Finding(f"evaluations/{file_name(name)}{suffix}", "is missing", AGAIN)


def evaluated_rows(rows: Rows, settings: Mapping[str, Any]) -> Rows:
    """Rows that a sweep with these settings evaluates."""
    evaluate = settings.get("evaluate", {})
    wanted = evaluate.get("rows") or ("all" if settings.get("ablate") else "best")
    if isinstance(wanted, dict):
        wanted = BestPer(**wanted)
    distance = settings.get("distance")
    own = [row for row in rows if _own_teacher(row, settings)]
    return [*grids_of(own, distance and label(distance), None), *learned_of(rows, wanted)]


def _own_teacher(row: dict[str, Any], settings: Mapping[str, Any]) -> bool:
    """True for a row with the experiment's own teacher, which everything is evaluated with."""
    teacher = settings.get("teacher", {})
    return all(
        row.get(f"teacher_{name}") in (None, label(value) if isinstance(value, str) else value)
        for name, value in teacher.items()
    )


def _teachers(rows: Iterable[dict[str, Any]]) -> set[str]:
    return {row["teacher"] for row in rows if isinstance(row["teacher"], str)}


def _pairs(storage: Storage, rows: Rows) -> Iterator[Finding]:
    files = storage.list("pairs", recursive=True)
    teachers = {name.split("/")[1] for name in files}
    for key in sorted(_teachers(rows) - teachers):
        yield Finding(f"pairs/{key}", "is missing, and rows were learned from it", AGAIN)
    for key in sorted(teachers):
        inside = [name.rpartition("/")[2] for name in files if name.split("/")[1] == key]
        yield from _shards(storage.child(f"pairs/{key}"), f"pairs/{key}", key, inside)


def _shards(folder: Storage, where: str, key: str, inside: list[str]) -> Iterator[Finding]:
    try:
        manifest = Manifest.load(folder)
        problem = "is missing" if manifest is None else ""
    except (InputError, ValueError, AttributeError, TypeError):
        manifest, problem = None, "is damaged"
    if problem:
        yield Finding(f"{where}/manifest.json", problem, AGAIN)
    elif manifest is not None and digest(dict(manifest.meta)) != key:
        yield Finding(f"{where}/manifest.json", "belongs to another teacher", AGAIN)
        manifest = None
    listed = {shard.name: shard for shard in manifest.shards} if manifest else {}
    for name in sorted({*listed, *(n for n in inside if n.endswith(".safetensors"))}):
        try:
            read_shard(folder, listed.get(name, name), manifest.meta if manifest else None)
        except BadShard as error:
            problem = error.reason
            yield Finding(f"{where}/{name}", problem, AGAIN)
        except (InputError, TypeError, ValueError) as error:
            yield Finding(f"{where}/{name}", f"is of another format ({error})", "remove it")


def _samples(storage: Storage) -> Iterator[Finding]:
    for name in storage.list("samples"):
        try:
            about, _ = unseal(storage.read_bytes(name))
        except InputError as error:
            yield Finding(name, str(error), AGAIN)
            continue
        if name != f"samples/{file_name(str(about.get('cell')))}.safetensors":
            yield Finding(name, f"shows cell {about.get('cell')}", AGAIN)


def _studies(storage: Storage) -> Iterator[Finding]:
    name = "studies.journal"
    if not storage.exists(name):
        return
    try:
        for line in storage.read_bytes(name).decode().splitlines():
            json.loads(line)
    except ValueError as error:
        yield Finding(name, f"is damaged ({error})", AGAIN)


def _leftovers(storage: Storage) -> Iterator[Finding]:
    """Files that a killed process left; a sweep uses or removes them."""
    for name in storage.list("parts", recursive=True):
        yield Finding(name, "is left over from an evaluation", "the next sweep goes on from it")
    for name in storage.list("checkpoints"):
        yield Finding(name, "is left over from a trial", "the next sweep goes on from it")
    for name in storage.temporary():
        yield Finding(name, "is left over from a write", "the next sweep removes it")

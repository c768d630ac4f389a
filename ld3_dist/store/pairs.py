"""Teacher pairs on disk: what the teacher made of which noise, in shards of fixed index ranges.

    noise     [n, *shape]  float32, unit variance, sample i drawn from (seed, i)
    target    [n, ...]     the teacher's decoded sample of it
    condition [n, ...]     if any; several named ones as condition.<name>

Shard [start, stop) is the file shard-<start>-<stop>.safetensors. Each carries a digest of its own
tensors and metadata in its header, so it can be judged alone, whatever else is there; the manifest,
written last, adds the hash and length of every whole file. The bytes of a shard depend on its
content alone: any number of actors writes the same files. (safetensors shuffles the order of
metadata keys, therefore all of ours sit in one.)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ..core.denoiser import Condition
from ..core.errors import InputError
from .storage import Storage

FORMAT = 1
MANIFEST = "manifest.json"

Meta = Mapping[str, str | int | float | bool | None]

_KEY = "ld3_dist"
_NAME = re.compile(r"^shard-(\d+)-(\d+)\.safetensors$")


class BadShard(RuntimeError):
    """A shard that must be made again: `name` and `reason`. It pickles, so that it can come back
    from a worker.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class ShardRecord:
    """One shard [start, stop) as the manifest lists it: hash and length of the whole file."""

    name: str
    start: int
    stop: int
    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(
                f"shard {self.name}: need 0 <= start < stop, got [{self.start}, {self.stop})"
            )


def shard_name(start: int, stop: int) -> str:
    """The file of the samples [start, stop)."""
    return f"shard-{start:05d}-{stop:05d}.safetensors"


def write_shard(
    storage: Storage, start: int, stop: int, tensors: Mapping[str, Tensor], meta: Meta
) -> ShardRecord:
    """Write the samples [start, stop) atomically; `meta` says whose they are (teacher key, seed,
    …).

    Raises BadShard, and writes nothing, when a tensor has the wrong length or a number that is not
    finite.
    """
    name = shard_name(start, stop)
    # cloned, because safetensors refuses tensors that share memory, such as slices of one batch
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    _check(name, start, stop, plain)
    header = {"format": FORMAT, "start": start, "stop": stop, "meta": dict(meta), "digest": ""}
    header["digest"] = content_digest(header, plain)
    data = save_tensors(plain, metadata={_KEY: json.dumps(header, sort_keys=True)})
    storage.write_bytes(name, data)
    return _record(name, start, stop, data)


def read_shard(
    storage: Storage, shard: ShardRecord | str, meta: Meta | None = None
) -> tuple[ShardRecord, dict[str, Tensor]]:
    """The record and the tensors of a shard, verified: digest, index range, shapes, finite numbers.

    Given a record, length and hash of the file must match it too; given `meta`, the shard's must
    equal it. Raises BadShard with the file and the reason, also when the file is missing.
    """
    name = shard if isinstance(shard, str) else shard.name
    try:
        data = storage.read_bytes(name)
    except FileNotFoundError:
        raise BadShard(storage.address(name), "is missing") from None
    where = storage.address(name)
    header, tensors = _parse(where, data)
    if header["format"] > FORMAT:
        raise InputError(
            f"{where}: written by a newer version (format {header['format']}); update ld3_dist"
        )
    if shard_name(header["start"], header["stop"]) != name:
        raise BadShard(where, f"holds the samples [{header['start']}, {header['stop']})")
    if header["digest"] != content_digest(header, tensors):
        raise BadShard(where, "its content does not match its digest")
    if meta is not None and header["meta"] != dict(meta):
        raise BadShard(where, f"was made for {header['meta']}, not for {dict(meta)}")
    _check(where, header["start"], header["stop"], tensors)
    record = _record(name, header["start"], header["stop"], data)
    if isinstance(shard, ShardRecord) and record != shard:
        raise BadShard(where, "its length or hash is not the one in the manifest")
    return record, tensors


@dataclass(frozen=True)
class Manifest:
    """Everything a complete set of pairs consists of; the last file written. Ranges may have gaps,
    not overlaps.
    """

    meta: Meta
    shards: tuple[ShardRecord, ...]

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.shards, key=lambda shard: shard.start))
        for left, right in pairwise(ordered):
            if right.start < left.stop:
                raise ValueError(f"shards {left.name} and {right.name} overlap")
        object.__setattr__(self, "shards", ordered)

    def save(self, storage: Storage) -> None:
        """Write it, atomically."""
        body = {
            "format": FORMAT,
            "meta": dict(self.meta),
            "shards": [asdict(shard) for shard in self.shards],
        }
        storage.write_bytes(MANIFEST, (json.dumps(body, indent=2, sort_keys=True) + "\n").encode())

    @staticmethod
    def load(storage: Storage) -> Manifest | None:
        """The manifest, or None while there is none; InputError if the file is not one."""
        try:
            body = json.loads(storage.read_bytes(MANIFEST))
            if body["format"] > FORMAT:
                raise InputError(
                    f"{storage.address(MANIFEST)}: format {body['format']} is newer; update "
                    f"ld3_dist"
                )
            return Manifest(body["meta"], tuple(ShardRecord(**shard) for shard in body["shards"]))
        except FileNotFoundError:
            return None
        except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            where = storage.address(MANIFEST)
            raise InputError(
                f"{where}: not a manifest of teacher pairs ({error}); remove it and run again"
            ) from error


@dataclass(frozen=True)
class Survey:
    """What is there of the wanted ranges: good shards, ranges to make (again), and why present
    files are bad.
    """

    good: tuple[ShardRecord, ...]
    missing: tuple[tuple[int, int], ...]
    bad: tuple[BadShard, ...]


def survey(storage: Storage, ranges: Iterable[tuple[int, int]], meta: Meta | None = None) -> Survey:
    """Read and verify the shards of the wanted ranges; works with and without a manifest."""
    there = set(storage.list())
    good: list[ShardRecord] = []
    missing: list[tuple[int, int]] = []
    bad: list[BadShard] = []
    for start, stop in ranges:
        if shard_name(start, stop) in there:
            try:
                good.append(read_shard(storage, shard_name(start, stop), meta)[0])
                continue
            except BadShard as reason:
                bad.append(reason)
        missing.append((start, stop))
    return Survey(tuple(good), tuple(missing), tuple(bad))


def missing_ranges(
    storage: Storage, ranges: Iterable[tuple[int, int]], meta: Meta | None = None
) -> list[tuple[int, int]]:
    """The ranges whose shard is absent or bad."""
    return list(survey(storage, ranges, meta).missing)


def load_pairs(storage: Storage, start: int, stop: int) -> dict[str, Tensor]:
    """The samples [start, stop), every tensor [stop - start, ...]; reads only the shards that hold
    them.

    Raises InputError where samples were never made, BadShard where a shard does not verify.
    """
    manifest = Manifest.load(storage)
    found = manifest.shards if manifest else _named_shards(storage)
    needed = [s for s in found if _bounds(s)[0] < stop and start < _bounds(s)[1]]
    parts: list[dict[str, Tensor]] = []
    at = start
    for shard in sorted(needed, key=_bounds):
        low, high = _bounds(shard)
        if low > at:
            break
        if high <= at or at >= stop:  # a shorter shard of an older plan over the same samples
            continue
        _, tensors = read_shard(storage, shard)
        parts.append(
            {key: value[at - low : min(high, stop) - low] for key, value in tensors.items()}
        )
        at = min(high, stop)
    if at < stop or start >= stop:
        raise InputError(
            f"{storage.url}: holds no teacher pairs for samples [{at}, {stop}); run the teach "
            f"stage first"
        )
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def pack_condition(condition: Condition) -> dict[str, Tensor]:
    """A condition as named tensors of a shard."""
    if condition is None:
        return {}
    if isinstance(condition, Tensor):
        return {"condition": condition}
    return {f"condition.{key}": value for key, value in condition.items()}


def unpack_condition(tensors: Mapping[str, Tensor]) -> Condition:
    """The condition among the tensors of a shard, in the structure it was packed from."""
    if "condition" in tensors:
        return tensors["condition"]
    named = {
        key.partition(".")[2]: value
        for key, value in tensors.items()
        if key.startswith("condition.")
    }
    return named or None


def _named_shards(storage: Storage) -> Sequence[str]:
    return [name for name in storage.list() if _NAME.match(name)]


def _bounds(shard: ShardRecord | str) -> tuple[int, int]:
    if isinstance(shard, ShardRecord):
        return shard.start, shard.stop
    found = _NAME.match(shard)
    assert found is not None  # only names that matched come here
    return int(found[1]), int(found[2])


def _record(name: str, start: int, stop: int, data: bytes) -> ShardRecord:
    return ShardRecord(name, start, stop, hashlib.sha256(data).hexdigest(), len(data))


def content_digest(header: Mapping[str, object], tensors: Mapping[str, Tensor]) -> str:
    """sha256 over the header without its digest, then name, dtype, shape and bytes of every tensor
    in order of name.
    """
    rest = {key: value for key, value in header.items() if key != "digest"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for key in sorted(tensors):
        value = tensors[key]
        digest.update(f"|{key}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return digest.hexdigest()


def _parse(where: str, data: bytes) -> tuple[dict, dict[str, Tensor]]:
    try:
        tensors = load_tensors(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_KEY])
        for key in ("format", "start", "stop", "meta", "digest"):
            header[key]
        return header, tensors
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BadShard(
            where, f"is truncated or not a shard ({type(error).__name__}: {error})"
        ) from error


def _check(where: str, start: int, stop: int, tensors: Mapping[str, Tensor]) -> None:
    for key in ("noise", "target"):
        if key not in tensors:
            raise BadShard(where, f"has no tensor {key!r}")
    if tensors["noise"].dtype != torch.float32:
        raise BadShard(where, f"noise must be float32, got {tensors['noise'].dtype}")
    for key, value in tensors.items():
        if value.ndim == 0 or len(value) != stop - start:
            raise BadShard(where, f"{key} has shape {tuple(value.shape)}, not [{stop - start}, …]")
        if value.is_floating_point() and not torch.isfinite(value).all():
            index = (
                int((~torch.isfinite(value)).flatten(1).any(1).nonzero()[0, 0])
                if value.ndim > 1
                else 0
            )
            raise BadShard(where, f"{key} of sample {start + index} is not finite")

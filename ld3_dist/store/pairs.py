"""Teacher pairs on disk: unit noise and the teacher's samples, in shards of fixed index ranges.

    noise     [n, *shape]  float32, unit variance, drawn from (seed, i) for sample i
    target    [n, ...]     the sample that the teacher makes from it, decoded
    condition [n, ...]     the conditions, if there are any; named ones are condition.<name>

Shard [start, stop) is the file shard-<start>-<stop>.safetensors. Its header holds a digest of its
tensors and metadata, so that it can be verified without any other file. The manifest is written
last and adds hash and length of every file. The bytes of a shard depend on its content alone, so
any number of actors write the same files. All metadata stands in one key, because safetensors does
not keep the order of keys.
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
    """A shard that must be made again, with its `name` and the `reason`.

    It can be pickled, so that a worker can raise it.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class ShardRecord:
    """One shard [start, stop) in the manifest, with hash and length of the whole file."""

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
    """The name of the file with the samples [start, stop)."""
    return f"shard-{start:05d}-{stop:05d}.safetensors"


def write_shard(
    storage: Storage, start: int, stop: int, tensors: Mapping[str, Tensor], meta: Meta
) -> ShardRecord:
    """Write the samples [start, stop), atomically.

    Args:
        meta: identifies the samples, for example by the teacher's key and the seed.

    Raises BadShard, and writes nothing, for a tensor of the wrong length and for a number that is
    not finite.
    """
    name = shard_name(start, stop)
    # copies, because safetensors refuses tensors that share memory, such as slices of one batch
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
    """The record and the tensors of a shard, after they were verified.

    Digest, index range, shapes and finite numbers are checked.

    Args:
        shard: name of the file, or its record in the manifest, which hash and length must match.
        meta: the metadata that the shard must have, if given.

    Raises BadShard with the file and the reason, also for a file that is missing, and InputError
    for one of a newer format.
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
    """The list of all shards of a complete set of pairs; it is written last.

    The ranges may have gaps between them, but must not overlap.
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
        """Write the manifest, atomically."""
        body = {
            "format": FORMAT,
            "meta": dict(self.meta),
            "shards": [asdict(shard) for shard in self.shards],
        }
        storage.write_bytes(MANIFEST, (json.dumps(body, indent=2, sort_keys=True) + "\n").encode())

    @staticmethod
    def load(storage: Storage) -> Manifest | None:
        """The manifest of a folder, or None if there is none yet.

        Raises InputError for a file that is no manifest or has a newer format.
        """
        try:
            body = json.loads(storage.read_bytes(MANIFEST))
            if body["format"] > FORMAT:
                raise InputError(
                    f"{storage.address(MANIFEST)}: format {body['format']} is newer; "
                    "update ld3_dist"
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
    """The state of the shards of some ranges.

    good: shards that were verified.
    missing: ranges to make, because their shard is absent or bad.
    bad: the bad shards, with the reasons.
    """

    good: tuple[ShardRecord, ...]
    missing: tuple[tuple[int, int], ...]
    bad: tuple[BadShard, ...]


def survey(storage: Storage, ranges: Iterable[tuple[int, int]], meta: Meta | None = None) -> Survey:
    """Read and verify the shards of some ranges, with or without a manifest."""
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
    """The samples [start, stop): tensors [stop - start, ...] by name.

    Only the shards that hold these samples are read. Raises InputError if samples were never made,
    and BadShard for a shard that cannot be verified.
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
            f"{storage.url}: holds no teacher pairs for samples [{at}, {stop}); "
            "run the teach stage first"
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


def named_ranges(storage: Storage) -> list[tuple[int, int]]:
    """The ranges of the shards in a folder, by their names alone."""
    return [_bounds(name) for name in _named_shards(storage)]


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
    """SHA-256 of the header without its digest, and of all tensors in the order of their names.

    Name, dtype, shape and bytes of a tensor enter.
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
            index = 0
            if value.ndim > 1:
                index = int((~torch.isfinite(value)).flatten(1).any(1).nonzero()[0, 0])
            raise BadShard(where, f"{key} of sample {start + index} is not finite")

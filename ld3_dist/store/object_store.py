"""A prefix of an object store (S3, Google Cloud Storage, anything fsspec knows) as a Storage.

A key appears when its upload is complete, so a write needs no temporary name, and a killed writer
leaves nothing that a reader could see. There is no atomic "create only if absent" in the interface
used here: `exclusive` excludes nobody."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pyarrow.fs as pafs

from ..core.errors import InputError, unknown
from .credentials import masked, refuse_credentials
from .storage import Storage, checked, hidden

S3_OPTIONS = ("region", "endpoint_override", "scheme", "anonymous", "force_virtual_addressing")


@dataclass(frozen=True)
class ObjectStorage(Storage):
    """`location` is scheme://bucket/prefix?options."""

    location: str

    def __post_init__(self) -> None:
        refuse_credentials(self.location)
        parts = urlsplit(self.location)
        if not parts.netloc:
            raise InputError(
                f"{self.location!r} names no bucket; write {parts.scheme}://bucket/prefix"
            )
        if parts.scheme == "s3":
            for key, _ in parse_qsl(parts.query, keep_blank_values=True):
                if key not in S3_OPTIONS:
                    raise unknown(f"option in {self.location!r}:", key, S3_OPTIONS)

    @property
    def url(self) -> str:
        return self.location.partition("?")[0].rstrip("/")

    @property
    def _query(self) -> str:
        return self.location.partition("?")[2]

    @property
    def _root(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.netloc}{parts.path}".rstrip("/")

    @property
    def _files(self) -> pafs.FileSystem:
        parts = urlsplit(self.url)
        return _connect(parts.scheme, parts.netloc, self._query)

    def _key(self, name: str) -> str:
        return f"{self._root}/{checked(name)}" if name else self._root

    def child(self, name: str) -> ObjectStorage:
        query = f"?{self._query}" if self._query else ""
        return replace(self, location=f"{self.url}/{checked(name)}{query}")

    def exists(self, name: str = "") -> bool:
        with self._named(name):
            return self._files.get_file_info(self._key(name)).type != pafs.FileType.NotFound

    def read_bytes(self, name: str) -> bytes:
        with self._named(name), self._files.open_input_stream(self._key(name)) as stream:
            return stream.read()

    def write_bytes(self, name: str, data: bytes) -> None:
        with self._named(name), self._files.open_output_stream(self._key(name)) as stream:
            self._put(stream, data)

    def _put(self, stream: Any, data: bytes) -> None:
        """The upload itself; a step of its own, so that a subclass can stop in its middle."""
        stream.write(data)

    def modified(self, name: str) -> float | None:
        with self._named(name):
            found = self._files.get_file_info(self._key(name))
            if found.type == pafs.FileType.NotFound:
                raise FileNotFoundError("no such file")
        return None if found.mtime is None else found.mtime.timestamp()

    def list(self, folder: str = "", recursive: bool = False) -> list[str]:
        selector = pafs.FileSelector(self._key(folder), allow_not_found=True, recursive=recursive)
        with self._named(folder):
            found = self._files.get_file_info(selector)
        below = (
            info.path.lstrip("/")[len(self._root) :].lstrip("/") for info in found if info.is_file
        )
        return sorted(name for name in below if not hidden(name[len(folder) :].lstrip("/")))

    def remove(self, name: str) -> None:
        with self._named(name), contextlib.suppress(FileNotFoundError):
            self._files.delete_file(self._key(name))

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """OSErrors of the client say what failed but seldom where."""
        try:
            yield
        except OSError as error:
            raise type(error)(masked(f"{self.address(name)}: {error}")) from error


@lru_cache(maxsize=16)
def _connect(scheme: str, bucket: str, query: str) -> pafs.FileSystem:
    """One client per process and address; few attempts and short timeouts, so that a wrong address
    does not hang.
    """
    options = dict(parse_qsl(query))
    if scheme == "s3":
        return _connect_s3(bucket, options)
    if scheme in ("gs", "gcs"):
        return pafs.FileSystem.from_uri(f"gs://{bucket}" + (f"?{query}" if query else ""))[0]
    import fsspec

    try:
        return pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem(scheme, **options)))
    except (ValueError, ImportError) as error:
        raise InputError(
            masked(f"cannot open {scheme}://{bucket}: {error}. Use a folder, s3:// or gs://")
        ) from error


def _connect_s3(bucket: str, options: dict[str, str]) -> pafs.FileSystem:
    endpoint = options.get("endpoint_override")
    scheme = options.get("scheme")
    if endpoint and "://" in endpoint:
        scheme, _, endpoint = endpoint.partition("://")
    region = (
        options.get("region")
        or os.environ.get("AWS_REGION")
        or os.environ.get("AWS_DEFAULT_REGION")
    )
    own_server = (
        endpoint or os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_S3")
    )
    if not region and not own_server:
        with contextlib.suppress(OSError):
            region = pafs.resolve_s3_region(bucket)
    return pafs.S3FileSystem(
        anonymous=options.get("anonymous", "false").lower() == "true",
        region=region or "us-east-1",
        scheme=scheme,
        endpoint_override=endpoint,
        force_virtual_addressing=options.get("force_virtual_addressing", "false").lower() == "true",
        connect_timeout=5,
        request_timeout=60,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=3),
    )

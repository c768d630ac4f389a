"""Open tables: names with their entries, and three ways to add to them.

    in this package       table.register("name", lazily="ld3_dist.module:attribute")   loaded on use
    an installed package  an entry point of the group `ld3_dist` that names a module; importing it
                          runs its `@table.register("name")`
    a file of your own    `python:FILE.py:NAME` or `python:MODULE:NAME` wherever a name is accepted

Every table of the package is one of these: noise schedules, solvers, distances, starts, metrics,
extractors, model families, learning procedures and the figures of a report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast, overload

from .errors import InputError, unknown
from .user_code import PREFIX, content_of, import_name

GROUP = "ld3_dist"
"""Group of the entry points whose modules are imported before a table is asked."""

Entry = TypeVar("Entry")
Added = TypeVar("Added")


class Registry(Generic[Entry]):
    """A table of one kind of thing, by name.

    Args:
        kind: what an entry is, as messages say it: "solver".
        pattern: names with a parameter in them, for the list in messages: "poly-<rho>".
    """

    def __init__(self, kind: str, pattern: tuple[str, ...] = ()) -> None:
        self.kind, self.pattern = kind, pattern
        self._entries: dict[str, Any] = {}

    @overload
    def register(self, name: str) -> Callable[[Added], Added]: ...
    @overload
    def register(self, name: str, entry: Entry) -> Entry: ...
    @overload
    def register(self, name: str, *, lazily: str) -> None: ...

    def register(self, name: str, entry: Any = None, *, lazily: str = "") -> Any:
        """Add an entry: as a decorator, as a value, or by the place that it is loaded from on use.

        Args:
            lazily: "package.module:attribute".

        Raises InputError for a name that is taken or that could be read as a file's.
        """
        if name in self._entries:
            raise InputError(
                f"{self.kind} {name!r} is registered twice; give one of the two another name"
            )
        if not name or name.startswith(PREFIX):
            raise InputError(
                f"{self.kind} {name!r}: a registered name must not begin with {PREFIX}"
            )
        if lazily:
            self._entries[name] = _Lazy(lazily)
            return None
        if entry is not None:
            self._entries[name] = entry
            return entry

        def decorator(added: Added) -> Added:
            self._entries[name] = added
            return added

        return decorator

    def get(self, name: str) -> Entry:
        """The entry of a name, or the object behind `python:FILE.py:NAME`.

        Raises InputError for an unknown name (the nearest known one is suggested), an entry point
        that cannot be imported, and a file or an object in it that is not there.
        """
        load_plugins()
        if name.startswith(PREFIX):
            found: Any = import_name(name, self.kind)
            if not callable(found):
                raise InputError(f"{self.kind} {name!r}: is a {type(found).__name__}, not callable")
            return cast(Entry, found)
        if name not in self._entries:
            raise unknown(self.kind, name, (*self.names(), *self.pattern))
        if isinstance(self._entries[name], _Lazy):
            module, _, attribute = self._entries[name].partition(":")
            self._entries[name] = getattr(import_module(module), attribute)
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """The registered names, in the order of their registration."""
        load_plugins()
        return tuple(self._entries)

    def version(self, name: str) -> str | None:
        """The part of an entry that keys of results hold besides its name.

        It is the hash of the file for `python:FILE.py:NAME`, the entry's own `version` if it has
        one, and None for the rest.
        """
        if name.startswith(PREFIX):
            return content_of(name)
        found = getattr(self.get(name), "version", None)
        return None if found is None else str(found)

    def __contains__(self, name: object) -> bool:
        load_plugins()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())


class _Lazy(str):
    """The place of an entry that nobody has asked for yet."""


_loaded: dict[str, bool] = {}


def load_plugins() -> None:
    """Import the modules of all entry points of the group `ld3_dist`, once per process.

    Raises InputError naming the entry point and its distribution, if one cannot be imported or
    registers a name that is taken.
    """
    if _loaded:
        return
    _loaded["begun"] = True  # a plugin that asks a table while it is imported finds what is there
    try:
        for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
            _load(point)
    except InputError:
        _loaded.clear()
        raise


def _load(point: EntryPoint) -> None:
    owner = point.dist.name if point.dist else "an unknown distribution"
    try:
        point.load()
    except InputError as error:
        raise InputError(f"entry point {point.name!r} of {owner}: {error}") from error
    except Exception as error:  # it is somebody else's code: anything may come
        raise InputError(
            f"entry point {point.name!r} of {owner} ({point.value}) cannot be imported: "
            f"{type(error).__name__}: {error}; repair or uninstall {owner}"
        ) from error

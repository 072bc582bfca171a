"""Values that are kept to be used again: by key, as many as may be, for any number of threads."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class _Entry(Generic[V]):
    value: V
    size: int
    owner: weakref.ref[object] | None

    @property
    def alive(self) -> bool:
        return self.owner is None or self.owner() is not None


class Kept(Generic[K, V]):
    """Keeps values by key, and drops those that were not used for longest when there are too many.

    Parameters
    ----------
    most: int or None
        How many values are kept at most. None: any number.
    most_bytes: int or None
        How many bytes they take together at most, by the ``size`` given to `put`, unless the newest alone takes more.
        None: any number.

    Examples
    --------
    >>> kept = Kept[str, int](most=2)
    >>> [kept.made(word, lambda: len(word)) for word in ("one", "three", "one", "seven")]
    [3, 5, 3, 5]
    >>> kept.keys()
    ['one', 'seven']
    """

    def __init__(self, most: int | None = None, most_bytes: int | None = None) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._entries: dict[K, _Entry[V]] = {}  # the one that was used last is at the end
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """The value of a key; None if there is none."""
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is None:
                return None
            self._entries[key] = entry
            if not entry.alive:  # its owner may have gone just now, when the entry was not to be found
                self._drop(key)
                return None
            return entry.value

    def put(self, key: K, value: V, size: int = 0, owner: object = None) -> V:
        """Keep a value of ``size`` bytes, in place of the one that the key had.

        With an ``owner`` it is kept no longer than that lives, and must not refer to it.
        """
        reference = None if owner is None else weakref.ref(owner, self._forgetting(key))
        with self._lock:
            self._drop(key)
            self._entries[key] = _Entry(value, size, reference)
            self._bytes += size
            while self._too_many() and len(self._entries) > 1:
                self._drop(next(iter(self._entries)))
        return value

    def made(self, key: K, make: Callable[[], V], owner: object = None) -> V:
        """The value of a key, made now if there is none. Two threads may both make it: one of the two stays."""
        found = self.get(key)
        return self.put(key, make(), owner=owner) if found is None else found

    def keys(self) -> list[K]:
        """The keys, the one that was used last at the end."""
        with self._lock:
            return list(self._entries)

    def values(self) -> list[V]:
        """The values in the order of the keys."""
        with self._lock:
            return [entry.value for entry in list(self._entries.values())]

    def forget(self, which: Callable[[K], bool]) -> None:
        """Drop what is kept under some keys."""
        with self._lock:
            for key in [k for k in list(self._entries) if which(k)]:
                self._drop(key)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """The bytes of all values together, by the sizes that were given."""
        return self._bytes

    def _too_many(self) -> bool:
        many = self._most is not None and len(self._entries) > self._most
        return many or (self._most_bytes is not None and self._bytes > self._most_bytes)

    def _drop(self, key: K) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size

    def _forgetting(self, key: K) -> Callable[[weakref.ref[object]], None]:
        """Drops a key when its owner is gone. It takes no lock: garbage may be collected while a thread holds it."""
        this = weakref.ref(self)  # a reference to itself would keep all values until garbage is collected

        def forget(gone: weakref.ref[object]) -> None:
            kept = this()
            entry = None if kept is None else kept._entries.get(key)
            if kept is not None and entry is not None and entry.owner is gone:
                kept._drop(key)

        return forget

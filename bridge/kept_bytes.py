"""What was made before, kept up to a number of bytes; what was asked for longest ago goes first. Knows nothing of what is kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable


class KeptBytes:
    """For several threads. The same thing may be made twice where two ask for it at once; nobody waits for another's work."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.size_bytes = 0
        self._entries: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        made = make()
        with self._lock:
            self.size_bytes += len(made) - len(self._entries.pop(key, b""))
            self._entries[key] = made
            while self.size_bytes > self.most_bytes:
                _, oldest = self._entries.popitem(last=False)
                self.size_bytes -= len(oldest)
        return made

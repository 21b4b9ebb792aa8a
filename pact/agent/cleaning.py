"""Removes what plans had to leave (``strewn``), once that is possible, in a thread of its own: the disk may hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from pact.host.notify import log
from pact.journal.blobs import BlobReader
from pact.resources.support import strewn
from pact.resources.support.loose import LOOSE

#: How often to look, in seconds.
AGAIN_S: Final = 30.0


class Cleaner:
    """``store`` opens the contents that are kept, for one thread."""

    def __init__(self, store: Callable[[], BlobReader]) -> None:
        self._store = store
        self._due_s = 0.0
        self._thread: threading.Thread | None = None

    def look(self) -> None:
        """Returns at once. Call it every few seconds."""
        now_s = time.monotonic()
        if now_s < self._due_s or (self._thread is not None and self._thread.is_alive()) or not LOOSE.of(strewn.STREWN):
            return
        self._due_s = now_s + AGAIN_S
        self._thread = threading.Thread(target=self._work, name="pact-cleaner", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._thread = None  # no thread is possible now

    def _work(self) -> None:
        try:
            store = self._store()
            try:
                for text in strewn.clear(store):
                    log(text)
            finally:
                store.close()
        except Exception as exc:  # nobody expected it: tried again
            log(f"what plans have left is not removed: {exc!r}", 4)

"""The file of authorised keys while an aggregator runs: when its contents count."""

from __future__ import annotations

from pact.cluster import auth
from pact.errors import ConfigError
from pact.host.notify import log


class KeyFile:
    """An unreadable file, or one that somebody may just be writing, changes nothing."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.asked = False  # somebody has said (SIGHUP) that the file as it is counts
        self._seen = self._new = auth.signature(path)

    def read(self) -> auth.Authorized:
        """Its contents at the start. Raises ConfigError."""
        return auth.read(self.path)

    def newer(self) -> auth.Authorized | None:
        """Its contents, if they have changed since they were read and count; what is wrong with it is logged once."""
        seen = auth.signature(self.path)
        if seen == self._seen and not self.asked:
            return None
        if seen != self._new and not self.asked:  # it may be half written: a shorter file revokes keys
            self._new = seen
            return None
        asked, self._seen, self.asked = self.asked, seen, False
        try:
            newer = auth.read(self.path)
        except ConfigError as exc:
            log(f"the authorised keys stay as they were: {exc.message}", 3)
            return None
        if not newer.peers and not seen[1] and not asked:  # its writer may be about to fill it
            log("the authorised keys stay as they were: the file is empty; if that is meant, say so with SIGHUP", 3)
            return None
        return newer

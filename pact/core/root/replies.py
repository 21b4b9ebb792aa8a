"""The root's answers to people: results that fit a message, and the progress of requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pact.core.root.answers import clipped, fitting
from pact.core.root.envelope import Envelope
from pact.core.root.term import Term
from pact.model import NS_PER_S, JsonRead

PROGRESS_NS: Final = NS_PER_S // 10
NAMES_MAX: Final = 32_000
#: Characters of all failures in one result: even with every character escaped it fits a head.
FAILED_MAX: Final = 384 << 10


class Replies:
    """The replies of one root."""

    def __init__(self, root: Term) -> None:
        self.root = root
        # Request without a result yet -> when its client last got a message.
        self.told_ns: dict[tuple[str, int], int] = {}

    def reply(
        self,
        head: Envelope,
        exit_code: int,
        message: str = "",
        hint: str = "",
        result: JsonRead | None = None,
        failed: Mapping[str, str] | None = None,
    ) -> None:
        """End a client's request. A result that is too long for a message is cut, and the message says so."""
        self.told_ns.pop(head.key, None)
        body, cut = fitting(result or {})
        self.root.down(
            "result",
            {
                "client": head.client,
                "id": head.id,
                "exit": exit_code,
                "message": "; ".join(filter(None, [clipped(message), cut])),
                "hint": clipped(hint),
                "failed": self.fold_failed(failed or {}),
            },
            body,
        )

    def fold_failed(self, failed: Mapping[str, str]) -> dict[str, str]:
        """``{node set: why}``. Beyond ``FAILED_MAX`` characters nodes are named without reasons, or only counted."""
        by_why: dict[str, list[str]] = {}
        for name, why in failed.items():
            by_why.setdefault(clipped(why), []).append(name)
        out: dict[str, str] = {}
        rest: list[str] = []
        room = FAILED_MAX // 2
        for why, names in by_why.items():
            texts = self._folded(names)
            size = sum(map(len, texts)) + len(texts) * len(why)
            if size > room:
                rest += names
                continue
            room -= size
            out.update(dict.fromkeys(texts, why))
        return {**out, **self._without_reasons(rest)} if rest else out

    def _without_reasons(self, names: list[str]) -> dict[str, str]:
        out: dict[str, str] = {}
        room, more = FAILED_MAX // 2, 0
        for text in self._folded(names):
            room -= 2 * len(text)
            if room > 0:
                out[text] = "for other reasons, too many for one answer"
            else:
                more += 1
        return {**out, "others": f"{more} more node sets, too many for one answer"} if more else out

    def _folded(self, names: list[str]) -> list[str]:
        """One node set; or several, if the names do not fold and one text would be too long for a head."""
        text = self.root.sets.fold(names)
        if len(text) <= NAMES_MAX or len(names) == 1:
            return [text]
        names, count = sorted(names), 2 + len(text) * 3 // (2 * NAMES_MAX)
        step = -(-len(names) // count)
        pieces = [names[at : at + step] for at in range(0, len(names), step)]
        return [t for piece in pieces for t in self._folded(piece)]

    def progress(self, head: Envelope, done: int, total: int) -> None:
        """Report the progress of a step, at most every ``PROGRESS_NS``, and always at its beginning and end."""
        key, now_ns = head.key, self.root.t_ns
        if 0 < done < total and now_ns - self.told_ns.get(key, now_ns - PROGRESS_NS) < PROGRESS_NS:
            return
        self.told_ns[key] = now_ns
        self.root.down("progress", {"client": head.client, "id": head.id, "done": done, "total": total})

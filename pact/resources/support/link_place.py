"""Names that the kind and its parts share, apart from them: most agents have no link, and read none of these parts."""

from __future__ import annotations

from typing import Final

#: Where what links had is kept between two runs: the directory and the boot, as ``Kind.keep_in`` got them;
#: empty without an agent.
PLACE: Final[list[str]] = []
#: What a step on a link is called while it is on record (``loose``).
STEPPED: Final = "stepped"

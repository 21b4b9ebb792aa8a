"""A library of our own in the place of NVML: built with the C compiler, driven by a file beside it."""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parent / "data" / "nvml.c"
CARD = {
    "persistence": 1,
    "power": 300000,
    "compute_mode": 0,
    "ecc": 1,
    "ecc_now": 1,
    "mig": 0,
    "mig_now": 0,
    "graphics": 1410,
    "memory": 1215,
}
FIRST, SECOND = "0000:3b:00.0", "0000:af:00.0"


@functools.cache
def built(*flags: str) -> Path:
    """Built once in each process of tests."""
    library = Path(tempfile.mkdtemp(prefix="nvml-")) / "libnvidia-ml.so.1"
    atexit.register(shutil.rmtree, library.parent)
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", *flags, "-o", library, SOURCE], check=True)
    return library


class Nvml:
    """Two cards. ``place`` is for ``LD_LIBRARY_PATH``."""

    def __init__(self, place: Path, *flags: str) -> None:
        self.place = place
        place.mkdir(parents=True, exist_ok=True)
        library = place / built(*flags).name
        library.unlink(missing_ok=True)  # who has it open keeps what it has
        shutil.copy(built(*flags), library)
        self.values: dict[str, object] = {"driver": "550.54.15", "count": 2}
        for n, bus in enumerate(("00000000:3B:00.0", "00000000:AF:00.0")):
            self.values |= {f"gpu{n}.{key}": value for key, value in CARD.items()}
            self.values |= {f"gpu{n}.bus": bus, f"gpu{n}.uuid": f"GPU-00000000-0000-0000-0000-00000000000{n}"}
        self.write()

    def write(self) -> None:
        text = "".join(f"{key} {value}\n" for key, value in self.values.items())
        new = self.place / "state.new"
        new.write_text(text)
        new.rename(self.place / "state")

    def read(self) -> dict[str, str]:
        lines = (self.place / "state").read_text().splitlines()
        return dict(line.split(" ", 1) for line in lines)

    def set(self, **values: object) -> None:
        """``gpu0_power=1``: the first underscore stands for a dot; ``None`` takes the line away."""
        self.values = dict(self.read())
        for name, value in values.items():
            head, _, rest = name.partition("_")
            key = name if head not in ("gpu0", "gpu1", "init") else f"{head}.{rest.replace('__', '.')}"
            if value is None:
                self.values.pop(key, None)
            else:
                self.values[key] = value
        self.write()

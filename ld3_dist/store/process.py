"""Names of processes and machines, and whether a named process still lives.

A process is named by (host, pid, start): the start is what tells it from a later process under the
same number, and holds the boot and the space of process numbers it belongs to: containers of one
machine, or of two, may have equal host names and equal pids. Temporary files and the lock of an
output folder carry this name, so that what a killed process left behind can be told from what a
living one is working on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process of one machine; `start` is an opaque string, equal for the same process and for no
    other. `address` is the machine's, for messages.
    """

    host: str
    pid: int
    start: str
    address: str = field(default="", compare=False)

    @property
    def here(self) -> bool:
        """True if its number would be seen here while it ran: same host name, same boot, and same
        space of process numbers.
        """
        return self.host == host_name() and self.start.rpartition("-")[0] == _space()

    @property
    def place(self) -> str:
        """Host name, and address where it is known."""
        return f"{self.host} ({self.address})" if self.address else self.host

    @property
    def alive(self) -> bool | None:
        """True or False for a process of this machine (a zombie is dead), None where that cannot be
        known.
        """
        return _start_of(self.pid) == self.start if self.here else None


def working_folder() -> str:
    """The working folder of this process; "" if it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def work_in(folder: str) -> None:
    """Enter the working folder of another process, if this machine has it.

    Relative paths mean what they mean to the command that a user gave: a worker of Ray begins in
    the folder in which Ray was started.
    """
    with contextlib.suppress(OSError):
        os.chdir(folder)


def this_process() -> Process:
    """The calling process."""
    return _this(os.getpid())  # by pid, so that a forked child does not inherit its parent's name


@lru_cache(maxsize=2)
def _this(pid: int) -> Process:
    return Process(host_name(), pid, _start_of(pid) or "unknown", node_address())


def host_name() -> str:
    """The machine's name, without characters that a file name could stumble over."""
    return (
        "".join(c if c.isalnum() or c in "-." else "-" for c in socket.gethostname()) or "localhost"
    )


def node_address() -> str:
    """The IP address by which the other machines know this one.

    Host names of containers may coincide; addresses within a cluster do not. Unless
    `set_node_address` said otherwise, it is the address of the route to the outside."""
    return _address[-1] if _address else _outward_address()


def node_name() -> str:
    """Host name and address of this machine, as records of failures name it."""
    return f"{host_name()} ({node_address()})"


def set_node_address(address: str) -> None:
    """Set the address under which a cluster knows this machine."""
    _address[:] = [address]


_address: list[str] = []


@lru_cache(maxsize=1)
def _outward_address() -> str:
    for family, outside in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((outside, 9))  # chooses a route; sends nothing
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return "127.0.0.1"


def _start_of(pid: int) -> str | None:
    """The time at which the process began, as an opaque string; None if there is no such process.

    On Linux it counts ticks since boot; elsewhere it is what ps prints."""
    if Path("/proc/self/stat").exists():
        try:
            # the second field, the name in parentheses, may itself hold spaces and parentheses
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else f"{_space()}-{fields[19]}"
    shown = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    state, _, start = shown.stdout.strip().partition(" ")
    return None if not start or state.startswith("Z") else "".join(c for c in start if c.isalnum())


@lru_cache(maxsize=1)
def _space() -> str:
    """The boot of this machine and the space of process numbers within it; "" but on Linux."""
    if not Path("/proc/self/stat").exists():
        return ""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        boot = "boot"
    try:
        return f"{boot}.{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return boot


def trim() -> None:
    """Give freed memory back to the system, where the C library can (glibc's `malloc_trim`)."""
    trim_heap = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim_heap is not None:
        trim_heap(0)

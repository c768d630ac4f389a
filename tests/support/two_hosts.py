"""Two hosts on one machine: network namespaces joined by a pair of virtual interfaces, with one
host name, as containers may have. Their files are the machine's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RAY = Path(sys.executable).with_name("ray")
HEAD, WORKER = "10.77.0.1", "10.77.0.2"


class NotAllowed(RuntimeError):
    """The machine has no namespaces for us; the message says why."""


@dataclass(frozen=True)
class Host:
    """A network namespace, its only interface (of the same name), and its address."""

    name: str
    address: str

    def command(self, *command: str) -> list[str]:
        """The command, to be run on this host, whose name is "node"."""
        inside = ["unshare", "--uts", "sh", "-c", 'hostname node; exec "$@"', "sh", *command]
        return ["ip", "netns", "exec", self.name, *inside]

    def cable(self, state: str) -> None:
        """Pull the network's plug ("down"), or put it back ("up")."""
        _ip("-n", self.name, "link", "set", self.name, state)

    def ray_start(self, home: Path, head: str, **environment: str) -> subprocess.Popen[bytes]:
        """`ray start --block` of one CPU: the head here if its address is ours, or a worker of it.

        Returns when the node is up; its output is in `home`."""
        mine = head.partition(":")[0] == self.address
        where = [f"--port={head.partition(':')[2]}", "--include-dashboard=false"]
        where = ["--head", *where] if mine else [f"--address={head}"]
        size = ["--num-cpus=1", "--num-gpus=0", "--object-store-memory=80000000"]
        log = home / f"ray-{self.address}-{time.time_ns():x}.log"
        with open(log, "wb") as out:
            started = subprocess.Popen(
                self.command(
                    str(RAY), "start", *where, f"--node-ip-address={self.address}", *size, "--block"
                ),
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        for _ in range(1800):
            if "--block" in log.read_text():
                return started
            if started.poll() is not None:
                break
            time.sleep(0.1)
        raise AssertionError(log.read_text())

    def clear(self) -> None:
        """End every process of this host."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for _ in range(100):
                pids = _ip("netns", "pids", self.name).split()
                if not pids:
                    return
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), number)
                time.sleep(0.1)


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """The hosts; gone afterwards with all their processes. Raises NotAllowed."""
    if not (shutil.which("ip") and shutil.which("unshare")):
        raise NotAllowed("ip (iproute2) or unshare (util-linux) is not installed")
    mark = f"t{os.getpid()}"
    a, b = Host(f"{mark}a", HEAD), Host(f"{mark}b", WORKER)
    try:
        try:
            for host in (a, b):
                _ip("netns", "add", host.name)
            ends = [a.name, "netns", a.name, "type", "veth", "peer", "name", b.name]
            _ip("link", "add", *ends, "netns", b.name)
            for host in (a, b):
                _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.name)
                _ip("-n", host.name, "link", "set", "lo", "up")
                host.cable("up")
            subprocess.run(a.command("true"), check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            raise NotAllowed(f"{' '.join(error.cmd)}: {error.stderr.strip()}") from error
        yield a, b
    finally:
        for host in (a, b):
            with contextlib.suppress(subprocess.CalledProcessError):
                host.clear()
                _ip("netns", "del", host.name)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)
    return done.stdout

"""A cluster's limits are said before anything starts: addresses, versions, storage, resources."""

from __future__ import annotations

import http.server
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import warm_python
from one_ray import end_local_ray
from tiny_sweep import changed, write

from ld3_dist.cluster.ray import connect as joining
from ld3_dist.cluster.ray import nodes
from ld3_dist.core.errors import InputError
from ld3_dist.experiment import parse_experiment
from ld3_dist.store.opening import open_storage
from ld3_dist.store.storage import LocalStorage


@pytest.fixture(scope="module", autouse=True)
def no_other_ray() -> None:
    end_local_ray()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("127.0.0.1:CLOSED", "no Ray cluster answers there"),
        ("no-such-host.invalid:6379", "no Ray cluster answers there"),
        ("10.0.0.1", "write auto or HOST:PORT"),
        ("head:port", "write auto or HOST:PORT"),
        ("ray://10.0.0.1:10001", "ray job submit"),
    ],
)
def test_an_address_without_a_cluster(address: str, part: str) -> None:
    with pytest.raises(InputError, match=part) as caught:
        joining.connect(address.replace("CLOSED", str(closed_port())))
    assert address.split(":")[0] in str(caught.value)


def test_what_is_not_ray_does_not_hang_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "JOIN", 2.0)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(InputError, match="no Ray cluster answers there"):
        joining.connect(f"127.0.0.1:{server.server_address[1]}")
    server.shutdown()


def test_the_command_line_exits_with_2_and_writes_nothing(tmp_path: Path) -> None:
    command = ["-m", "ld3_dist.cli", "sweep", str(write(tmp_path, changed()))]
    command += ["--output", str(tmp_path / "out"), "--address", f"127.0.0.1:{closed_port()}"]
    done = warm_python.run(command)
    assert done.returncode == 2
    assert "no Ray cluster answers there" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_file()]


@dataclass
class Nodes:
    """A cluster of two nodes on this machine: (CPU 3) and (CPU 1, GPU 1)."""

    address: str
    second: str


@pytest.fixture(scope="module")
def two() -> Iterator[Nodes]:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "num_gpus": 0})
    second = cluster.add_node(num_cpus=1, num_gpus=1)
    cluster.wait_for_nodes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "PYTHONPATH",
            os.pathsep.join(
                [str(Path(__file__).parents[1] / "support"), str(Path(__file__).parents[2])]
            ),
        )
        yield Nodes(cluster.address, second.node_id)
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def joined(two: Nodes) -> Iterator[Nodes]:
    """This process as a driver of the cluster, from the first test that asks for it on."""
    import ray

    joining.connect(two.address)
    yield two
    ray.shutdown()


@pytest.mark.parametrize("what", ["ray_version", "python_version"])
def test_a_cluster_of_another_version(two: Nodes, what: str) -> None:
    from ray._raylet import GcsClient

    client, place = GcsClient(address=two.address), (b"CLUSTER_METADATA", b"cluster")
    kept = client.internal_kv_get(*place)
    assert kept is not None
    other = json.loads(kept) | {what: "2.9.3"}
    client.internal_kv_put(place[0], json.dumps(other).encode(), True, place[1])
    try:
        with pytest.raises(
            InputError, match=r"2\.9\.3.*Install the cluster's versions here, or ours there"
        ):
            joining.connect(two.address)
    finally:
        client.internal_kv_put(place[0], kept, True, place[1])


@dataclass(frozen=True)
class HalfBlind(LocalStorage):
    """A folder that one node does not see."""

    node: str = ""

    def read_bytes(self, name: str) -> bytes:
        import ray

        if ray.is_initialized() and ray.get_runtime_context().get_node_id() == self.node:
            raise FileNotFoundError(2, "No such file or directory", name)
        return super().read_bytes(name)


def test_every_node_is_asked(
    joined: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers have no tests
    try:
        nodes.check_nodes(LocalStorage(str(tmp_path)))
        with pytest.raises(InputError) as caught:
            nodes.check_nodes(HalfBlind(str(tmp_path), joined.second))
        message = str(caught.value)
        assert message.startswith(f"node {socket.gethostname()} (")
        assert f"does not see {tmp_path} (FileNotFoundError" in message
        assert message.count("does not see") == 1  # the other node does
        assert not list(tmp_path.iterdir())
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.mark.parametrize("what", ["ld3_dist", "torch", "ray", "python"])
def test_a_node_of_another_version(
    joined: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    mine = nodes.versions()
    monkeypatch.setattr(nodes, "versions", lambda: mine | {what: "0.0.7"})
    with pytest.raises(
        InputError,
        match=rf"node .* has {what} {mine[what]}, the driver .* 0\.0\.7; install the same",
    ):
        nodes.check_nodes(LocalStorage(str(tmp_path)))


@pytest.mark.parametrize(
    ("resources", "part"),
    [
        ({"cpus_per_trial": 2, "gpus_per_trial": 1}, "no single node has both"),
        ({"cpus_per_trial": 4}, "no node has more than 3 CPUs"),  # the cluster has 4
        ({"gpus_per_trial": 2}, "no node has more than 1 GPUs"),
        ({"gpus_per_actor": 0.4}, "of 0.4 only 2 fit on a GPU"),
        ({"gpus_per_actor": 0.34}, "of 0.34 only 2 fit on a GPU"),
        ({"gpus_per_trial": 1.5}, "must be a whole number"),
    ],
)
def test_what_no_node_has(joined: Nodes, resources: dict[str, Any], part: str) -> None:
    with pytest.raises(InputError, match=part):
        joining.sizes_of(parse_experiment(changed(resources=resources)))


@pytest.mark.parametrize(
    ("fraction", "count"), [(1, 1), (0.5, 2), (1 / 3, 3), (0.33, 3), (0.25, 4), (1 / 7, 7)]
)
def test_fractions_that_fill_a_gpu(joined: Nodes, fraction: float, count: int) -> None:
    asked = {"gpus_per_trial": fraction, "cpus_per_trial": 0.1, "concurrent_trials": 100}
    sizes = joining.sizes_of(parse_experiment(changed(resources=asked)))
    assert sizes.trials == count


def test_wrong_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that checks signatures refuses; a sweep says so, with exit code 2."""
    server_module = pytest.importorskip("moto.server", reason="needs the dev extra")
    from pyarrow.fs import S3FileSystem

    for proxy in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAWRONGWRONGWRONG0")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options: dict[str, Any] = {
            "endpoint_override": f"{host}:{port}",
            "scheme": "http",
            "region": "us-east-1",
        }
        S3FileSystem(**options, allow_bucket_creation=True).create_dir("bucket")
        monkeypatch.setattr(
            "moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0.0
        )  # from now on every request is checked
        url = f"s3://bucket/out?endpoint_override=http://{host}:{port}"
        with pytest.raises(InputError, match=r"s3://bucket/out"):
            open_storage(url).check_writable()
        command = ["-m", "ld3_dist.cli", "sweep", str(write(tmp_path, changed()))]
        done = warm_python.run([*command, "--output", url])
        assert done.returncode == 2, done.stderr
        assert "s3://bucket/out" in done.stderr
        assert "credentials" in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        server.stop()


SAYS = """#!{python}
import sys
import time
print({out!r})
print({error!r}, file=sys.stderr)
sys.exit(3)
"""
DENIED = (
    "Unauthenticated: RPC error: InvalidAuthToken: Authentication token is missing or incorrect"
)


@pytest.mark.parametrize(
    ("mode", "token", "out", "error", "parts"),
    [
        (
            None,
            False,
            "Failed to connect",
            DENIED,
            ["set RAY_AUTH_MODE=token", "~/.ray/auth_token"],
        ),
        (None, True, "Failed to connect", DENIED, ["set RAY_AUTH_MODE=token. Keep"]),
        ("token", True, "Failed to connect", DENIED, ["is not the cluster's", "auth_token of the"]),
        ("token", False, "no authentication token was found", "", ["no token here", "auth_token"]),
    ],
)
def test_a_cluster_that_demands_a_token(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    mode: str | None,
    token: bool,
    out: str,
    error: str,
    parts: list[str],
) -> None:
    """By what Ray 2.60 says to a client: the matter, and what to set; never the token itself."""
    python = tmp_path / "python"
    python.write_text(SAYS.format(python=sys.executable, out=out, error=error))
    python.chmod(0o755)
    monkeypatch.setattr(joining.sys, "executable", str(python))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    if token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("0123456789abcdef")
    with pytest.raises(InputError, match="demands a token") as caught:
        joining.check_address("auto")
    for part in parts:
        assert part in str(caught.value)
    assert "0123456789abcdef" not in str(caught.value)


def ray_start(home: Path, mode: str, port: int, head: bool) -> subprocess.Popen[bytes]:
    """A head, or a worker of 127.0.0.3, as `ray start` makes them; ends with its process."""
    ray = Path(sys.executable).with_name("ray")
    where = ["--head", "--node-ip-address=127.0.0.2", f"--port={port}", "--include-dashboard=false"]
    if not head:
        where = [f"--address=127.0.0.2:{port}", "--node-ip-address=127.0.0.3"]
    size = ["--num-cpus=1", "--num-gpus=0", "--object-store-memory=80000000"]
    environment = os.environ | {"HOME": str(home), "RAY_AUTH_MODE": mode}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    with open(home / f"ray-{head}.log", "ab") as log:
        return subprocess.Popen(
            [str(ray), "start", *where, *size, "--block"],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for(log: Path) -> None:
    """Wait until a `ray start --block` is up."""
    for _ in range(1200):
        if "--block" in log.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.mark.slow
def test_a_sweep_on_a_cluster_made_by_ray_start_with_a_token(tmp_path: Path) -> None:
    """Turned away without the token; with it, the sweep runs, its logs name both nodes by address,
    and the token is nowhere in the output folder.
    """
    token = secrets.token_hex(32)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(token)
    port = closed_port()
    started = [ray_start(tmp_path, "token", port, head=True)]
    file = write(tmp_path, changed(resources={"actors": 2, "cpus_per_actor": 1}))
    command = [sys.executable, "-m", "ld3_dist.cli", "sweep", str(file)]
    command += ["--output", str(tmp_path / "out"), "--address", f"127.0.0.2:{port}"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}

    def sweep(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=clean | {"HOME": str(tmp_path)} | more,
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )

    try:
        wait_for(tmp_path / "ray-True.log")
        started.append(ray_start(tmp_path, "token", port, head=False))
        wait_for(tmp_path / "ray-False.log")
        refused = sweep()
        assert refused.returncode == 2, refused.stdout + refused.stderr
        assert "demands a token" in refused.stderr
        assert "RAY_AUTH_MODE=token" in refused.stderr
        done = sweep(RAY_AUTH_MODE="token")
        assert done.returncode == 0, done.stdout + done.stderr[-2000:]
        assert token not in refused.stderr + done.stdout + done.stderr
    finally:
        for process in reversed(started):
            os.killpg(process.pid, 15)
        for process in started:
            process.wait(60)
    written = [file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert written
    assert not any(token.encode() in body for body in written)
    lines = [
        json.loads(line)
        for log in (tmp_path / "out" / "logs").glob("*.jsonl")
        for line in log.read_text().splitlines()
    ]
    workers = {line["address"] for line in lines if line["role"] == "worker"}
    assert workers == {"127.0.0.2", "127.0.0.3"}

"""What ships for clusters: the launcher by Ray's schema, the RayJob by its CRD, the Slurm script
run dry.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

from ld3_dist.cli.app import app
from ld3_dist.experiment import parse_experiment

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "cluster"
FILES = sorted(FOLDER.iterdir())

RECORD = """#!{python}
import json, os, sys
with open(os.environ["RECORD"], "a") as file:
    file.write(json.dumps([{name!r}, *sys.argv[1:]]) + "\\n")
{more}
"""
SRUN = """
rest = sys.argv[1:]
while rest[0].startswith("--"):
    rest.pop(0)
if rest[0] == "hostname":
    print("10.1.2.3 fe80::1")
elif rest[0] != "ray":
    os.execvp(rest[0], rest)
"""


def parsed(command: list[str]) -> dict[str, Any]:
    """The arguments of an `ld3-dist …` command line as our own parser reads them; click's error
    otherwise.
    """
    root = typer.main.get_command(app)
    assert command[0] == "ld3-dist"
    assert isinstance(root, click.Group) or hasattr(root, "commands")
    child: Any = root.commands[command[1]]  # type: ignore[attr-defined]
    return dict(child.make_context(command[1], command[2:]).params)


def commands_in(text: str) -> Iterator[list[str]]:
    """Every `ld3-dist …` at the end of a line, comments and headers included."""
    for found in re.finditer(r"(?<![\w/-])(ld3-dist (?:sweep|teach|evaluate) [^\n`]*)", text):
        yield shlex.split(found[1].rstrip("&\\ "))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_headers_say_what_to_edit_and_run_and_where_results_go(file: Path) -> None:
    head = file.read_text().split("\n\n")[0]
    for word in (
        "# Edit ",
        "# Storage ",
        "# Token ",
        "RAY_AUTH_MODE=token",
        "# Run ",
        "ray job submit --address http://",
    ):
        assert word in head
    found = list(commands_in(file.read_text()))
    assert found
    for command in found:
        arguments = parsed(command)
        assert arguments["experiment"]
        assert arguments["output"]
        assert arguments["address"]


def test_ray_job_submit_lines_are_accepted_by_ray() -> None:
    from ray.dashboard.modules.job.cli import submit

    for file in FILES:
        (line,) = re.findall(r"ray job submit [^\n]*", file.read_text())
        context = submit.make_context("submit", shlex.split(line)[3:])
        assert context.params["entrypoint"][:2] == ("ld3-dist", "sweep")
        assert (ROOT / context.params["working_dir"] / context.params["entrypoint"][2]).is_file()


def test_the_launcher_file_follows_rays_schema() -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((FOLDER / "ray-cluster.yaml").read_text())
    whole = prepare_config(config)
    validate_config(whole)
    types = whole["available_node_types"]
    assert types["worker"]["min_workers"] == types["worker"]["max_workers"] <= whole["max_workers"]
    assert types["head"]["resources"] == {"CPU": 0}
    with pytest.raises(ValidationError):
        validate_config(whole | {"no_such_key": 1})


def test_ray_start_lines_are_accepted_by_ray() -> None:
    config = yaml.safe_load((FOLDER / "ray-cluster.yaml").read_text())
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        parts = [part.split() for part in ";".join(config[key]).split(";")]
        starts = [part for part in parts if part[0] == "ray"]
        assert parts.index(["export", "RAY_AUTH_MODE=token"]) < parts.index(starts[-1])
        for part in starts:
            check_ray(part)
    assert config["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"


def check_ray(command: list[str]) -> dict[str, Any]:
    """The options of `ray start` or `ray stop`, read by Ray's own parser."""
    from ray.scripts.scripts import start, stop

    known: dict[str, Any] = {"start": start, "stop": stop}
    return dict(known[command[1]].make_context(command[1], command[2:]).params)


# Required and known fields of the RayJob CRD, ray.io/v1 (KubeRay, ray-operator/apis/ray/v1).
JOB = {
    "entrypoint",
    "runtimeEnvYAML",
    "backoffLimit",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "rayClusterSpec",
    "submissionMode",
    "activeDeadlineSeconds",
    "suspend",
    "jobId",
    "clusterSelector",
    "metadata",
    "submitterPodTemplate",
    "submitterConfig",
    "entrypointNumCpus",
    "entrypointNumGpus",
    "entrypointResources",
}
CLUSTER = {
    "headGroupSpec",
    "workerGroupSpecs",
    "rayVersion",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "authOptions",
}
HEAD = {"rayStartParams", "template", "serviceType", "headService", "enableIngress"}
GROUP = {
    "groupName",
    "replicas",
    "minReplicas",
    "maxReplicas",
    "numOfHosts",
    "rayStartParams",
    "template",
}


def test_the_rayjob_has_the_fields_of_its_crd() -> None:
    job, config = yaml.safe_load_all((FOLDER / "kuberay-job.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,45}[a-z0-9])?", job["metadata"]["name"])
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    head, groups = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert set(spec) <= JOB
    assert set(cluster) <= CLUSTER
    assert cluster["authOptions"] == {"mode": "token"}
    assert {"rayStartParams", "template"} <= set(head) <= HEAD
    pods = [head["template"]["spec"]]
    for group in groups:
        assert (
            {"groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"}
            <= set(group)
            <= GROUP
        )
        assert group["minReplicas"] == group["replicas"] <= group["maxReplicas"]
        pods.append(group["template"]["spec"])
    for parameters in (head["rayStartParams"], *(group["rayStartParams"] for group in groups)):
        assert all(isinstance(value, str) for value in parameters.values())  # map[string]string
    assert len({container["image"] for pod in pods for container in pod["containers"]}) == 1
    for pod in pods:
        (container,) = pod["containers"]
        assert {"name", "image", "resources", "envFrom"} <= set(container)
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod.get("volumes", [])}
    assert isinstance(spec["backoffLimit"], int)
    assert (
        cluster["rayVersion"]
        == re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.M)[1]  # type: ignore[index]
    )
    assert parsed(shlex.split(spec["entrypoint"]))["address"] == "auto"
    assert set(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]) == {"OUTPUT"}
    (volume,) = head["template"]["spec"]["volumes"]
    assert (config["kind"], config["metadata"]["name"]) == (
        "ConfigMap",
        volume["configMap"]["name"],
    )
    file = Path(parsed(shlex.split(spec["entrypoint"]))["experiment"])
    assert (
        str(file.parent)
        == head["template"]["spec"]["containers"][0]["volumeMounts"][0]["mountPath"]
    )
    assert parse_experiment(yaml.safe_load(config["data"][file.name])).nfe == (4, 5, 6)


def test_the_slurm_script_is_clean_shell() -> None:
    script = str(FOLDER / "slurm.sh")
    subprocess.run(["bash", "-n", script], check=True)
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if shellcheck is None:
        pytest.skip("needs shellcheck (extra dev)")
    done = subprocess.run([shellcheck, script], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout


def dry_run(tmp_path: Path, driver: str, **environment: str) -> tuple[subprocess.Popen[str], Path]:
    """The Slurm script with programs that only write down how they were called."""
    programs, record = tmp_path / "bin", tmp_path / "record"
    programs.mkdir(parents=True)
    for name, more in {
        "ray": "print(os.environ['RAY_AUTH_MODE'], 'the-token')",
        "srun": SRUN, "scontrol": "print('node1\\nnode2\\nnode3')", "sleep": "",
        "python": "import time; time.sleep(1)  # the starts in the background write theirs",
        "ld3-dist": driver,
    }.items():  # fmt: skip
        (programs / name).write_text(RECORD.format(python=sys.executable, name=name, more=more))
        (programs / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "3", "SLURM_JOB_NODELIST": "node[1-3]"}
    slurm |= {"SLURM_CPUS_PER_TASK": "16", "SLURM_GPUS_ON_NODE": "4", "RECORD": str(record)}
    path = {"PATH": f"{programs}:/usr/bin:/bin", "ENVIRONMENT": str(tmp_path / "none")}
    command = ["bash", str(FOLDER / "slurm.sh"), "sweep.yaml", "/shared/out"]
    process = subprocess.Popen(
        command, env=slurm | path | environment, stdout=subprocess.PIPE, text=True
    )
    return process, record


def test_the_slurm_script_run_dry(tmp_path: Path) -> None:
    """Head on the first node, workers on the others, the driver once they are there; its exit code
    is the job's.
    """
    process, record = dry_run(tmp_path, "sys.exit(os.environ['RAY_AUTH_MODE'] == 'token')")
    assert process.wait(60) == 1
    assert process.stdout is not None
    assert "the-token" not in process.stdout.read()
    calls = [json.loads(line) for line in record.read_text().splitlines()]
    assert calls[0] == ["ray", "get-auth-token", "--generate"]
    starts = [call[call.index("ray") :] for call in calls if call[0] == "srun" and "ray" in call]
    options = [check_ray(start) for start in starts]
    assert sorted(bool(option["head"]) for option in options) == [False, True]
    (head,) = [option for option in options if option["head"]]
    (worker,) = [option for option in options if not option["head"]]
    assert (head["node_ip_address"], head["port"]) == ("10.1.2.3", 24711)
    assert worker["address"] == "10.1.2.3:24711"
    assert all(
        option["num_cpus"] == 16 and option["num_gpus"] == 4 and option["block"]
        for option in options
    )
    (workers,) = [
        call
        for call in calls
        if call[0] == "srun" and any(part.startswith("--address=") for part in call)
    ]
    assert {"--nodes=2", "--ntasks=2", "--exclude=node1"} <= set(workers)
    (waited,) = [call for call in calls if call[0] == "python"]
    assert waited[2:] == ["10.1.2.3:24711", "3"]
    (driven,) = [call for call in calls if call[0] == "ld3-dist"]
    arguments = parsed(driven)
    assert arguments["address"] == "10.1.2.3:24711"
    assert (str(arguments["experiment"]), arguments["output"]) == ("sweep.yaml", "/shared/out")
    assert calls.index(waited) < calls.index(driven)


def test_a_preempted_slurm_job_ends_the_driver_and_is_requeued(tmp_path: Path) -> None:
    import time

    ended = tmp_path / "ended"
    driver = f"""
import signal, time
def end(*_):
    open({str(ended)!r}, "w").close()
    sys.exit(1)
signal.signal(signal.SIGTERM, end)
with open(os.environ["RECORD"], "a") as file:
    file.write('["up"]\\n')
time.sleep(60)
"""
    process, record = dry_run(tmp_path, driver)
    for _ in range(300):
        if record.exists() and '["up"]' in record.read_text():
            break
        time.sleep(0.1)
    process.terminate()
    assert process.wait(20) == 143
    assert ended.exists()
    assert json.dumps(["scontrol", "requeue", "4711"]) in record.read_text()

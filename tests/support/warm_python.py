"""Python in processes of their own, without the seconds that importing PyTorch takes.

`run(arguments)` does what `python ARGUMENTS` does, for `-c CODE` and `-m MODULE`. Its process is
forked from one that has imported the package and done nothing else, so that it shares no state with
the tests nor with the calls before it. Not for tests of what an import does.

    python warm_python.py     takes requests from stdin, a line of JSON each; answers with the code
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PRELOADED = (
    "torch",
    "ld3_dist.cli.app",
    "ld3_dist.schedule.learning",
    "ld3_dist.schedule.evaluating",
    "ld3_dist.store.results",
    "typer.testing",
)
_server: subprocess.Popen[str] | None = None


def run(
    arguments: list[str],
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Exit code (minus the signal that ended it) and output of Python; folder and environment are
    those of the tests unless given.
    """
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place) / name for name in ("out", "error")]
        request = {
            "arguments": arguments,
            "folder": str(folder or Path.cwd()),
            "environment": dict(os.environ if environment is None else environment),
            "files": [str(file) for file in files],
        }
        server = _serving()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        out, error = (file.read_text() for file in files)
    return subprocess.CompletedProcess(arguments, code, out, error)


def _serving() -> subprocess.Popen[str]:
    global _server
    if _server is None or _server.poll() is not None:
        path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        _server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        atexit.register(_server.kill)
    return _server


def _become(request: dict[str, Any]) -> None:
    """Turn this forked process into the one asked for; does not return."""
    for file, standard in zip(request["files"], (1, 2), strict=True):
        descriptor = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, standard)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    given = request["environment"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = ["", *filter(None, given), *sys.path[1:]]
    kind, what, *rest = request["arguments"]
    sys.argv = [kind, *rest]
    code = 0
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            import __main__

            __main__.__dict__.pop("__file__", None)
            exec(compile(what, "<string>", "exec"), __main__.__dict__)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  what Python itself does
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    import importlib

    for name in PRELOADED:
        importlib.import_module(name)
    from ld3_dist.core import registry

    registry._loaded.clear()  # entry points are looked for on the path of each process
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _become(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()

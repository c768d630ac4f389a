"""Bad experiments by the hundred: each gets one message with file, key, value and remedy.

A row is what is written, and what the message must say. Nothing may be written by reading, and no
message may speak of the program's own types. The whole file has a timeout instead of a stopwatch.
"""

from __future__ import annotations

import copy
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ld3_dist.cli import app as cli
from ld3_dist.core.errors import InputError
from ld3_dist.experiment import load_experiment, settings
from ld3_dist.experiment.reading import blamed_on, parse_experiment
from ld3_dist.experiment.shape import all_keys

pytestmark = pytest.mark.timeout(20)

FINE: dict[str, Any] = {
    "name": "tiny",
    "models": ["analytic:mixture-2d"],
    "solvers": ["ddim", "heun"],
    "nfe": [3, 4],
    "teacher": {"solver": "unipc-3", "nfe": 12, "start": "karras"},
    "pairs": {"train": 8, "valid": 6},
    "learn": {"epochs": 2, "batch": 4},
    "search": {"rounds": 3, "members": {"seeds": 2, "starts": ["log_snr", "karras"]}},
    "baselines": ["uniform", "karras", "log_snr"],
    "evaluate": {"samples": 40},
    "resources": {"shard": 16},
}
OURS = re.compile(
    r"\b(str|int|bool|float|tuple|dict|NoneType|pydantic|validat\w+|union|constructor|"
    r"BaseModel|Range\(|function-\w+|<class|object at|Traceback)\b"
)
"""Words of the program that no user needs to know."""

# what stands at a key, and all that the message must say beside the file
VALUES: list[tuple[str, Any, list[str]]] = [
    # the commonest slips
    ("learn.gamma", [0, 1], ["learn.gamma", "give one", "search.grid.gamma"]),
    ("learn.lr", [0.1, 0.2], ["learn.lr", "give one", "search.grid.lr"]),
    ("learn.epochs", [1], ["learn.epochs", "give one", "search.grid.epochs"]),
    ("learn.coordinate", ["time"], ["learn.coordinate", "give one", "search.grid.coordinate"]),
    ("nfe", 4, ["nfe = 4", "write [4]"]),
    ("nfe", True, ["nfe = true", "must be a list"]),
    ("solvers", "ddim", ["solvers = 'ddim'", "write [ddim]"]),
    ("models", "digits", ["models = 'digits'", "write [digits]"]),
    ("baselines", "karras", ["baselines = 'karras'", "write [karras]"]),
    ("search.members.starts", "karras", ["search.members.starts", "write [karras]"]),
    ("search.grid", {"gamma": 0.1}, ["search.grid.gamma = 0.1", "write [0.1]"]),
    ("search.grid", {"coordinate": "time"}, ["search.grid.coordinate", "write [time]"]),
    ("search.optuna", {"lr": 0.1}, ["search.optuna.lr = 0.1", "list"]),
    ("nfe", [True], ["nfe.0 = true", "a whole number"]),
    ("nfe", [False], ["nfe.0 = false", "a whole number"]),
    ("nfe", ["4"], ["nfe.0 = '4'", "without quotes"]),
    ("nfe", ["four"], ["nfe.0 = 'four'", "a whole number"]),
    ("nfe", [[4]], ["nfe.0", "a list inside a list"]),
    ("nfe", [{"n": 4}], ["nfe.0", "one value"]),
    ("nfe", {"n": 4}, ["nfe", "a list"]),
    ("nfe", [2.5], ["nfe.0 = 2.5", "a whole number"]),
    ("nfe", [-1], ["nfe.0 = -1", "at least 1"]),
    # keys that are misspelt, or stand in the wrong section
    ("gama", 0.1, ["'gama'", "'learn.gamma'"]),
    ("gamma", 0.1, ["'gamma'", "belongs under learn.gamma"]),
    ("epochs", 3, ["'epochs'", "belongs under learn.epochs"]),
    ("batch", 3, ["'batch'", "belongs under learn.batch"]),
    ("seeds", 3, ["'seeds'", "belongs under search.members.seeds"]),
    ("rounds", 3, ["'rounds'", "belongs under search.rounds"]),
    ("grid", {}, ["'grid'", "belongs under search.grid"]),
    ("optuna", {}, ["'optuna'", "belongs under search.optuna"]),
    ("members", {}, ["'members'", "belongs under search.members"]),
    ("train", 3, ["'train'", "belongs under pairs.train"]),
    ("samples", 3, ["'samples'", "belongs under evaluate.samples"]),
    ("retries", 3, ["'retries'", "belongs under resources.retries"]),
    ("guidance", 3, ["'guidance'", "belongs under models.guidance"]),
    ("prompts", "a.txt", ["'prompts'", "belongs under models.prompts"]),
    ("model", ["digits"], ["'model'", "did you mean 'models'"]),
    ("solver", ["ddim"], ["'solver'", "did you mean 'solvers'"]),
    ("NFE", [3], ["'NFE'", "did you mean 'nfe'"]),
    ("Models", [3], ["'Models'", "did you mean 'models'"]),
    ("baseline", ["karras"], ["'baseline'", "did you mean 'baselines'"]),
    ("resource", {}, ["'resource'", "did you mean 'resources'"]),
    ("evalute", {}, ["'evalute'", "did you mean 'evaluate'"]),
    ("zzz", 1, ["'zzz'", "known here"]),
    ("learn.gama", 0.1, ["'learn.gama'", "did you mean 'gamma'"]),
    ("learn.epoch", 1, ["'learn.epoch'", "did you mean 'epochs'"]),
    ("learn.samples", 1, ["'learn.samples'", "belongs under evaluate.samples"]),
    ("search.gird", {}, ["'search.gird'", "did you mean 'grid'"]),
    ("search.gamma", [1], ["'search.gamma'", "belongs under learn.gamma or search.grid.gamma"]),
    ("search.seeds", 3, ["'search.seeds'", "belongs under search.members.seeds"]),
    ("search.grid", {"gama": [1]}, ["'search.grid.gama'", "did you mean 'gamma'"]),
    ("search.grid", {"nfe": [1]}, ["'search.grid.nfe'", "nfe"]),
    ("search.optuna", {"lrr": [1]}, ["'search.optuna.lrr'", "did you mean 'lr'"]),
    ("search.optuna", {"lr": {"lo": 1, "high": 2}}, ["search.optuna.lr.lo", "low"]),
    ("search.members.sedes", 3, ["'search.members.sedes'", "did you mean 'seeds'"]),
    ("teacher.nfee", 3, ["'teacher.nfee'", "did you mean 'nfe'"]),
    ("teacher.steps", 3, ["'teacher.steps'", "known here"]),
    ("pairs.training", 3, ["'pairs.training'", "did you mean 'train'"]),
    ("evaluate.sample", 3, ["'evaluate.sample'", "did you mean 'samples'"]),
    ("resources.gpus", 1, ["'resources.gpus'", "known here"]),
    ("resources.gpu_per_trial", 1, ["did you mean 'gpus_per_trial'"]),
    ("models", [{"modle": "digits"}], ["models.0.modle", "did you mean 'model'"]),
    ("models", [{"model": "digits", "guidence": 2}], ["models.0.guidence", "'guidance'"]),
    ("models", [{"name": "digits"}], ["models.0.model", "missing"]),
    ("search.asha", {"grase": 1}, ["search.asha.grase", "did you mean 'grace'"]),
    ("lpips.trunc", "a", ["'lpips.trunc'", "did you mean 'trunk'"]),
    # nothing where something belongs
    ("solvers", [None], ["solvers.0", "is empty", "after the dash"]),
    ("models", [None], ["models.0", "is empty"]),
    ("nfe", [3, None], ["nfe.1", "is empty"]),
    ("baselines", ["karras", None], ["baselines.1", "is empty"]),
    ("search.grid", {"gamma": [None]}, ["search.grid.gamma.0", "is empty"]),
    ("search.members.starts", [None], ["search.members.starts.0", "is empty"]),
    ("solvers", None, ["solvers", "is empty", "remove the key"]),
    ("models", None, ["models", "is empty"]),
    ("nfe", None, ["nfe", "is empty"]),
    ("teacher", None, ["teacher", "is empty", "remove the key"]),
    ("search", None, ["search", "is empty"]),
    ("learn", None, ["learn", "is empty"]),
    ("pairs", None, ["pairs", "is empty"]),
    ("learn.gamma", None, ["learn.gamma", "is empty"]),
    ("teacher.nfe", None, ["teacher.nfe", "is empty"]),
    ("search.grid", {"gamma": None}, ["search.grid.gamma", "is empty"]),
    ("seed", None, ["seed", "is empty"]),
    ("name", None, ["name", "is empty"]),
    ("resources.batch", None, ["resources.batch", "is empty"]),
    ("models", [{"model": None}], ["models.0.model", "is empty"]),
    ("solvers", [], ["solvers", "is empty", "at least 1"]),
    ("search.grid", {"gamma": []}, ["search.grid.gamma", "is empty"]),
    # names that are no names
    ("solvers", [["ddim"]], ["solvers.0", "a list inside a list"]),
    ("solvers", [{"ddim": 1}], ["solvers.0", "one value"]),
    ("solvers", [3], ["solvers.0 = 3", "in quotes"]),
    ("solvers", [True], ["solvers.0 = true", "in quotes"]),
    ("solvers", ["ddmi"], ["solvers.0", "'ddmi'", "did you mean 'ddim'"]),
    ("solvers", [""], ["solvers.0", "''"]),
    ("teacher.solver", ["ddim"], ["teacher.solver", "give one value"]),
    ("teacher.solver", {"ddim": 1}, ["teacher.solver", "one value"]),
    ("teacher.solver", 3, ["teacher.solver = 3", "word"]),
    ("teacher.solver", "unipc-9", ["teacher.solver", "'unipc-9'", "did you mean"]),
    ("teacher.start", "karas", ["teacher.start", "'karas'", "did you mean 'karras'"]),
    ("teacher.start", ["karras"], ["teacher.start", "give one value"]),
    ("baselines", ["unifrom"], ["baselines.0", "'unifrom'", "did you mean 'uniform'"]),
    ("baselines", [["karras"]], ["baselines.0", "a list inside a list"]),
    ("search.members.starts", ["logsnr"], ["search.members.starts.0", "did you mean 'log_snr'"]),
    ("search.members.starts", [7], ["search.members.starts.0 = 7", "word"]),
    ("distance", "l3", ["distance", "'l3'", "one of"]),
    ("distance", ["l1", "l2"], ["distance", "give one value", "search.grid.distance"]),
    ("distance", 2, ["distance = 2", "word"]),
    ("models", [["digits"]], ["models.0", "a list inside a list"]),
    ("models", [3], ["models.0 = 3"]),
    ("models", [{"model": ["digits"]}], ["models.0.model", "give one value"]),
    ("models", [{"model": 3}], ["models.0.model = 3", "word"]),
    ("models", {"model": "digits"}, ["models", "a list"]),
    ("models", [{"model": "digits", "name": 3}], ["models.0.name = 3", "word"]),
    ("models", [{"model": "digits", "name": ["a"]}], ["models.0.name", "give one value"]),
    ("models", [{"model": "digits", "prompts": ["a cat"]}], ["models.0.prompts", "give one"]),
    ("models", [{"model": "digits", "dtype": "float8"}], ["models.0.dtype", "'float8'", "float16"]),
    ("models", [{"model": "digits", "dtype": "flaot32"}], ["models.0.dtype", "'float32'"]),
    ("models", [{"model": "digits", "dtype": 32}], ["models.0.dtype = 32"]),
    ("name", ["a"], ["name", "give one value"]),
    ("name", 3, ["name = 3", "in quotes"]),
    ("name", "../x", ["name = '../x'", "letters"]),
    ("name", "", ["name = ''", "letters"]),
    ("name", "a b", ["name = 'a b'", "letters"]),
    ("search.sampler", "tpee", ["search.sampler = 'tpee'", "did you mean 'tpe'"]),
    ("search.sampler", ["tpe"], ["search.sampler", "give one value"]),
    ("search.sampler", True, ["search.sampler = true"]),
    ("loss_space", "pixel", ["loss_space = 'pixel'", "image, latent"]),
    ("resources.callbacks", "wandb", ["resources.callbacks", "write [wandb]"]),
    ("resources.callbacks", ["wanbd"], ["resources.callbacks.0", "did you mean 'wandb'"]),
    # numbers and switches
    ("seed", -1, ["seed = -1", "at least 0"]),
    ("seed", 1.5, ["seed = 1.5", "a whole number"]),
    ("seed", "1", ["seed = '1'", "without quotes"]),
    ("seed", True, ["seed = true", "a whole number"]),
    ("seed", [1], ["seed", "give one number"]),
    ("teacher.nfe", 0, ["teacher.nfe = 0", "at least 1"]),
    ("teacher.nfe", [20], ["teacher.nfe", "give one number"]),
    ("teacher.nfe", "20", ["teacher.nfe = '20'", "without quotes"]),
    ("teacher.nfe", True, ["teacher.nfe = true", "a whole number"]),
    ("pairs.train", 1, ["pairs.train = 1", "at least 2"]),
    ("pairs.valid", 0, ["pairs.valid = 0", "at least 1"]),
    ("pairs.valid", "ten", ["pairs.valid = 'ten'", "a whole number"]),
    ("pairs", 50, ["pairs = 50", "train, valid"]),
    ("pairs", [50, 50], ["pairs", "train, valid"]),
    ("teacher", "unipc-3/20", ["teacher = 'unipc-3/20'", "solver, nfe, start"]),
    ("search", "tpe", ["search = 'tpe'", "grid, optuna"]),
    ("search", [], ["search", "grid, optuna"]),
    ("search.members", 3, ["search.members = 3", "seeds, starts"]),
    ("search.asha", 3, ["search.asha = 3", "grace"]),
    ("search.asha", True, ["search.asha = true", "grace"]),
    ("search.rounds", 0, ["search.rounds = 0", "at least 1"]),
    ("search.rounds", 1.5, ["search.rounds = 1.5", "a whole number"]),
    ("search.members.seeds", [0, 1], ["search.members.seeds", "give one number"]),
    ("search.members.seeds", 0, ["search.members.seeds = 0", "at least 1"]),
    ("search.grid", [], ["search.grid", "keys"]),
    ("search.grid", "gamma", ["search.grid = 'gamma'", "keys"]),
    ("search.grid", {"gamma": [[0, 1]]}, ["search.grid.gamma.0", "a list inside a list"]),
    ("search.grid", {"gamma": [-1]}, ["search.grid.gamma", "-1", "not negative"]),
    ("search.grid", {"gamma": [0, 0]}, ["search.grid.gamma", "twice"]),
    ("search.grid", {"gamma": {"low": 0, "high": 1}}, ["search.grid.gamma", "a list"]),
    ("search.optuna", {"lr": {"low": 2, "high": 1}}, ["search.optuna.lr", "low = 2", "below"]),
    ("search.optuna", {"lr": {"low": 2}}, ["search.optuna.lr.high", "missing"]),
    ("search.optuna", {"lr": {"low": "a", "high": 1}}, ["search.optuna.lr.low", "a number"]),
    ("search.optuna", {"lr": {"low": True, "high": 3}}, ["search.optuna.lr.low", "a number"]),
    ("search.optuna", {"lr": {"low": 1, "high": 2, "log": "yes"}}, ["optuna.lr.log", "write true"]),
    ("learn", [], ["learn", "keys"]),
    ("learn", "paper", ["learn = 'paper'", "keys"]),
    ("learn.gamma", -1, ["learn.gamma = -1", "not negative"]),
    ("learn.epochs", 0, ["learn.epochs = 0", "at least 1"]),
    ("learn.batch", 2.5, ["learn.batch = 2.5", "a whole number"]),
    ("learn.coefficients", "yes", ["learn.coefficients = 'yes'", "true or false"]),
    ("learn.coefficients", "on", ["learn.coefficients = 'on'", "true or false"]),
    ("learn.coordinate", "sigma", ["learn.coordinate", "'sigma'", "one of"]),
    ("learn.offset_window", 1, ["learn.offset_window = 1", "[0, 1)"]),
    ("evaluate.samples", -1, ["evaluate.samples = -1", "at least 0"]),
    ("evaluate.pictures", 65, ["evaluate.pictures = 65", "at most 64"]),
    ("evaluate.samples", "many", ["evaluate.samples = 'many'", "a whole number"]),
    ("evaluate.extractor", 3, ["evaluate.extractor = 3", "word"]),
    ("resources.gpus_per_trial", -1, ["resources.gpus_per_trial = -1", "at least 0"]),
    ("resources.deadline", 0, ["resources.deadline = 0", "above 0"]),
    ("resources.deadline", "1h", ["resources.deadline = '1h'", "a number"]),
    ("resources.cpus_per_trial", True, ["resources.cpus_per_trial = true", "a number"]),
    ("resources.actors", 0, ["resources.actors = 0", "at least 1"]),
    ("resources.actors", [1], ["resources.actors", "give one"]),
    ("resources.checkpoint_seconds", float("inf"), ["resources.checkpoint_seconds", "finite"]),
    ("models", [{"model": "digits", "size": 32}], ["models.0.size = 32", "a list"]),
    ("models", [{"model": "digits", "size": [32, "x"]}], ["models.0.size.1 = 'x'", "whole"]),
    ("models", [{"model": "digits", "size": [32, True]}], ["models.0.size.1 = true", "whole"]),
    ("models", [{"model": "digits", "guidance": "7.5"}], ["models.0.guidance", "without quotes"]),
    ("models", [{"model": "digits", "guidance": True}], ["models.0.guidance = true", "a number"]),
    ("models", [{"model": "digits", "guidance": -1}], ["models.0.guidance = -1", "at least 0"]),
    ("models", [{"model": "digits", "shift": 0}], ["models.0.shift = 0", "above 0"]),
    ("models", [{"model": "digits", "compile": "yes"}], ["models.0.compile = 'yes'", "write true"]),
    ("models", [{"model": "digits", "compile": 1}], ["models.0.compile = 1", "true or false"]),
    ("models", [{"model": "digits", "conditional": "off"}], ["models.0.conditional", "false"]),
    ("lpips.upsample", "no", ["lpips.upsample = 'no'", "write false"]),
]  # fmt: skip

UNBOUNDED: list[tuple[str, Any, list[str]]] = [
    ("nfe", [10**9], ["nfe.0 = 1000000000", "at most 1,000"]),
    ("nfe", [10**30], ["nfe.0", "at most 1,000"]),
    ("teacher.nfe", 10**9, ["teacher.nfe", "at most 1,000"]),
    ("search.members.seeds", 10**9, ["search.members.seeds", "at most 1,000"]),
    ("seed", 2**63, ["seed", "below 9,223,372,036,854,775,808"]),
    ("search.rounds", 10**9, ["search.rounds", "at most 100,000"]),
    ("search.grid", {"gamma": [i / 1e4 for i in range(3000)], "lr": [i / 1e4 for i in range(3000)]},
     ["3,000 of gamma x 3,000 of lr", "10,000", "search.optuna"]),
    ("pairs.train", 10**12, ["pairs.train", "at most 10,000,000"]),
    ("evaluate.samples", 10**12, ["evaluate.samples", "at most 10,000,000"]),
    ("models", [{"model": "digits", "name": "n" * 300}], ["models.0.name", "at most 100"]),
    ("models", [{"model": "digits", "name": "a[b]"}], ["models.0.name", "'['", "letters"]),
    ("models", [{"model": "digits", "name": "a\\b"}], ["models.0.name", "letters"]),
    ("models", [{"model": "digits", "name": " a"}], ["models.0.name", "blanks"]),
    ("models", [{"model": "digits", "name": ""}], ["models.0.name", "empty"]),
    ("models", ["edm:a[b].pkl"], ["models.0", "'['", "name"]),
    ("name", "n" * 300, ["name", "at most 100"]),
    ("resources.retries", 10**9, ["resources.retries", "at most 1,000"]),
    ("models", [{"model": "digits", "size": [10**9, 3]}], ["models.0.size.0", "at most 16,384"]),
]  # fmt: skip
"""Rows that the types of `limits` refuse."""

BOUNDED = "limits" in Path(str(settings.__file__)).read_text()
"""True where the settings are made of those types."""

HEAD = "models: [digits]\nsolvers: [ddim]\n"
MULTIPLYING = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{y}: &{y} [{','.join([f'*{x}'] * 10)}]\n" for x, y in zip("abcdefg", "bcdefgh", strict=True)
)
TEXTS: list[tuple[str, bytes, list[str]]] = [
    ("duplicate", f"{HEAD}nfe: [3]\nseed: 1\nnfe: [4]\n".encode(), ["'nfe'", "line 3", "line 5"]),
    ("duplicate inside", f"{HEAD}nfe: [3]\nlearn: {{lr: 1, lr: 2}}".encode(), ["'lr'", "twice"]),
    ("utf-16", f"{HEAD}nfe: [3]".encode("utf-16"), ["UTF-16", "UTF-8"]),
    ("latin-1", f"{HEAD}name: Kätzchen".encode("latin-1"), ["line 3", "UTF-8"]),
    ("control", f"{HEAD}name: a\x07b".encode(), ["U+0007", "line 3"]),
    ("escaped control", f'{HEAD}name: "a\\eb"'.encode(), ["U+001B", "line 3"]),
    ("nul", f"{HEAD}name: a\0b".encode(), ["U+0000", "line 3"]),
    ("brackets", b"nfe: " + b"[" * 5000, ["5000 brackets"]),
    ("many brackets", b"[" * 900_000, ["900000 brackets"]),
    ("braces", b"{a: " * 5000, ["5000 brackets"]),
    ("dashes", b"- " * 100_000, ["levels deep"]),
    ("big", b"#" * 30_000_000, ["30,000,000 bytes", "1,000,000"]),
    ("digits", f"{HEAD}nfe: [{'9' * 500}]".encode(), ["line 3", "500 characters"]),
    ("more digits", f"{HEAD}nfe: [{'9' * 9000}]".encode(), ["line 3", "9000 characters"]),
    ("infinite", f"{HEAD}nfe: [3]\nlearn: {{lr: 1e999}}".encode(), ["line 4", "too large"]),
    ("octal", f"{HEAD}nfe: [010]".encode(), ["line 3", "leading zero", "write 10"]),
    ("aliases", MULTIPLYING.encode(), ["values", "aliases"]),
    ("tag", f"{HEAD}nfe: !!set {3}".encode(), ["tag", "remove it"]),
    ("executed", b"!!python/object/apply:os.system ['touch executed']", ["tag", "remove it"]),
    ("documents", f"{HEAD}nfe: [3]\n---\nnfe: [4]".encode(), ["line 4", "second document"]),
    ("empty", b"", ["must hold keys"]),
    ("list", b"- digits", ["must hold keys"]),
    ("word", b"digits", ["must hold keys"]),
    ("cut", b"models: [digits", ["not valid YAML"]),
    ("tab", b"models:\n\t- digits", ["not valid YAML", "line 2"]),
    ("two colons", b"a: b: c", ["not valid YAML", "line 1"]),
    ("list as key", b"[a]: 1", ["a key must be a word", "line 1"]),
]  # fmt: skip


def changed(path: str, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(FINE)
    *outer, last = path.split(".")
    place = data
    for part in outer:
        place = place.setdefault(part, {})
    place[last] = value
    return data


def test_there_are_enough_and_the_rest_is_fine() -> None:
    assert len(VALUES) + len(TEXTS) >= 150
    assert parse_experiment(FINE).name == "tiny"


def refuse(file: Path, parts: list[str]) -> None:
    before = sorted(os.listdir(file.parent))
    with pytest.raises(InputError) as caught:
        load_experiment(file)
    message = str(caught.value)
    for line in message.splitlines():
        assert line.startswith(f"{file}: ")
    for part in parts:
        assert part in message, message
    assert not OURS.search(message.replace(str(file), "")), message
    assert len(message) < 1500
    assert sorted(os.listdir(file.parent)) == before


@pytest.mark.parametrize(
    ("path", "value", "parts"), VALUES, ids=[f"{p}={v!r}"[:60] for p, v, _ in VALUES]
)
def test_bad_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, value: Any, parts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(changed(path, value)))
    refuse(tmp_path / "my.yaml", parts)


@pytest.mark.skipif(not BOUNDED, reason="the settings do not use the types of limits")
@pytest.mark.parametrize(
    ("path", "value", "parts"), UNBOUNDED, ids=[f"{p}={v!r}"[:40] for p, v, _ in UNBOUNDED]
)
def test_numbers_and_names_have_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, value: Any, parts: list[str]
) -> None:
    test_bad_values(tmp_path, monkeypatch, path, value, parts)


@pytest.mark.parametrize(
    ("name", "content", "parts"), TEXTS, ids=[name.replace(" ", "-") for name, _, _ in TEXTS]
)
def test_bad_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, parts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_bytes(content)
    refuse(tmp_path / "my.yaml", parts)


@pytest.mark.parametrize("command", ["show", "sweep", "teach", "evaluate", "doctor"])
@pytest.mark.parametrize(("path", "value", "parts"), VALUES[::23])
def test_commands_end_with_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    command: str, path: str, value: Any, parts: list[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(changed(path, value)))
    monkeypatch.setattr(sys, "argv", ["ld3-dist", command, "my.yaml"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert all(part in err for part in ("my.yaml", *parts))
    assert "Traceback" not in err
    assert os.listdir(tmp_path) == ["my.yaml"]


ODD: list[Any] = [
    None, True, 0, -1, 1.5, 10**25, float("nan"), float("inf"), "", "x", "[a]", "é\u2028",
    [], [[]], [None], [True], ["x", 3], [{}], [1, [2]],
    {}, {"x": 1}, {"low": 1}, {"x": None}, {"a": {"b": {"c": []}}},
]  # fmt: skip
EVERY_KEY = [key.replace("models.", "models.0.") for key in all_keys(settings.Experiment)]


@pytest.mark.parametrize("key", EVERY_KEY)
def test_whatever_stands_at_a_key_is_taken_or_refused(key: str) -> None:
    """No other error, and no message in the program's own words."""
    for value in ODD:
        data = copy.deepcopy(FINE) | {"models": [{"model": "digits"}]}
        *outer, last = key.split(".")
        place: Any = data
        for part in outer:
            place = place[0] if part == "0" else place.setdefault(part, {})
        place[last] = value
        message = "my.yaml: "
        try:
            parse_experiment(data, "my.yaml")
        except InputError as error:
            message = str(error)
        assert message.startswith("my.yaml: ")
        assert "a value cannot be used" not in message, f"{value!r}: {message}"
        assert not OURS.search(message), f"{value!r}: {message}"


def test_special_files_are_refused_before_reading(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/stdin")):
        with pytest.raises(InputError, match="cannot be read"):
            load_experiment(place)


def test_many_mistakes_are_not_all_told() -> None:
    with pytest.raises(InputError, match="and 35 more mistakes"):
        parse_experiment({**FINE, **{f"wrong{i}": i for i in range(55)}}, "my.yaml")


def test_a_cause_found_later_is_named_with_file_and_key() -> None:
    with (
        pytest.raises(InputError, match=r"^my\.yaml: models\.0\.model: no such file$"),
        blamed_on("my.yaml", "models.0.model"),
    ):
        raise InputError("no such file")
    with (
        pytest.raises(InputError, match=r"^my\.yaml: said already$"),
        blamed_on("my.yaml", "models.0.model"),
    ):
        raise InputError("my.yaml: said already")

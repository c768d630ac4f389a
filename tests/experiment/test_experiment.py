"""Experiments: what they mean (cells, ranges, keys, cost) and what they refuse, with file, key,
value and remedy.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from ld3_dist.core.errors import InputError
from ld3_dist.experiment import Experiment, Plan, load_experiment, parse_experiment
from ld3_dist.experiment.cost import cost_of

ROOT = Path(__file__).parents[2]

TINY: dict[str, Any] = {
    "name": "tiny",
    "models": ["analytic:mixture-2d"],
    "solvers": ["ddim", "heun"],
    "nfe": [3, 4],
    "teacher": {"solver": "unipc-3", "nfe": 12, "start": "karras"},
    "pairs": {"train": 8, "valid": 6},
    "learn": {"epochs": 2, "batch": 4},
    "search": {
        "grid": {"gamma": [0, 0.01], "coordinate": ["lambda", "time"]},
        "optuna": {"lr": {"low": 0.03, "high": 0.3, "log": True}},
        "rounds": 3,
        "members": {"seeds": 2, "starts": ["log_snr", "karras"]},
    },
    "baselines": ["uniform", "karras", "log_snr"],
    "evaluate": {"samples": 40},
    "resources": {"shard": 16},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """TINY with the value at a dotted path replaced."""
    data = copy.deepcopy(TINY)
    *outer, last = path.split(".")
    place = data
    for part in outer:
        place = place.setdefault(part, {})
    place[last] = value
    return data


def plan_of(data: dict[str, Any], hashes: str = "h") -> Plan:
    experiment = parse_experiment(data)
    return Plan(experiment, {m.label: f"{hashes} {m.label}" for m in experiment.models})


# each: what is set, and all that the message must say: key, value, remedy
BAD = [
    ("solver", ["ddim"], ["'solver'", "did you mean 'solvers'"]),
    ("teacher.nfee", 3, ["'teacher.nfee'", "did you mean 'nfe'"]),
    ("search.members.sedes", 3, ["'search.members.sedes'", "did you mean 'seeds'"]),
    ("resources.gpu_per_trial", 1, ["did you mean 'gpus_per_trial'"]),
    ("learn.gama", 0.1, ["'gama'", "did you mean 'gamma'"]),
    ("search.grid.gama", [0.1], ["search.grid", "'gama'", "did you mean 'gamma'"]),
    ("search.optuna.lr_tims", [0.1], ["search.optuna", "'lr_tims'", "did you mean 'lr_times'"]),
    (
        "models",
        [{"model": "digits", "guidence": 2}],
        ["models.0.guidence", "did you mean 'guidance'"],
    ),
    ("solvers", ["ddmi"], ["solvers.0", "'ddmi'", "did you mean 'ddim'"]),
    ("teacher.solver", "unipc-9", ["teacher.solver", "'unipc-9'", "did you mean"]),
    ("teacher.start", "karas", ["teacher.start", "'karas'", "did you mean 'karras'"]),
    ("baselines", ["unifrom"], ["baselines.0", "'unifrom'", "did you mean 'uniform'"]),
    ("search.members.starts", ["logsnr"], ["'logsnr'", "did you mean 'log_snr'"]),
    ("search.grid.start", ["logsnr"], ["'logsnr'", "did you mean 'log_snr'"]),
    ("distance", "l3", ["distance", "'l3'", "one of"]),
    ("search.grid.distance", ["l3"], ["'l3'", "one of"]),
    ("nfe", "four", ["nfe", "'four'"]),
    ("nfe", [3.5], ["nfe.0", "3.5"]),
    ("nfe", [0], ["nfe.0", "0", "at least 1"]),
    ("nfe", [1], ["nfe", "1", "heun", "2"]),
    ("nfe", [], ["nfe", "at least 1"]),
    ("models", [], ["models", "at least 1"]),
    ("solvers", [], ["solvers", "at least 1"]),
    ("baselines", [], ["baselines", "at least 1"]),
    ("search.grid.gamma", [], ["search.grid.gamma", "at least 1"]),
    ("search.optuna.lr", [], ["search.optuna.lr", "at least 1"]),
    ("search.members.starts", [], ["search.members.starts", "at least 1"]),
    ("search.grid.gamma", [0, -0.1], ["gamma", "-0.1", "at least 0"]),
    ("learn.lr_noise", -1, ["lr_noise", "-1", "at least 0"]),
    ("learn.clip", "fast", ["clip", "'fast'"]),
    ("learn.clip", True, ["clip", "True"]),
    ("learn.clip", float("nan"), ["learn.clip", "nan", "finite"]),
    ("learn.epochs", 2.5, ["epochs", "2.5", "whole number"]),
    ("learn.epochs", 0, ["epochs", "0", "at least 1"]),
    ("learn.coefficients", "yes please", ["learn.coefficients", "true or false"]),
    ("learn.procedure", "papr", ["learn.procedure", "'papr'", "did you mean 'paper'"]),
    (
        "search.grid.procedure",
        ["default", "papr"],
        ["search", "grid.procedure", "'papr'", "did you mean 'paper'"],
    ),
    ("search.optuna.procedure", {"low": 0, "high": 1}, ["optuna.procedure", "list"]),
    (
        "learn",
        {"procedure": "paper", "coefficients": True},
        ["learn.coefficients", "paper", "procedure: default"],
    ),
    (
        "search.grid",
        {"procedure": ["default", "paper"], "coefficients": [False, True]},
        [
            "search.grid.procedure = 'paper'",
            "search.grid.coefficients",
            "procedure: default",
        ],
    ),
    (
        "search.optuna",
        {"procedure": ["default", "paper"], "coefficients": [False, True]},
        [
            "search.optuna.procedure = 'paper'",
            "search.optuna.coefficients",
            "procedure: default",
        ],
    ),
    ("learn.checkpointing", "maybe", ["learn.checkpointing", "'maybe'", "auto, always, never"]),
    ("learn.checkpointing", 3, ["learn.checkpointing", "3", "a word"]),
    ("search.grid.coordinate", ["sigma"], ["grid.coordinate", "'sigma'", "one of"]),
    ("learn.offset_window", 1.0, ["offset_window", "1.0"]),
    (
        "search.optuna.lr_times",
        {"low": 0.3, "high": 0.03},
        ["search.optuna.lr_times", "low = 0.3", "high = 0.03"],
    ),
    ("search.optuna.lr_times", {"low": 0.3, "high": 0.3}, ["search.optuna.lr_times", "below high"]),
    ("search.optuna.lr_times", {"low": -0.3, "high": 0.3}, ["search.optuna.lr_times", "-0.3"]),
    (
        "search.optuna.lr_times",
        {"low": 0, "high": 0.3, "log": True},
        ["search.optuna.lr_times", "positive"],
    ),
    ("search.optuna.lr_times", {"low": 0.1}, ["search.optuna.lr_times", "high"]),
    ("search.optuna.start", {"low": 0.1, "high": 1}, ["start", "list"]),
    ("search.optuna.coefficients", {"low": 0.1, "high": 1}, ["optuna.coefficients", "list"]),
    ("search.optuna.gamma", {"low": 0.1, "high": 1}, ["'gamma'", "grid", "optuna", "keep one"]),
    ("learn.gamma", 0.1, ["learn.gamma", "0.1", "searched", "keep one"]),
    ("nfe", [3, 3], ["nfe", "3", "twice", "remove one"]),
    ("solvers", ["ddim", "ddim"], ["solvers", "'ddim'", "twice"]),
    ("models", ["digits", "digits"], ["models", "'digits'", "twice"]),
    ("baselines", ["karras", "karras"], ["baselines", "'karras'", "twice"]),
    ("search.grid.gamma", [0, 0.0], ["gamma", "twice"]),
    ("search.members.starts", ["karras", "karras"], ["starts", "'karras'", "twice"]),
    ("pairs.train", 1, ["pairs.train", "1", "at least 2"]),
    ("pairs.valid", 0, ["pairs.valid", "0"]),
    ("search.rounds", 0, ["search.rounds", "0"]),
    ("search.members.seeds", 0, ["search.members.seeds", "0"]),
    ("search.sampler", "tpee", ["search.sampler", "'tpee'", "tpe"]),
    ("evaluate.samples", -1, ["evaluate.samples", "-1"]),
    ("resources.gpus_per_trial", -1, ["resources.gpus_per_trial", "-1"]),
    ("resources.actors", 0, ["resources.actors", "0"]),
    ("resources.deadline", 0, ["resources.deadline", "0"]),
    ("seed", -1, ["seed", "-1"]),
    ("name", "../elsewhere", ["name", "'../elsewhere'"]),
    ("models", [{"model": "digits", "guidance": -1}], ["models.0.guidance", "-1"]),
    ("models", [{"model": "digits", "dtype": "float4"}], ["models.0.dtype", "'float4'", "float16"]),
    ("models", [3], ["models.0"]),
    ("search", "tpe", ["search", "'tpe'"]),
]


@pytest.mark.parametrize(
    ("path", "value", "parts"), BAD, ids=[f"{p}={v!r}"[:50] for p, v, _ in BAD]
)
def test_bad_input_is_named(tmp_path: Path, path: str, value: Any, parts: list[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(changed(path, value)))
    with pytest.raises(InputError) as caught:
        load_experiment(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    for part in parts:
        assert part in message, message
    assert "pydantic" not in message
    assert len(message) < 900


@pytest.mark.parametrize("key", ["models", "solvers", "nfe"])
def test_missing_keys(key: str) -> None:
    with pytest.raises(InputError, match=f"key '{key}' is missing"):
        parse_experiment({k: v for k, v in TINY.items() if k != key})


def test_mistakes_of_combinations_stand_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        yaml.safe_dump(
            changed("learn.coefficients", True) | {"search": {"grid": {"procedure": ["paper"]}}}
        )
    )
    with pytest.raises(InputError) as caught:
        load_experiment(file)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(
        f"{file}: with search.grid.procedure = 'paper', "
        "learn.coefficients: procedure paper has no such"
    )


def test_every_mistake_is_told_at_once() -> None:
    data = changed("nfe", [])
    data["solvers"], data["pears"] = ["ddmi"], 3
    with pytest.raises(InputError) as caught:
        parse_experiment(data, "mine.yaml")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("mine.yaml: ") for line in lines)


@pytest.mark.parametrize(
    ("text", "say"),
    [
        ("models: [digits\nnfe: 3", "not valid YAML"),
        ("a: b: c", "not valid YAML"),
        ("", "must hold keys"),
        ("- digits", "must hold keys"),
        ("just words", "must hold keys"),
        ("!!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_files_that_are_no_experiment(tmp_path: Path, text: str, say: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=say) as caught:
        load_experiment(file)
    assert str(file) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.yaml: cannot be read \(No such file"):
        load_experiment(tmp_path / "missing.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        load_experiment(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="UTF-8"):
        load_experiment(tmp_path / "binary.yaml")


def test_an_empty_axis_table_is_one_trial() -> None:
    plan = plan_of({k: v for k, v in TINY.items() if k != "search"})
    assert plan.points() == [{}]


@pytest.mark.parametrize(
    "file", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda f: f.name
)
def test_shipped_experiments_are_valid(file: Path) -> None:
    assert load_experiment(file).name


def reordered(value: Any) -> Any:
    """The same mapping with every mapping's keys in reverse order."""
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return value


def trial_keys(plan: Plan) -> set[str]:
    return {
        plan.trial(cell, point | {"lr": 0.1}).key for cell in plan.cells for point in plan.points()
    }


def test_keys_and_fingerprints_ignore_order_name_and_resources() -> None:
    plan = plan_of(TINY)
    others = [
        reordered(TINY),
        yaml.safe_load(yaml.safe_dump(TINY)),
        changed("name", "other"),
        changed(
            "resources",
            {"cpus_per_trial": 3, "gpus_per_trial": 0.5, "batch": 7, "retries": 0, "shard": 3},
        ),
        changed("search.grid.gamma", [0.0, 0.01]),  # 0 and 0.0 are the same setting
    ]
    for data in others:
        other = plan_of(data)
        assert other.fingerprint == plan.fingerprint
        assert trial_keys(other) == trial_keys(plan)
        assert [other.baselines(c) for c in other.cells] == [plan.baselines(c) for c in plan.cells]
        model = other.experiment.models[0]
        assert other.teacher_key(model) == plan.teacher_key(plan.experiment.models[0])


@pytest.mark.parametrize(
    ("path", "value", "same_pairs"),
    [
        ("seed", 1, False),
        ("teacher.nfe", 13, False),
        ("teacher.start", "uniform", False),
        ("models", ["analytic:mixture-1d"], False),
        ("pairs.train", 9, True),
        ("pairs.valid", 7, True),
        ("learn.batch", 5, True),
        ("distance", "l1", True),
    ],
)
def test_what_changes_results_changes_keys(path: str, value: Any, same_pairs: bool) -> None:
    plan, other = plan_of(TINY), plan_of(changed(path, value))
    assert other.fingerprint != plan.fingerprint
    assert not trial_keys(other) & trial_keys(plan)
    keys = [p.teacher_key(p.experiment.models[0]) for p in (plan, other)]
    assert (keys[0] == keys[1]) is same_pairs


def test_other_weights_are_another_experiment() -> None:
    plan, other = plan_of(TINY, "a"), plan_of(TINY, "b")
    assert other.fingerprint != plan.fingerprint
    assert not trial_keys(other) & trial_keys(plan)
    assert plan.teacher_key(plan.experiment.models[0]) != other.teacher_key(
        other.experiment.models[0]
    )


def test_keys_of_all_trials_differ() -> None:
    plan = plan_of(TINY)
    assert len(trial_keys(plan)) == len(plan.cells) * len(plan.points())
    ids = [cell.id for cell in plan.cells]
    assert len(set(ids)) == len(ids) == 4


def test_cells_in_words() -> None:
    models = [
        "digits",
        {"model": "digits", "guidance": 2.0},
        {"model": "digits", "conditional": False},
    ]
    plan = plan_of(changed("models", models))
    assert [cell.id for cell in plan.cells[::4]] == [
        "digits/ddim/3",
        "digits-w2/ddim/3",
        "digits-uncond/ddim/3",
    ]
    assert [cell.steps for cell in plan.cells[:4]] == [
        3,
        4,
        2,
        2,
    ]  # heun: an odd number ends on one stage


def test_ranges_of_samples_are_disjoint() -> None:
    plan = plan_of(TINY)
    ranges = [plan.valid_range, plan.train_range(0), plan.train_range(1), plan.eval_range]
    assert [stop - start for start, stop in ranges] == [6, 8, 8, 40]
    assert [start for start, _ in ranges] == [0, 10**6, 2 * 10**6, 10**9]
    # nothing moves where counts grow
    many = {"pairs": {"train": 10**6, "valid": 99}, "resources": {"shard": 10**5}}
    more = plan_of(changed("search.members.seeds", 999) | many)
    assert [more.train_range(seed)[0] for seed in (0, 1)] == [10**6, 2 * 10**6]
    assert more.train_range(998)[1] == 10**9 == more.eval_range[0]
    sets = plan_of(changed("evaluate.repeats", 3)).eval_ranges
    assert sets == [(10**9 + r * 10**7, 10**9 + r * 10**7 + 40) for r in range(3)]


@pytest.mark.parametrize("size", [1, 7, 16, 1000])
def test_shards_cover_every_sample_once(size: int) -> None:
    plan = plan_of(changed("resources.shard", size))
    shards = plan.shards()
    wanted = [i for start, stop in plan.sample_ranges() for i in range(start, stop)]
    assert len(wanted) == 62
    assert [i for start, stop in shards for i in range(start, stop)] == wanted
    assert all(0 < stop - start <= size for start, stop in shards)


def test_members_are_seeds_with_starts() -> None:
    plan = plan_of(TINY)
    spec = plan.trial(plan.cells[0], {"gamma": 0.01, "lr": 0.2})
    assert spec.members == ((0, "log_snr"), (0, "karras"), (1, "log_snr"), (1, "karras"))
    assert (spec.config.gamma, spec.config.lr, spec.config.epochs, spec.config.batch) == (
        0.01,
        0.2,
        2,
        4,
    )
    chosen = plan.trial(plan.cells[0], {"start": "uniform", "distance": "l1"})
    assert chosen.members == ((0, "uniform"), (1, "uniform"))
    assert chosen.settings["distance"] == "l1"


PUBLISHED = {
    "lr": 0.005,
    "lr_times": 0.1,
    "lr_noise": 12.0,
    "batch": 2,
    "epochs": 2 + 5,
    "knots_only": 2,
    "patience": 5,
}
"""Of the EDM models (arXiv 2405.15506, its code): RMSprop 0.005, SGD 0.1 / N and 12 / N, batches of
2, 2 + 5 rounds.
"""


def test_a_preset_gives_what_is_not_said() -> None:
    data = {k: v for k, v in TINY.items() if k not in ("search", "learn")}
    plan = plan_of(data | {"learn": {"procedure": "paper"}})
    config = plan.trial(plan.cells[0], {}).config
    assert {key: getattr(config, key) for key in PUBLISHED} == PUBLISHED
    plan = plan_of(data | {"learn": {"procedure": "paper", "epochs": 3, "lr_times": 0.001}})
    config = plan.trial(plan.cells[0], {"lr": 0.1}).config
    assert (config.epochs, config.lr_times, config.lr, config.batch) == (3, 0.001, 0.1, 2)


def test_presets_searched_have_their_own_values() -> None:
    data = {k: v for k, v in TINY.items() if k not in ("search", "learn")}
    plan = plan_of(
        data | {"learn": {"epochs": 9}, "search": {"grid": {"procedure": ["default", "paper"]}}}
    )
    ours, paper = (plan.trial(plan.cells[0], point) for point in plan.points())
    assert (ours.config.procedure, ours.config.batch, ours.config.lr) == ("default", 5, 0.2)
    assert (paper.config.procedure, paper.config.batch, paper.config.lr) == ("paper", 2, 0.005)
    assert ours.config.epochs == paper.config.epochs == 9  # said, so it holds for both
    assert paper.settings["learn"]["lr_noise"] == 12.0  # keys and rows are of resolved settings
    assert ours.key != paper.key
    assert (
        len({plan_of(data | {"learn": {"procedure": p}}).fingerprint for p in ("default", "paper")})
        == 2
    )


def test_cost_of_the_published_procedure_by_hand() -> None:
    """4 batches of 2 a round: a pair forward, backward (2), and once more for its move; 6 held-out
    after a batch.
    """
    data = {k: v for k, v in TINY.items() if k != "search"} | {
        "learn": {"procedure": "paper", "epochs": 3}
    }
    cost = cost_of(plan_of(data | {"search": {"members": {"seeds": 1}}}))
    assert cost["search"] == (3 + 4 + 3 + 4) * (3 * (8 * 4 + 4 * 6) + 6 + 3 * 6)


@pytest.mark.parametrize("text", ["on", "off", "'on'", "true"])
def test_switches_are_no_words_for_checkpointing(text: str, tmp_path: Path) -> None:
    """YAML reads `on` as true elsewhere; the words are always and never, so that none is lost."""
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in TINY.items() if k != "learn"}))
    file.write_text(f"{file.read_text()}learn: {{checkpointing: {text}}}\n")
    with pytest.raises(InputError, match=r"learn\.checkpointing") as caught:
        load_experiment(file)
    assert "always" in str(caught.value) or "a word" in str(caught.value)


def test_recomputation_of_one_model_is_checkpointing_of_its_trials() -> None:
    models = ["analytic:mixture-2d", {"model": "analytic:mixture-1d", "recompute": True}]
    plan = plan_of(changed("models", models))
    found = {
        cell.model.label: plan.trial(cell, {"gamma": 0}).config.checkpointing for cell in plan.cells
    }
    assert found == {"analytic:mixture-2d": "auto", "analytic:mixture-1d": "always"}
    for contradiction in (
        {"learn": {"checkpointing": "never"}},
        {"search": {"grid": {"checkpointing": ["always", "never"]}}},
    ):
        with pytest.raises(
            InputError,
            match=r"models\.1\.recompute = true, but learn\.checkpointing = .*never.*keep one",
        ):
            parse_experiment(changed("models", models) | contradiction)


def test_cost_by_hand() -> None:
    """In network evaluations of one sample; a backward pass counts as two.

    62 samples by a teacher of 12. In each of 4 cells (nfe 3, 4, 3, 4): 3 rounds of 2 coordinates
    with 4 members of 2 epochs; an epoch trains on 8 pairs (forward 1, backward 2; the noise's moves
    cost nothing) and validates on 6, as the start is; 3 baselines on 6 pairs. 40 samples of 3
    baselines and 4 members."""
    cost = cost_of(plan_of(TINY))
    assert cost["teach"] == 62 * 12
    member = 2 * 8 * 3 + 3 * 6
    assert cost["search"] == (3 + 4 + 3 + 4) * (3 * 2 * 4 * 2 * member + 3 * 6)
    assert cost["evaluate"] == (3 + 4 + 3 + 4) * (3 + 4) * 40


def test_cost_of_grids_that_follow_trajectories_by_hand() -> None:
    """tors follows 8 trajectories over 100 steps: as a baseline once in 4 cells, as a start in 4
    cells, at 4 points in 3 rounds, for 2 seeds. A grid by formula takes nothing.
    """

    def cost(path: str, names: list[str]) -> int:
        return cost_of(plan_of(changed(path, names)))["search"]

    baselines, starts = "baselines", "search.members.starts"
    assert cost(baselines, ["uniform", "tors"]) == cost(baselines, ["uniform", "beta"]) + 4 * 800
    assert cost(starts, ["tors"]) == cost(starts, ["karras"]) + 4 * 4 * 3 * 2 * 800


def test_experiments_do_not_change() -> None:
    experiment = parse_experiment(TINY)
    assert isinstance(experiment, Experiment)
    with pytest.raises(ValueError, match="frozen"):
        experiment.seed = 3  # type: ignore[misc]

"""The science of results/: tables agree with the code that made them, prose with the tables."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import science_sentences
import torch

from ld3_dist import Model, load_model
from ld3_dist.core import theory
from ld3_dist.core.grid import Grid
from ld3_dist.core.learning.pairs import Pairs
from ld3_dist.core.noise import EDM
from ld3_dist.core.sample import draw_noise, sample
from ld3_dist.core.solver import make_solver
from ld3_dist.experiment import Plan, load_experiment
from ld3_dist.experiment.cost import cost_of

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
INDEX = " ".join((RESULTS / "README.md").read_text(encoding="utf-8").split())
COSTED = (
    "radius",
    "radius_fashion",
    "radius_pairs",
    "distances",
    "metrics",
    "flow_matching",
    "guidance",
    "benchmark",
    "benchmark_fashion",
    "benchmark_galaxies",
)
OF_A_MACHINE = re.compile(r"/(?:home|root|tmp|work|Users)/")
SWEEPS = ("theory_kl", "stress", *COSTED)


def script(name: str) -> ModuleType:
    """A script of experiments/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def page(name: str) -> str:
    return " ".join((RESULTS / name / "README.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize("name", SWEEPS)
def test_experiments_open_and_say_their_cost(name: str) -> None:
    file = ROOT / "experiments" / f"{name}.yaml"
    experiment = load_experiment(file)
    plan = Plan(experiment, {model.label: "unknown" for model in experiment.models})
    assert experiment.name == name
    if name in COSTED:
        cost = sum(cost_of(plan).values()) / 1e6
        assert f"about {cost:.1f} M evaluations" in file.read_text()


def test_the_divergences_are_those_of_the_stored_grids() -> None:
    module = script("theory_kl")
    table = pd.read_csv(RESULTS / "theory_kl/theory.csv", float_precision="round_trip")
    known = table[table["kl"].notna() & (table["dim"] == 1) & (table["kind"] == "learned")]
    row = known.iloc[len(known) // 2].to_dict()
    model = load_model(module.MODELS[row["model"]])
    times = ([float(word) for word in row[name].split()] for name in ("knots", "evals"))
    student = module.table_of(model, row["solver"], *times)
    found = theory.divergence(model.denoiser, module.teacher_of(model), student, theory.line())
    assert found.kl == pytest.approx(row["kl"], rel=1e-6)
    assert found.bound == pytest.approx(row["bound"], rel=1e-6)


def test_divergence_and_bound_of_every_invertible_schedule() -> None:
    table = pd.read_csv(RESULTS / "theory_kl/theory.csv")
    known = table[table["kl"].notna()]
    assert len(known) > 100
    slack = 3 * known["kl_error"]
    assert (known["kl"] <= known["mean_square_bound"] + slack).all()
    assert (known["mean_square_bound"] <= known["bound"]).all()
    lost = table[table["kl"].isna()]
    assert lost["reason"].notna().all()
    assert lost["bound"].isna().all()


def test_the_optima_are_those_of_the_stored_grids() -> None:
    module = script("convergence_1d")
    table = pd.read_csv(RESULTS / "convergence_1d/members.csv", float_precision="round_trip")
    for _, row in table.groupby("solver").first().reset_index().iterrows():
        times = [[float(word) for word in row[name].split()] for name in ("knots", "evals")]
        grid = Grid(*(torch.tensor(part, dtype=torch.float64) for part in times))
        pairs, mixture = module.pairs_of(int(row["seed"])), module.mixture_1d(module.EDM())
        tableau = make_solver(row["solver"]).tableau(mixture.noise, grid)
        x_0 = sample(mixture, tableau, mixture.noise.prior_scale * pairs.noise)
        loss = float((x_0 - pairs.target).square().mean())
        assert loss == pytest.approx(row["evolution"], rel=1e-6)
    assert (table["ratio"] >= 1 - 1e-9).all()


@pytest.mark.parametrize(
    "name",
    [
        "theory",
        "stress",
        "convergence",
        "guidance",
        "judged",
        "correlations",
        "transfer",
        "flow",
        "consistency",
        "radius",
        "radius_pairs",
        "pairs_alone",
        "benchmark",
        "benchmark_against_grids",
    ],
)
def test_the_numbers_of_the_pages_are_those_of_the_tables(name: str) -> None:
    folders = {
        "theory": "theory_kl",
        "convergence": "convergence_1d",
        "correlations": "metrics",
        "flow": "flow_matching",
        "consistency": "flow_matching",
        "judged": "distances",
        "benchmark_against_grids": "benchmark",
        "pairs_alone": "radius_pairs",
    }
    folder = folders.get(name, name)
    text = page(folder)
    for sentence in getattr(science_sentences, name)():
        assert sentence in text, sentence


def test_trajectories_of_the_consistency_model_are_those_of_the_flow() -> None:
    """Of a Gaussian the flow is known: x keeps its place in units of the standard deviation."""
    model = load_model("analytic:gaussian?shape=2&std=0.5")
    x, t, ends, labels = script("consistency").trajectories(model, 20, seed=0)
    deviation = lambda time: (0.25 + torch.as_tensor(time) ** 2).sqrt()[..., None]
    exact = x * deviation([model.noise.t_min]) / deviation(t)
    assert labels is None
    assert len(x) == len(t) == 20 * 30
    torch.testing.assert_close(ends, exact, rtol=0.03, atol=0.01)


class ExactEnds(torch.nn.Module):
    """The consistency function of N(0, 1/4) in two dimensions."""

    noise, shape = EDM(), (2,)

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: None = None) -> torch.Tensor:
        """x in units of its standard deviation at t, times that of the data."""
        return x * 0.5 / (0.25 + t[:, None] ** 2).sqrt()

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        """x0 itself."""
        return x0


def test_fresh_noise_keeps_the_distribution_and_leads_away_from_the_teacher() -> None:
    """After going back to time t, the correlation with the first guess is 0.5 / sqrt(1/4 + t^2)."""
    model, z = Model(ExactEnds()), draw_noise(0, range(4000), (2,))
    knots = torch.tensor([80.0, 1.0, 0.002], dtype=torch.float64)
    samples = script("consistency").fresh_noise(model, knots, Pairs(z, 0.5 * z))
    assert float(samples.std()) == pytest.approx(0.5, rel=0.03)
    found = torch.corrcoef(torch.stack([samples.flatten(), z.flatten()]))[0, 1]
    assert float(found) == pytest.approx(0.5 / 1.25**0.5, abs=0.03)


FURTHER = [
    ("benchmark_fashion", "fashion"),
    ("benchmark_galaxies", "hsc32"),
    ("benchmark_galaxies", "hsc64"),
]
"""Further benchmarks: their folders and models."""


@pytest.mark.parametrize(("folder", "model"), FURTHER)
@pytest.mark.parametrize("name", ["benchmark", "benchmark_against_grids"])
def test_the_numbers_of_further_benchmarks_are_those_of_their_tables(
    name: str, folder: str, model: str
) -> None:
    text = page(folder)
    for sentence in getattr(science_sentences, name)(folder, model):
        assert sentence in text, sentence


def test_the_numbers_of_the_index_are_those_of_the_tables() -> None:
    theory_said, stress_said = science_sentences.theory(), science_sentences.stress()
    said = [*theory_said[:3], stress_said[0], stress_said[1], stress_said[5]]
    for sentence in [
        *said,
        *science_sentences.radius_in_short(),
        *science_sentences.benchmark_in_short(),
        *(said for one in FURTHER for said in science_sentences.benchmark_in_short(*one)),
        *science_sentences.radius_pairs()[4::4],
        *science_sentences.convergence()[:-1],
        *science_sentences.guidance(),
        *science_sentences.distances()[11::2],
        science_sentences.distances()[7],
        *science_sentences.frechet_correlations(),
        *science_sentences.transfer()[:5],
        *(said for said in science_sentences.flow() if "-line" not in said),
        *science_sentences.consistency_in_short(),
    ]:
        assert sentence in INDEX, sentence


def test_results_hold_no_path_of_a_machine() -> None:
    for name in ("theory_kl", "stress", "convergence_1d", "metrics", "transfer"):
        for file in (RESULTS / name).iterdir():
            assert file.stat().st_size < 1_000_000, file
            assert not OF_A_MACHINE.search(file.read_text(errors="replace")), file
    for file in RESULTS.rglob("*.json"):
        assert not OF_A_MACHINE.search(file.read_text(encoding="utf-8")), file
    for file in RESULTS.glob("*/rows/*.parquet"):
        for settings in pd.read_parquet(file, columns=["settings"])["settings"].dropna():
            assert not OF_A_MACHINE.search(settings), file


def test_summaries_are_those_of_their_tables() -> None:
    table = pd.read_csv(RESULTS / "theory_kl/theory.csv")
    short = pd.read_csv(RESULTS / "theory_kl/summary.csv")
    assert short["schedules"].sum() == len(table)
    assert short["invertible"].sum() == table["kl"].notna().sum()
    row = short[(short["kind"] == "learned") & (short["invertible"] == 5)].iloc[0]
    same = (table["kind"] == "learned") & np.isclose(table["gamma"], row["gamma"])
    for name in ("model", "solver", "nfe"):
        same &= table[name] == row[name]
    assert row["kl"] == pytest.approx(table[same]["kl"].mean(), rel=1e-4)
    assert row["kl_low"] < row["kl"] < row["kl_high"]
    assert not math.isnan(row["tightness"])


PAGES = sorted([RESULTS / "README.md", *RESULTS.glob("*/README.md")])


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_and_figures_of_the_results_are_there(file: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", file.read_text(encoding="utf-8"))
    for target in links:
        assert "://" in target or (file.parent / target).exists(), target

"""The table of figures: anyone adds to it, and none of its entries can lose a report."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from matplotlib.lines import Line2D
from report_pages import Tags
from slowly import few
from synthetic_sweep import write_sweep

from ld3_dist.core.errors import InputError
from ld3_dist.report import read_sweep_tables, write_report
from ld3_dist.report.figures import FigureData, Plot, figures, style
from ld3_dist.store.opening import open_storage

TINY = {"solvers": ("heun",), "nfes": (4,), "gammas": (0.0,), "seeds": (0,), "broken": False}
USERS = '''
from matplotlib.figure import Figure

from ld3_dist.report.figures import Plot


def work(data):
    """Network evaluations of every row."""
    figure = Figure(figsize=(4, 3))
    evals = data.frame["network_evals"].astype(float)
    figure.subplots().bar(range(len(evals)), evals)
    return Plot(data.name("work"), "Work <done>", f"{len(evals)} rows", "bars", figure)


def twice(data):
    return [work(data), work(data)]


def none(data):
    return None


def broken(data):
    raise ValueError("no such [column] <b>")


def wrong(data):
    return "a picture"


def undrawable(data):
    figure = Figure()
    figure.text(0, 0, "$\\\\frac{$")
    return Plot(data.name("bad"), "Bad", "", "bad", figure)
'''


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(USERS)
    return write_sweep(tmp_path / "sweep", **TINY)


def place(sweep: Path, name: str) -> str:
    return f"python:{sweep.parent / 'mine.py'}:{name}"


@pytest.fixture
def registered() -> Iterator[str]:
    @figures.register("of-a-test")
    def figure(data: FigureData) -> Plot | None:
        return None

    yield "of-a-test"
    del figures._entries["of-a-test"]


def test_a_figure_of_a_users_own_file(sweep: Path) -> None:
    paths = write_report(sweep, figures=["distance", place(sweep, "work"), place(sweep, "none")])
    assert [Path(name).name for name in paths.figures] == ["digits-distance.png", "digits-work.png"]
    assert Path(paths.figures[1]).read_bytes().startswith(b"\x89PNG")
    text = Path(paths.html).read_text()
    Tags(text)
    assert "<h3>Work &lt;done&gt;</h3>" in text
    assert "<figcaption>5 rows</figcaption>" in text  # 3 hand-made grids, 2 starts of one seed
    assert "Gain against γ" not in text
    assert paths.warnings == ()


def test_plots_of_one_name_have_files_of_their_own(sweep: Path) -> None:
    paths = write_report(sweep, figures=[place(sweep, "twice")])
    assert [Path(name).name for name in paths.figures] == ["digits-work.png", "digits-work-2.png"]
    tags = Tags(Path(paths.html).read_text()).seen
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("broken", "ValueError: no such [column] <b>"),
        ("wrong", "not 'a picture'"),
        ("undrawable", "ValueError"),
    ],
)
def test_a_figure_that_fails_does_not_lose_the_report(
    sweep: Path, caplog: pytest.LogCaptureFixture, name: str, reason: str
) -> None:
    with caplog.at_level(logging.WARNING):
        paths = write_report(sweep, figures=[place(sweep, name), "distance"])
    (warning,) = paths.warnings
    assert name in warning
    assert reason in warning
    (record,) = [record for record in caplog.records if record.name.startswith("ld3_dist.report")]
    assert name in record.getMessage()
    assert reason in record.getMessage()
    text = Path(paths.html).read_text()
    Tags(text)
    failures = text[text.index('<section id="failures">') :]
    assert f"mine.py:{name}" in failures
    assert "could not be drawn" in failures
    assert "Distance to the teacher against NFE" in text
    assert [Path(figure).name for figure in paths.figures] == ["digits-distance.png"]


@pytest.mark.parametrize("name", ["distanc", "python:missing.py:work", "python:"])
def test_a_figure_that_is_not_known_is_refused_before_anything_is_written(
    sweep: Path, name: str
) -> None:
    with pytest.raises(InputError, match="figure"):
        write_report(sweep, figures=["distance", name])
    assert not (sweep / "report").exists()


def test_the_settings_of_the_experiment_choose_the_figures(sweep: Path) -> None:
    chosen = ["convergence", "python:gone.py:work", place(sweep, "work")]
    settings = {"name": "chosen", "fingerprint": "f", "settings": {"report": {"figures": chosen}}}
    open_storage(sweep).write_bytes("experiment.json", json.dumps(settings).encode())
    paths = write_report(sweep)
    names = [Path(name).name for name in paths.figures]
    assert names == ["digits-convergence.png", "digits-work.png"]
    (warning,) = paths.warnings
    assert "gone.py" in warning  # a file of another machine does not cost the report


CHOICES = [{}, {"settings": None}, {"settings": {"report": None}}]


@pytest.mark.parametrize("settings", few(CHOICES, CHOICES[2:]))
@pytest.mark.siblings(1)
def test_without_a_choice_all_figures_are_drawn(sweep: Path, settings: dict) -> None:
    open_storage(sweep).write_bytes("experiment.json", json.dumps(settings).encode())
    names = [Path(figure).stem for figure in write_report(sweep).figures]
    assert names == [f"digits-{name}" for name in ("distance", "frechet", "grids", "convergence")]


@pytest.mark.parametrize("name", ["gamma", "importance"])
def test_a_single_level_is_no_comparison_and_not_drawn(tmp_path: Path, name: str) -> None:
    def drawn(gammas: tuple[float, ...]) -> bool:
        folder = write_sweep(tmp_path / str(len(gammas)), **(TINY | {"gammas": gammas}))
        frame = read_sweep_tables(folder).results
        axes = ("lr", "gamma")[: len(gammas)]
        found = pd.DataFrame([(frame["cell"].iloc[0], axis, 0.5) for axis in axes],
                             columns=["cell", "axis", "importance"])  # fmt: skip
        data = FigureData("digits", frame, {}, None, "d", lambda cell: {}, importance=found)
        return figures.get(name)(data) is not None

    assert drawn((0.0, 0.01))
    assert not drawn((0.0,))


def test_a_gamma_that_differs_between_procedures_alone_is_not_drawn(tmp_path: Path) -> None:
    frame = read_sweep_tables(write_sweep(tmp_path, **(TINY | {"gammas": (0.0, 0.01)}))).results
    names = frame["gamma"].map(lambda gamma: "default" if gamma else "paper")
    data = FigureData("digits", frame.assign(procedure=names), {}, None, "d", lambda cell: {})
    assert figures.get("gamma")(data) is None
    both = pd.concat(
        [frame.assign(procedure="default"), frame.assign(gamma=0.5, procedure="paper")]
    )
    drawn = figures.get("gamma")(replace(data, frame=both))
    assert isinstance(drawn, Plot)
    assert "gamma (0, 0.01)" in drawn.alt


def test_the_cost_figure_tells_ways_of_learning_apart(tmp_path: Path) -> None:
    frame = read_sweep_tables(write_sweep(tmp_path, **(TINY | {"gammas": (0.0, 0.01)}))).results
    frame = frame.drop(columns="eval_loss")
    learned = frame["kind"] == "learned"
    frame["device_seconds"] = range(1, len(frame) + 1)
    data = FigureData("digits", frame, {}, None, "d", lambda cell: {})
    plain = figures.get("cost")(data)
    assert isinstance(plain, Plot)
    (legend,) = plain.figure.legends
    numbers = [f"{nfe} NFE" for nfe in sorted(frame["nfe"].unique())]
    assert [text.get_text() for text in legend.get_texts()] == numbers
    frame["coefficients"] = (learned & (frame["gamma"] == 0.01)).where(learned, None)
    drawn = figures.get("cost")(replace(data, frame=frame.assign(procedure="default")))
    assert isinstance(drawn, Plot)
    (legend,) = drawn.figure.legends
    ways = ["default", "default, coefficients"]
    assert [text.get_text() for text in legend.get_texts()] == [*numbers, *ways]


def test_registered_figures_are_drawn_last_in_their_order(registered: str) -> None:
    first = (
        "distance",
        "frechet",
        "ablation",
        "interactions",
        "importance",
        "grids",
        "gamma",
        "convergence",
    )
    built_in = (*first, "cost", "samples")
    assert figures.names()[: len(built_in)] == built_in
    assert figures.names()[-1] == registered
    with pytest.raises(InputError, match="registered twice"):
        figures.register(registered, figures.get(registered))


@pytest.mark.slow  # test_public_api says the same of the import
def test_matplotlib_is_loaded_by_the_first_figure(sweep: Path) -> None:
    code = (
        "import sys; from ld3_dist.report import write_report; "
        f"write_report({str(sweep)!r}, figures=[]); assert 'matplotlib' not in sys.modules; "
        f"write_report({str(sweep)!r}, figures=['gamma']); assert 'matplotlib' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=1200)


@pytest.mark.parametrize("count", [1, 3])
def test_a_legend_of_many_ways_stays_inside_the_figure(count: int) -> None:
    ways = ["curve", "default", "default, coefficients", "default, start_time", "paper"]
    with matplotlib.rc_context(style.STYLE):
        figure, axes = style.panels(count, height=2.7)
        style.legend_below(figure, [Line2D([], [], marker="o", label=way) for way in ways])
        boxes = style.panel_boxes(figure)
    figure.set_dpi(160)
    figure.draw_without_rendering()
    shown = figure.legends[0].get_window_extent()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ways
    assert shown.x0 >= 0
    assert shown.x1 <= figure.bbox.x1
    assert shown.y1 < min(panel.get_tightbbox().y0 for panel in axes) + 1
    assert len(boxes) == (1 if count == 1 else count + 1)  # the whole figure shows the only one
    assert shown.width <= style.WIDTH * figure.dpi / 2

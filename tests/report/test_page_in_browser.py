"""The page in a real browser: it sorts, filters, copies and swipes, and requests nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import Page, browser, opened
from safetensors.torch import save
from synthetic_sweep import NOISE, write_sweep

from ld3_dist.report import summary_table, write_report
from ld3_dist.report.formats import number
from ld3_dist.schedule.file import Schedule, noise_to_dict, parse_schedule
from ld3_dist.store.opening import open_storage
from ld3_dist.store.results import load_results

pytestmark = pytest.mark.skipif(browser() is None, reason="needs chromium, which is not installed")

CHOSEN = 1
SIDE = 8


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of four cells; one of them has a schedule file and pictures."""
    folder = tmp_path_factory.mktemp("sweep")
    write_sweep(folder, gammas=(0.0, 0.01), seeds=(0,), broken=False)
    line = summary_table(load_results(folder)).iloc[CHOSEN]
    row = load_results(folder).set_index("key").loc[line["key"]]
    E = int(row["nfe"])
    lower = torch.tril(torch.rand(E + 1, E, dtype=torch.float64), -1)
    file = Schedule(
        knots=tuple(row["knots"]),
        evals=tuple(row["evals"]),
        state=(1.0, *(0.1 / 3 for _ in range(E))),
        outputs=tuple(map(tuple, lower.tolist())),
        noise=noise_to_dict(NOISE),
        prior_scale=40.0,
        solver=row["solver"],
        nfe=E,
        model="digits",
    )
    file.write(open_storage(folder), f"schedules/{line['key']}.json")
    images = {kind: torch.rand(3, 1, SIDE, SIDE) for kind in ("teacher", "baseline", "learned")}
    name = line["cell"].replace("/", "_")
    open_storage(folder).write_bytes(f"samples/{name}.safetensors", save(images))
    return folder


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with opened(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def address(sweep: Path) -> str:
    return Path(write_report(sweep, figures=["samples", "distance"]).html).as_uri()


@pytest.fixture
def page(tab: Page, address: str) -> Page:
    """The page as one opens it."""
    tab.open("about:blank")
    tab.problems.clear()
    tab.requests.clear()
    tab.look(1400)
    tab.open(address)
    return tab


def table_of(sweep: Path) -> Any:
    return summary_table(load_results(sweep))


def cells(page: Page, visible: bool = False) -> list[int]:
    """The lines of the table from top to bottom, or those that are seen."""
    seen = ".filter(line => line.offsetHeight)" if visible else ""
    script = f"[...document.querySelectorAll('tr[data-cell]')]{seen}.map(l => +l.dataset.cell)"
    return page.run(script)


def choose(page: Page, key: str, value: str) -> None:
    page.run(
        f"(s => {{ s.value = {json.dumps(value)}; s.onchange(); }})"
        f"(document.querySelector('select[data-key={key}]'))"
    )


def gains(page: Page) -> list[str]:
    """The gains of the table, in the order of its lines."""
    line = "line.querySelector('td.gain').textContent"
    return page.run(f"[...document.querySelectorAll('tr[data-cell]')].map(line => {line})")


def test_nothing_is_requested_and_nothing_complains(page: Page, address: str) -> None:
    page.run("document.querySelector('.pick').click()")
    page.run("[...document.querySelectorAll('th button')].forEach(b => b.click())")
    choose(page, "metric", "fid")
    page.look(390, dark=True)
    asked = [url for url in page.requests if not url.startswith(("data:", "about:"))]
    assert asked == [address]
    assert page.problems == []


def test_the_table_sorts_and_the_address_keeps_it(page: Page, sweep: Path, address: str) -> None:
    table = table_of(sweep)
    up = table["eval_gain"].sort_values().index.tolist()
    assert cells(page) == [0, 1, 2, 3]
    press = "document.querySelector('th[data-name=eval_gain] button').click()"
    page.run(press)
    assert cells(page) == up
    head = "document.querySelector('th[data-name=eval_gain]').getAttribute('aria-sort')"
    assert page.run(head) == "ascending"
    page.run(press)
    assert cells(page) == up[::-1]
    kept = page.run("location.href")
    assert "sort=eval_gain%3Adesc" in kept
    page.open("about:blank")
    page.open(kept)
    assert cells(page) == up[::-1]
    page.run("location.hash = '#model-0'")  # an anchor is no state
    assert cells(page) == up[::-1]
    page.run(press)
    assert cells(page) == [0, 1, 2, 3]


def test_the_table_filters(page: Page, sweep: Path) -> None:
    table = table_of(sweep)
    choose(page, "solver", "unipc-3")
    assert cells(page, True) == table.index[table["solver"] == "unipc-3"].tolist()
    choose(page, "nfe", "5")
    both = (table["solver"] == "unipc-3") & (table["nfe"] == 5)
    assert cells(page, True) == table.index[both].tolist()
    assert page.run("document.querySelector('.count').textContent") == "1 of 4 cells"


def test_another_grid_and_another_metric_give_other_gains(page: Page, sweep: Path) -> None:
    table, frame = table_of(sweep), load_results(sweep)
    assert gains(page) == [f"{number(gain)}×" for gain in table["eval_gain"]]
    grids = frame[(frame["kind"] == "baseline") & (frame["start"] == "uniform")]
    loss = grids.set_index("cell")
    choose(page, "over", "uniform")
    told = [f"{number(loss.loc[r.cell, 'eval_loss'] / r.eval_loss)}×" for r in table.itertuples()]
    assert gains(page) == told
    choose(page, "metric", "fid")
    told = [f"{number(loss.loc[r.cell, 'fid'] / r.fid)}×" for r in table.itertuples()]
    assert gains(page) == told
    assert page.run("document.querySelectorAll('td.interval')[0].textContent") == "–"


def test_a_chosen_cell_shows_its_schedule_and_gives_it_away(page: Page, sweep: Path) -> None:
    table, storage = table_of(sweep), open_storage(sweep)
    key = table.iloc[CHOSEN]["key"]
    file = parse_schedule(storage.read_bytes(f"schedules/{key}.json").decode())
    page.run("window.kept = []; navigator.clipboard.writeText = async text => kept.push(text)")
    page.run("URL.createObjectURL = blob => (kept.push(blob), 'data:,')")
    page.run("HTMLAnchorElement.prototype.click = function () { kept.push(this.download) }")
    line = f'tr[data-cell="{CHOSEN}"]'
    for does in ("copy sigmas", "copy JSON", "download JSON", "download CSV"):
        page.run(f"document.querySelector('{line} [data-do=\"{does}\"]').click()")
    sigmas, copied, _, name, _, _ = page.run("kept.map(k => typeof k === 'string' ? k : 0)")
    assert tuple(json.loads(sigmas)) == file.knots
    assert parse_schedule(copied) == file
    assert name == f"{key}.json"
    assert parse_schedule(page.run("kept[2].text()")) == file
    head, first, *_ = page.run("kept[4].text()").splitlines()
    assert head == "i,knot,sigma,network time,timestep"
    assert [float(x) for x in first.split(",")[:4]] == [0, *file.knots[:1] * 2, file.evals[0]]
    off = f"document.querySelector('{line} [data-do=\"copy timesteps\"]').disabled"
    assert page.run(off) is True  # a network of EDM counts no steps
    page.run(f"document.querySelector('{line} .pick').click()")
    text = page.run("document.querySelector('.detail').textContent")
    assert f"schedules/{key}.json" in text
    assert f"ld3-dist export schedules/{key}.json --format sigmas" in text
    knots = page.run("document.querySelectorAll('.detail .on .knot').length")
    assert knots == len(file.knots)
    assert page.run("document.querySelectorAll('.charts .line.on').length") == 1
    assert page.run("document.querySelectorAll('.charts .chosen').length") == 1
    assert page.run("document.querySelectorAll('.strips.on').length") == 1


def test_pictures_are_swiped_at_whole_factors(page: Page) -> None:
    page.run(f"document.querySelector('tr[data-cell=\"{CHOSEN}\"] .pick').click()")
    shape = "(t => [t.offsetWidth, t.offsetHeight])(document.querySelector('.tiles div'))"
    size = "document.querySelectorAll('.swipe select')[2]"
    for factor in (1, 4):
        page.run(f"{size}.value = '{factor}'; {size}.onchange()")
        assert page.run(shape) == [factor * SIDE, factor * SIDE]
    assert page.run("document.querySelectorAll('.tiles div').length") == 3
    before = page.picture()
    page.run("(s => { s.value = 100; s.oninput(); })(document.querySelector('.swipe input'))")
    clip = "getComputedStyle(document.querySelector('.tiles i + i')).clipPath"
    assert page.run(clip) in ("inset(0px)", "inset(0px 0% 0px 0px)")
    assert page.picture() != before


def test_values_are_seen_on_hover(page: Page, sweep: Path) -> None:
    best = table_of(sweep).iloc[0]
    page.run(
        "[...document.querySelectorAll('.charts .hit')].find(h => h.dataset.pick.startsWith('0 0'))"
        ".dispatchEvent(new PointerEvent('pointerover', { bubbles: true }))"
    )
    tip = page.run("document.querySelector('.tip').textContent")
    assert number(best["eval_loss"]) in tip
    assert f"{number(best['eval_gain_low'])}–{number(best['eval_gain_high'])}" in tip


def test_the_keyboard_reaches_everything(page: Page, sweep: Path) -> None:
    page.run("document.querySelector('th[data-name=nfe] button').focus()")
    page.key("Enter", 13, "\r")
    assert cells(page) == table_of(sweep)["nfe"].sort_values(kind="stable").index.tolist()
    page.run(f"document.querySelector('tr[data-cell=\"{CHOSEN}\"] .pick').focus()")
    page.key("Enter", 13, "\r")
    assert page.run("document.querySelector('.detail h3').textContent").startswith("dpmpp-3 at 5")
    page.key("Tab", 9)
    assert page.run("document.activeElement.dataset.do") == "copy sigmas"


def test_a_narrow_page_has_the_gain_in_view(page: Page) -> None:
    page.look(390)
    page.run(f"document.querySelector('tr[data-cell=\"{CHOSEN}\"] .pick').click()")
    assert page.run("document.documentElement.scrollWidth") <= 390
    right = "document.querySelector('td.gain').getBoundingClientRect().right"
    assert page.run(right) <= 390
    order = "document.querySelector('table').compareDocumentPosition(document.querySelector('dl'))"
    assert page.run(order) & 4  # results come before facts


def test_without_scripts_and_on_paper(page: Page, address: str) -> None:
    assert page.pdf().startswith(b"%PDF")
    page.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(address)
        assert page.run("document.querySelectorAll('.tools, .detail').length") == 0
        assert len(cells(page, True)) == 4
        assert page.run("document.querySelector('.twin').offsetHeight") > 100
    finally:
        page.send("Emulation.setScriptExecutionDisabled", value=False)

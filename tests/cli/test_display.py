"""The terminal's view of a sweep: what a narrow one shows, and names with markup in them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from synthetic_sweep import write_sweep

from ld3_dist.cli.display import print_summary, show
from ld3_dist.cluster.events import Event

TINY = {"solvers": ("unipc-3",), "nfes": (4,), "gammas": (0.0,), "seeds": (0,), "broken": False}


def printed(place: Path, width: int, terminal: bool = True, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    console = Console(file=file, force_terminal=terminal, width=width, color_system=None)
    print_summary(str(place), console)
    file.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [61, 66, 72, 80, 100, 140])
@pytest.mark.siblings(3)
def test_lines_fit_and_no_number_is_cut(tmp_path: Path, width: int) -> None:
    write_sweep(tmp_path, **TINY)
    lines = printed(tmp_path, width).splitlines()
    assert max(cell_len(line) for line in lines) <= width
    assert "…" not in "".join(lines)
    (wide,) = [line for line in printed(tmp_path, 200).splitlines() if "unipc-3/4" in line]
    (shown,) = [line for line in lines if "karras" in line]
    assert set(shown.split()) <= set(wide.split())  # whole values, each as on a wide terminal


def test_a_very_narrow_terminal_folds_names_alone(tmp_path: Path) -> None:
    write_sweep(tmp_path, **TINY)
    (wide,) = [line for line in printed(tmp_path, 200).splitlines() if "unipc-3/4" in line]
    gain = next(word for word in wide.split() if word.endswith("×"))
    text = printed(tmp_path, 30)
    assert max(cell_len(line) for line in text.splitlines()) <= 30
    assert gain in text
    name = text.split("─ \n")[-1].split("losses")[0].replace(gain, "")
    assert "".join(name.split()) == "digits/class/w1/unipc-3/4"


def test_at_80_columns_the_learned_frechet_distance_is_there(tmp_path: Path) -> None:
    write_sweep(tmp_path, **(TINY | {"models": ("digits-16",)}))
    text = printed(tmp_path, 80)
    heading = " ".join(text.split("─")[0].split())
    assert "Fréchet" in heading
    assert "fresh" not in heading
    assert "gamma" not in heading
    (wide,) = [line for line in printed(tmp_path, 200).splitlines() if "unipc-3/4" in line]
    learned_fid = wide.split()[-3]  # before the teacher's and γ
    assert learned_fid in text


def test_a_pipe_gets_everything(tmp_path: Path) -> None:
    write_sweep(tmp_path, **TINY)
    text = printed(tmp_path, 80, terminal=False)
    for heading in ("best hand-made", "learned loss", "Fréchet learned", "Fréchet teacher", "γ"):
        assert heading in text


@pytest.mark.parametrize(
    "name", ["x[bold]y", "[/red]", r"back\[slash\\", "esc\x1b[31m", "a|b", "line\nbreak"]
)
@pytest.mark.siblings(3)
def test_names_are_no_markup(tmp_path: Path, name: str) -> None:
    write_sweep(tmp_path, **(TINY | {"models": (name,), "learned": True}))
    text = printed(tmp_path, 160)
    shown = name.replace("\x1b", r"\x1b").replace("\n", r"\n")
    assert f"{shown}/class/w1/unipc-3/4" in text
    assert "\x1b" not in text


def test_a_terminal_that_knows_ascii_alone(tmp_path: Path) -> None:
    write_sweep(tmp_path, **(TINY | {"models": ("größe",)}))
    text = printed(tmp_path, 160, encoding="ascii")
    assert "gamma" in text
    assert r"gr\xf6\xdfe/class" in text
    assert " 1.90" in text


def test_messages_are_one_line_each() -> None:
    file = io.StringIO()
    show([Event("teach", 1, 2, message="shard [x]\nlost\x1b[2J")], Console(file=file, width=60))
    assert file.getvalue() == "teacher shards: 1/2  shard [x]\\nlost\\x1b[2J\n"

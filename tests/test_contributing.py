"""CONTRIBUTING.md: a recipe for every extension point, each run as the page shows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from recipes import Block, blocks_of, carry_out

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = blocks_of(PAGE)
EXTENSION_POINTS = (
    "solver",
    "noise schedule",
    "distance",
    "metric",
    "start",
    "model family",
    "procedure",
    "figure",
    "command",
    "column",
)


def test_every_extension_point_has_a_section() -> None:
    headings = re.findall(r"^### An? (.+)$", PAGE, re.M)
    assert headings == list(EXTENSION_POINTS)


@pytest.mark.parametrize("point", EXTENSION_POINTS)
def test_every_section_has_a_recipe_that_runs(point: str) -> None:
    (section,) = re.findall(rf"^### An? {point}$(.*?)(?=^### |\Z)", PAGE, re.M | re.S)
    blocks = blocks_of(section)
    assert any(not block.file for block in blocks)
    assert len({block.recipe for block in blocks}) == 1


def test_targets_and_files_that_the_page_names_exist() -> None:
    root = Path(__file__).parents[1]
    makefile = (root / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)`", PAGE):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for file in re.findall(r"`((?:tests|experiments|ld3_dist)/[\w./-]+)`", PAGE):
        assert (root / file).exists(), file


@pytest.mark.parametrize("name", list(dict.fromkeys(block.recipe for block in BLOCKS)))
def test_a_recipe_works_as_written(name: str, tmp_path: Path) -> None:
    carry_out([block for block in BLOCKS if block.recipe == name], tmp_path)


SAMPLE = """
<!-- recipe: two-files, file: data/number.yaml -->
```yaml
number: 3
```

<!-- recipe: two-files, run -->
```python
import yaml
with open("data/number.yaml") as file:
    assert yaml.safe_load(file)["number"] == 3, "another number"
open("seen", "w").close()
```

```python
raise SystemExit("not marked")
```

<!-- recipe: commands, run -->
```console
$ python -c "open('made', 'w').close()"   # a comment
ld3-dist \\
    --help
```
"""


def test_marked_blocks_are_found_in_order() -> None:
    assert [(b.recipe, b.language, b.file, b.line) for b in blocks_of(SAMPLE)] == [
        ("two-files", "yaml", "data/number.yaml", 2),
        ("two-files", "python", "", 7),
        ("commands", "console", "", 19),
    ]


def test_blocks_are_written_and_run(tmp_path: Path) -> None:
    carry_out(blocks_of(SAMPLE), tmp_path)
    assert (tmp_path / "seen").exists()
    assert (tmp_path / "made").exists()


def test_a_recipe_that_fails_is_named_with_its_line(tmp_path: Path) -> None:
    broken = blocks_of(SAMPLE.replace("number: 3", "number: 4"))
    with pytest.raises(AssertionError, match=r"two-files, line 7: code 1\n(.|\n)*another number"):
        carry_out(broken, tmp_path)
    with pytest.raises(AssertionError, match="line 1: rm is not one of"):
        carry_out([Block("x", "console", "", "rm x\n", 1)], tmp_path)


@pytest.mark.parametrize(
    "page",
    [
        "<!-- recipe: name -->\n```python\n```\n",
        "<!-- recipe: name, run -->\ntext\n```python\n```\n",
        "<!-- recipe: name, run -->\n```yaml\na: 1\n```\n",
    ],
)
def test_a_mark_that_says_nothing_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="line 1: "):
        blocks_of(page)

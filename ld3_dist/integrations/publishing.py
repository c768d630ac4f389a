"""A schedule as one uploads it beside weights: the file, a card, and a picture of its grid.

    NAME.json    the schedule, without the folders of the machine that it was learned on
    README.md    a model card with YAML front matter
    grid.png     knots and network times above the hand-made grids

Nothing is uploaded. Numbers of the card are those of the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..core.errors import InputError
from ..core.text import read_text
from ..schedule.file import Schedule, parse_schedule
from ..store.outputs import check_output, write_output

PICTURE, CARD = "grid.png", "README.md"

CARD_LIMIT = 1_000_000
"""The most bytes of a model's own card that is read for its licence."""

EXPLAINED = (
    "Distance to the teacher's samples from the same noise; smaller is better. A gain is the "
    "grid's loss over the learned one."
)
"""What the numbers of a card are."""

HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""owner/name, as hubs write it."""


def publish(
    schedule: Schedule,
    name: str,
    picture: bytes,
    folder: Path,
    licence: str | None = None,
) -> list[str]:
    """Write the folder and return the names of its files.

    Args:
        name: of the schedule, and so of its file.
        licence: of the model; read from its own card where that lies in a local folder, if not
            given.
    """
    shared = parse_schedule(json.dumps(without_folders(json.loads(schedule.to_json()))))
    text = card(shared, name, licence or licence_of(schedule.model))
    folder.mkdir(parents=True, exist_ok=True)
    write_output(folder / f"{name}.json", shared.to_json())
    write_output(folder / PICTURE, picture)
    write_output(folder / CARD, text)
    return [f"{name}.json", PICTURE, CARD]


def check_folder(folder: Path, name: str, source: str | Path, force: bool) -> Path:
    """The folder to write; InputError where it holds something and `force` is not given.

    The schedule that is read is never overwritten.
    """
    place = check_output(folder, "folder", force, option="--to")
    if place.is_dir():
        inputs = {"the command": source}
        check_output(place / f"{name}.json", "file", True, option="--to", inputs=inputs)
    return place


def without_folders(value: Any) -> Any:
    """The same JSON, in whose texts a path is its last part; owner/name of a hub stays."""
    if isinstance(value, Mapping):
        return {_bare(key): without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    return _bare(value) if isinstance(value, str) else value


def _bare(text: str) -> str:
    return ":".join(_last(part) for part in text.split(":"))


def _last(part: str) -> str:
    if HUB.fullmatch(part) or not re.search(r"[/\\]", part):
        return part
    return re.split(r"[/\\]", part.rstrip("/\\"))[-1]


def licence_of(model: str) -> str | None:
    """The licence in the front matter of a local model's own card; None where there is none."""
    folder = Path(model.partition(":")[2] or model).expanduser()
    place = folder / CARD
    if not place.is_file():
        return None
    try:
        text = read_text(place, "a model card", CARD_LIMIT)
        found = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else None
    except (InputError, yaml.YAMLError, IndexError, OSError):
        return None
    licence = found.get("license") if isinstance(found, dict) else None
    return licence if isinstance(licence, str) else None


def card(schedule: Schedule, name: str, licence: str | None) -> str:
    """The model card: front matter, what it is, its numbers, how to use it."""
    prefix, _, rest = schedule.model.partition(":")
    hub = rest if prefix == "diffusers" and HUB.fullmatch(rest) else None
    front: dict[str, Any] = {"library_name": "ld3_dist"}
    front |= {"license": licence} if licence else {}
    front |= {"base_model": hub} if hub else {}
    front["tags"] = ["diffusion", "sampling", "few-step", "schedule"]
    matter = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    guidance = "" if schedule.guidance is None else f", guidance {schedule.guidance:g}"
    told = ", network times and coefficients" if schedule.coefficients else " and network times"
    known = f"is {licence}" if licence else "is not known here"
    many, learned = f"{schedule.nfe}", f"{schedule.nfe} network evaluations"
    if schedule.curve is not None:
        many, at = "any number of", [str(nfe) for nfe in schedule.curve["nfes"]]
        learned = f"a curve for any number of network evaluations, learned at {', '.join(at)}"
    return "\n".join(
        [
            f"---\n{matter}---",
            f"# {name}: {many} network evaluations for {rest or schedule.model}",
            "",
            f"A learned sampling schedule for `{schedule.model}` ({schedule.solver}, "
            f"{learned}{guidance}). The network is not changed: step "
            f"times{told} were learned so that few steps end where the teacher's many do.",
            "",
            f"![knots of the learned grid above hand-made ones]({PICTURE})",
            "",
            *(_numbers(schedule) if schedule.curve is None else _numbers_of_curve(schedule.curve)),
            "## How to use it",
            "",
            *_use(schedule, name),
            "## Terms",
            "",
            f"The model's licence {known}. This folder holds numbers about its sampling, none of "
            "its weights.",
            "",
        ]
    )


def _numbers(schedule: Schedule) -> Sequence[str]:
    """The table of losses: distance to the teacher, smaller is better."""
    mine = {**schedule.losses, **schedule.metrics}
    every = [("valid_loss", "held-out loss", "held-out gain"), ("eval_loss", "fresh loss", "gain")]
    columns = [known for known in every if mine.get(known[0]) is not None]
    if not columns:
        return []
    heads = ["grid", *(text for _, loss, gain in columns for text in (loss, gain))]
    lines = [_row("**learned**", mine, mine, columns)]
    ranked = sorted(
        schedule.baselines.items(),
        key=lambda item: (item[1].get("valid_loss") is None, item[1].get("valid_loss"), item[0]),
    )
    lines += [_row(grid, scores, mine, columns) for grid, scores in ranked]
    note = EXPLAINED
    if mine.get("eval_loss_sem") is not None:
        note += " ± is half the 95 % interval of a mean over fresh samples."
    others = [
        f"{key} {mine[key]:.4g}" for key in ("fid", "kid", "inception_score") if mine.get(key)
    ]
    tail = ["", f"Of samples of the learned schedule: {', '.join(others)}."] if others else []
    rule = "|---" * len(heads) + "|"
    return ["## Numbers", "", f"| {' | '.join(heads)} |", rule, *lines, "", note, *tail, ""]


def _numbers_of_curve(curve: Mapping[str, Any]) -> Sequence[str]:
    """The table of a curve: a line per NFE that it was learned at, against the best grid there."""
    lines = []
    for nfe in curve["nfes"]:
        mine, grids = curve["losses"].get(str(nfe)), curve["baselines"].get(str(nfe), {})
        usable = {name: loss for name, loss in grids.items() if loss is not None}
        best = min(usable, key=lambda name: usable[name]) if usable else None
        texts = ["–" if mine is None else f"{mine:.4g}", "–", "–"]
        if best is not None:
            texts[1] = f"{usable[best]:.4g} ({best})".replace("|", "\\|")
            texts[2] = f"{usable[best] / mine:.3g}×" if mine else "–"
        lines.append(f"| {nfe} | {' | '.join(texts)} |")
    heads = "| evaluations | held-out loss | best hand-made grid | gain |"
    return ["## Numbers", "", heads, "|---|---|---|---|", *lines, "", EXPLAINED, ""]


def _row(
    grid: str,
    scores: Mapping[str, float | None],
    mine: Mapping[str, float | None],
    columns: Sequence[tuple[str, str, str]],
) -> str:
    texts = [grid.replace("|", "\\|")]
    for key, _, _ in columns:
        value, best, error = scores.get(key), mine.get(key), scores.get(f"{key}_sem")
        spread = "" if error is None else f" ± {1.96 * error:.2g}"
        texts.append("–" if value is None else f"{value:.4g}{spread}")
        known = value is not None and best is not None and best > 0 and scores is not mine
        texts.append(f"{value / best:.3g}×" if known and value and best else "–")
    return f"| {' | '.join(texts)} |"


def _use(schedule: Schedule, name: str) -> Sequence[str]:
    """Five lines that run it, in diffusers where its network is one of a pipeline."""
    at = "" if schedule.curve is None else f".at({schedule.nfe})"
    if schedule.noise["name"] not in ("vp-discrete", "flow"):
        lines = [
            "import ld3_dist as ld3",
            "",
            f'model = ld3.load_model("{schedule.model}")',
            f'schedule = ld3.load_schedule("{name}.json")',
            f"x_0 = schedule{at}.sample(model, n=16)",
        ]
    else:
        guided = schedule.guidance not in (None, 1.0)
        guidance = f", guidance_scale={schedule.guidance:g}" if guided else ""
        lines = [
            "from ld3_dist.integrations.diffusers import LD3Scheduler",
            "",
            "# pipe: the pipeline of the model above",
            f'pipe.scheduler = LD3Scheduler.from_schedule("{name}.json", pipe.scheduler)',
            f"image = pipe(prompt, num_inference_steps={schedule.nfe}{guidance}).images[0]",
        ]
    chosen = "" if schedule.curve is None else f" --nfe {schedule.nfe}"
    command = f"ld3-dist export {name}.json --format comfyui-node{chosen} --out FOLDER"
    return ["```python", *lines, "```", "", f"In ComfyUI: `{command}`.", ""]

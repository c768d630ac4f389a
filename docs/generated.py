"""The pages of the reference, made from the code: nothing in them is written twice.

`pages()` returns every page by its path below `docs/`. `hooks.py` gives them to MkDocs.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import typer
from docstrings import as_markdown

import ld3_dist
from ld3_dist.cli.app import app
from ld3_dist.cli.show import Shown
from ld3_dist.core import rules
from ld3_dist.core.learning.procedure import procedures
from ld3_dist.core.noise import noise_schedules
from ld3_dist.core.solver import make_solver, solvers
from ld3_dist.doctor.checklist import Checked
from ld3_dist.experiment.schema import experiment_schema
from ld3_dist.report.compare import Row, SweepComparison
from ld3_dist.schedule.schema import schema as schedule_schema
from ld3_dist.store.columns import describe
from ld3_dist.tasks.check import Finding
from ld3_dist.tasks.status import Status

Schema = Mapping[str, Any]


def pages() -> dict[str, str]:
    """Path below `docs/` -> Markdown, or JSON for the two schemas."""
    return {
        "reference/command-line.md": command_line(),
        "reference/experiment.md": experiment(),
        "reference/columns.md": columns(),
        "reference/schedule-file.md": schedule_file(),
        "reference/python.md": python_api(),
        "reference/solvers.md": solver_table(),
        "reference/names.md": names(),
        "reference/experiment.schema.json": json.dumps(experiment_schema(), indent=1),
        "reference/schedule.schema.json": json.dumps(schedule_schema(), indent=1),
    }


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; bars and line ends inside cells are made harmless."""

    def line(cells: list[str]) -> str:
        return f"| {' | '.join(' '.join(c.replace('|', chr(92) + '|').split()) for c in cells)} |"

    return "\n".join([line(heads), line(["---"] * len(heads)), *map(line, rows)]) + "\n"


def code(value: Any) -> str:
    """A value as code, as YAML and JSON write it."""
    return f"`{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}`"


# --- the command line -----------------------------------------------------------------------------


def commands() -> dict[str, Any]:
    """Every command of `ld3-dist` by name, as the parser knows it."""
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def command_line() -> str:
    """Usage, explanation, arguments and options of every command."""
    found = commands()
    parts = [
        "# Command line\n",
        "Exit codes: 0 done, 1 something failed and is recorded, 2 bad input and nothing was "
        "written. `ld3-dist --install-completion` completes commands and options in your shell. "
        "`--json` prints one JSON document on stdout and nothing else; keys are added to it, "
        "never renamed ([which](#json)).\n",
        table(
            ["command", "what it does"],
            [[f"[`{name}`](#{name})", first_line(found[name].help)] for name in found],
        ),
    ]
    parts += [of_command(name, command) for name, command in found.items()]
    return "\n".join([*parts, json_output()])


def json_output() -> str:
    """The keys of what `--json` prints, from the types that are printed."""
    given = ["show", "doctor", "status", "compare", "check"]
    keys = [
        list(Shown.__annotations__),
        list(Checked.__annotations__),
        [*fields_of(Status), "finished"],
        [*fields_of(SweepComparison), *(f"rows[].{name}" for name in fields_of(Row))],
        ["folder", *(f"findings[].{name}" for name in fields_of(Finding))],
    ]
    rows = [
        [code(name), ", ".join(map(code, known))] for name, known in zip(given, keys, strict=True)
    ]
    meanings = "".join(f"{as_markdown(plain(kind.__doc__))}\n\n" for kind in (Shown, Checked))
    return f"## JSON\n\n{table(['command', 'keys'], rows)}\n{meanings}"


def fields_of(kind: Any) -> list[str]:
    """The names of a dataclass's fields."""
    return [field.name for field in dataclasses.fields(kind)]


def first_line(text: str | None) -> str:
    """The first sentence of a docstring."""
    return " ".join((text or "").split("\n\n")[0].split())


def of_command(name: str, command: Any) -> str:
    """The section of one command."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    words = [(p.metavar or p.name.upper()) for p in arguments]
    usage = " ".join(["ld3-dist", name, *words, *(["[OPTIONS]"] if options else [])])
    parts = [f"## {name}\n", f"```text\n{usage}\n```\n", f"{command.help}\n"]
    rows = [[code(p.metavar or p.name.upper()), p.help or "", shown_default(p)] for p in arguments]
    rows += [
        [", ".join(code(flag) for flag in (*p.opts, *p.secondary_opts)), p.help or ""]
        + ["required" if p.required else shown_default(p)]
        for p in options
    ]
    return "\n".join([*parts, table(["argument or option", "meaning", "default"], rows)])


def shown_default(parameter: Any) -> str:
    """The default of an option; nothing where it is none, or off."""
    if parameter.required or parameter.default in (None, False, ()):
        return ""
    return code(parameter.default if not callable(parameter.default) else "")


# --- the YAML of an experiment --------------------------------------------------------------------


def experiment() -> str:
    """Every key of an experiment's YAML with type, default and meaning."""
    schema = experiment_schema()
    parts = [
        "# Experiment (YAML)\n",
        "Every key has a default but `models`, `solvers` and `nfe`. Begin a file with the line "
        "below and your editor completes and checks it; `ld3-dist schema > experiment.schema.json` "
        "writes that file, and [here it is](experiment.schema.json).\n",
        "```yaml\n# yaml-language-server: $schema=experiment.schema.json\n```\n",
        section(schema, schema, ""),
    ]
    sections = {
        "models": "ModelSettings", "teacher": "Teacher", "pairs": "PairCounts", "lpips": "Lpips",
        "search": "Search", "search.members": "Members", "search.asha": "Asha",
        "ablate": "Ablate", "evaluate": "Evaluate", "evaluate.rows": "BestPer",
        "report": "Report", "resources": "Resources",
    }  # fmt: skip
    for key, name in sections.items():
        rule = schema["$defs"][name]
        rule = next((one for one in rule.get("anyOf", ()) if "properties" in one), rule)
        parts += [f"## {key}\n", rule.get("description", "") + "\n", section(schema, rule, key)]
    parts += ["## A range of search.optuna\n", section(schema, schema["$defs"]["Range"], "")]
    parts += [
        "## learn\n",
        "Settings of learning. Each can be fixed under `learn`, and be an axis under "
        "`search.grid`, `search.optuna` or `ablate`. Which procedure has which is told by "
        "[Names](names.md#procedures).\n",
        section(schema, schema["properties"]["learn"], "learn"),
        "## Other axes\n",
        "Axes of `search.grid`, `search.optuna` and `ablate` beside the settings of learning: "
        + ", ".join(
            code(name)
            for name in schema["$defs"]["Search"]["properties"]["grid"]["properties"]
            if name not in schema["properties"]["learn"]["properties"]
        )
        + ". `guidance` makes cells of its own, so a sampler cannot propose it.\n",
    ]
    return "\n".join(parts)


def section(schema: Schema, rule: Schema, prefix: str) -> str:
    """The table of one section's keys."""
    required = rule.get("required", ())
    rows = []
    for name, inner in rule["properties"].items():
        whole = resolved(schema, inner)
        default = "required" if name in required else code(whole.get("default"))
        full = f"{prefix}.{name}" if prefix else name
        rows.append([code(full), type_of(schema, inner), default, whole.get("description", "")])
    return table(["key", "type", "default", "meaning"], rows)


def resolved(schema: Schema, rule: Schema) -> dict[str, Any]:
    """A rule with the rule that it refers to, whose keys count where it has none of its own."""
    target = rule.get("$ref", "").removeprefix("#/$defs/")
    return {**(schema["$defs"][target] if target else {}), **rule}


def type_of(schema: Schema, rule: Schema) -> str:
    """The kind of value, in words."""
    target = rule.get("$ref", "").removeprefix("#/$defs/")
    target = "start" if target == "member_start" else target
    if target in ("solver", "start", "distance", "model", "extractor", "metric"):
        return f"name of a {target}".replace("a extractor", "an extractor")
    rule = resolved(schema, rule)
    if "anyOf" in rule:
        kinds = [type_of(schema, one) for one in rule["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in rule or "const" in rule:
        return " or ".join(code(one) for one in rule.get("enum", [rule.get("const")]))
    if rule.get("type") == "array":
        return f"list of: {type_of(schema, rule['items'])}" if "items" in rule else "list"
    words = {
        "integer": "whole number", "number": "number", "string": "text",
        "boolean": "true or false", "object": "keys of its own",
    }  # fmt: skip
    return words.get(rule.get("type", ""), "any value") + bounds(rule)


def bounds(rule: Schema) -> str:
    """The bounds of a number, in words."""
    found = {
        "minimum": "at least", "exclusiveMinimum": "above",
        "maximum": "at most", "exclusiveMaximum": "below",
    }  # fmt: skip
    texts = [f"{word} {rule[key]:,g}" for key, word in found.items() if key in rule]
    return f", {', '.join(texts)}" if texts else ""


# --- tables and files -----------------------------------------------------------------------------


def columns() -> str:
    """The columns of every table, as `store.columns` documents them."""
    return (
        "# Columns\n\nThe tables of a sweep are Parquet files. `ld3.load_results` joins rows with "
        "their evaluations; `ld3.load_samples` reads losses. Null means *not measured*, or *not a "
        "finite number* (see `status`). Two columns exist in `load_results` alone: `gain`, the "
        "loss of the best hand-made grid of the cell over this row's on held-out pairs, and "
        "`eval_gain`, the same on fresh samples; and `source`, where a row is from.\n\n"
        + describe().replace("### ", "## ")
    )


def schedule_file() -> str:
    """The keys of a schedule file, from its JSON Schema."""
    schema = schedule_schema()
    required = schema.get("required", ())
    rows = []
    for name, rule in schema["properties"].items():
        kinds = rule.get("type", "")
        kind = kinds if isinstance(kinds, str) else " or ".join(kinds)
        needed = "yes" if name in required else ""
        rows.append([code(name), kind, needed, rule.get("description", "")])
    return (
        f"# Schedule file\n\n{schema['description']}\n\nThe file is JSON; its JSON Schema is "
        "[schedule.schema.json](schedule.schema.json) (`ld3-dist schema schedule` prints it).\n\n"
        + table(["key", "type", "required", "meaning"], rows)
    )


# --- Python ---------------------------------------------------------------------------------------


def home(name: str) -> str:
    """The full name of a public object: the module that defines it, and its name there."""
    found = getattr(ld3_dist, name)
    return f"{found.__module__}.{found.__qualname__}"


def python_api() -> str:
    """Every public name; mkdocstrings writes its signature and docstring."""
    parts = [
        "# Python\n",
        "```python\nimport ld3_dist as ld3\n```\n",
        "Names are resolved on first use: importing loads neither pandas nor Ray. "
        "`ld3.__version__` is the version.\n",
    ]
    for name in ld3_dist.__all__:
        if name != "__version__":
            parts.append(f"## ld3.{name}\n\n::: {home(name)}\n")
    return "\n".join(parts)


# --- solvers and other names ----------------------------------------------------------------------

HISTORY = (
    "y_{i+1} = (α_{i+1}/α_i) y_i + (σ_{i+1} - (α_{i+1}/α_i) σ_i) Σ_k w_k ε_{i-k}\n"
    "ε_j = (y_j - α(τ_j) m_j) / σ(τ_j)\n"
)
FORMULAS: dict[str, tuple[Callable[..., Any], str]] = {
    "euler": (rules.in_time, "y_{i+1} = y_i + (t_{i+1} - t_i) dx/dt(y_i)"),
    "heun": (
        rules.in_time,
        "y'      = y_i + (t_{i+1} - t_i) dx/dt(y_i)\n"
        "y_{i+1} = y_i + (t_{i+1} - t_i) (dx/dt(y_i) + dx/dt(y')) / 2",
    ),
    "ddim": (rules.transfer, HISTORY + "w = (1)"),
    "dpm-2": (
        rules.dpm_2,
        "y'      = DDIM from λ_i to λ_i + r h, at which ε' is taken; r = interior\n"
        "y_{i+1} = DDIM from λ_i to λ_{i+1} with ε_i + (ε' - ε_i) / (2 r)",
    ),
    "dpmpp": (
        rules.dpmpp,
        "y_{i+1} = (σ_{i+1}/σ_i) y_i + α_{i+1} h (φ_1 m_i + φ_2 D_1 + φ_3 D_2),   φ_k = φ_k(-h)\n"
        "order 1: D_1 = D_2 = 0\n"
        "order 2: φ_1 (m_i + (m_i - m_{i-1}) / (2 r_0)) in place of the three terms\n"
        "order 3: d_0 = (m_i - m_{i-1}) / r_0,   d_1 = (m_{i-1} - m_{i-2}) / r_1\n"
        "         D_1 = d_0 + r_0 / (r_0 + r_1) (d_0 - d_1),   D_2 = (d_0 - d_1) / (r_0 + r_1)\n"
        "r_k = (λ_{i-k} - λ_{i-k-1}) / h",
    ),
    "unipc": (
        rules.unipc,
        "y_{i+1} = (σ_{i+1}/σ_i) y_i + α_{i+1} Σ_k b_k m_{i-k}        the predictor\n"
        "y_i    += α_i Σ_k (c_k - b_k) m_{i-k}                          the corrector, afterwards\n"
        "b and c integrate e^{-h(1-s)} times the polynomial through the outputs exactly; the\n"
        "corrector's polynomial includes the new output. bh1 and bh2 differ where a weight is 1/2",
    ),
    "ipndm": (
        rules.ipndm,
        HISTORY + "order 1: w = (1)\n"
        "order 2: w = (3, -1) / 2\n"
        "order 3: w = (23, -16, 5) / 12\n"
        "order 4: w = (55, -59, 37, -9) / 24",
    ),
    "deis": (
        rules.deis,
        HISTORY + "w_k = ∫ l_k(s) d(σ/α)(s) / ∫ d(σ/α)(s)   over the step\n"
        "l_k: Lagrange polynomials through the last p times; with -lam in λ instead of t",
    ),
}
"""The rule in the code and the formula of a family of solvers."""


def family_of(solver: str) -> str:
    """The family of a solver: its own name, or the part before the order."""
    return solver if solver in FORMULAS else solver.partition("-")[0]


def solver_table() -> str:
    """Every solver with its order, and the formula and source of its family."""
    rows = []
    for name in solvers:
        made = make_solver(name)
        anchor = family_of(name)
        rows.append([code(name), str(made.order), str(made.stages), f"[{anchor}](#{anchor})"])
    parts = [
        "# Solvers\n",
        "A solver turns a time grid into a table of coefficients. m_j is the network's estimate "
        "of x_0 at the evaluation j, τ_j its network time, λ = log(α/σ), h = λ_{i+1} - λ_i. "
        "Options follow a question mark: `dpmpp-3?lower_order_final=false`, "
        "`dpm-2?interior=0.4`. Multistep rules begin with order 1 and rise; "
        "`lower_order_final` ends them on lower orders.\n",
        table(["solver", "order", "evaluations per step", "formula"], rows),
    ]
    for family, (rule, formula) in FORMULAS.items():
        text = plain(rule.__doc__)
        parts.append(f"## {family}\n\n{text}\n\n```text\n{formula}\n```\n")
    return "\n".join(parts)


def plain(docstring: str | None) -> str:
    """A docstring as Markdown: indented blocks become code, the rest paragraphs."""
    lines = (docstring or "").strip("\n").split("\n")
    indents = [len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()]
    margin = min(indents, default=0)
    return "\n".join([lines[0].strip(), *(line[margin:] for line in lines[1:])]).strip()


def names() -> str:
    """Every registered name that a user may give, and the docstring of its table."""
    parts = [
        "# Names\n",
        "Wherever a name is accepted, so is `python:FILE.py:NAME`, an object of your own, and "
        "names that installed packages add.\n",
        f"## Noise schedules\n\n{schedules()}",
    ]
    tables = {
        "Models": "ld3_dist.models",
        "Analytic models": "ld3_dist.models.analytic.opening",
        "Starts and grids": "ld3_dist.schedule.starts",
        "Computed grids": "ld3_dist.training_free",
        "Distances": "ld3_dist.core.distance",
        "Extractors": "ld3_dist.metrics.extractors",
        "Metrics": "ld3_dist.metrics.scores",
        "Figures": "ld3_dist.report.figures",
    }
    for title, module in tables.items():
        parts.append(f"## {title}\n\n{plain(importlib.import_module(module).__doc__)}\n")
    parts.append("## Procedures\n")
    for name in procedures:
        parts.append(procedure(name))
    return "\n".join(parts)


def schedules() -> str:
    """The noise schedules with their parameters."""
    rows = []
    for name in noise_schedules:
        kind = noise_schedules.get(name)
        parameters = [f.name for f in dataclasses.fields(kind) if f.name != "name"]  # type: ignore[arg-type]
        rows.append([code(name), ", ".join(map(code, parameters)), first_line(kind.__doc__)])
    return table(["name", "parameters", "meaning"], rows)


def procedure(name: str) -> str:
    """A procedure of learning: its settings with their defaults."""
    kind = procedures.get(name)
    rows = [
        [code(field.name), code(field.default), str(field.metadata["meaning"])]
        for field in dataclasses.fields(kind.Config)
        if field.name not in ("seed", "procedure")
    ]
    begun = ", ".join(code(start) for start in kind.starts)
    text = f"{first_line(kind.__doc__)} It starts from {begun} if no start is given.\n"
    return f"### {name}\n\n{text}\n{table(['setting', 'default', 'meaning'], rows)}"

"""One row a cell: the best hand-made grid, the best learned schedule, and how far apart they are.

    gain       smallest valid_loss of the hand-made grids / valid_loss of the best learned schedule
    eval_gain  the same on fresh pairs: smallest eval_loss of the hand-made grids / eval_loss of
               that schedule
    fid        of that schedule, beside the smallest of any hand-made grid in the cell and the
               teacher's
    inception_score   likewise, beside the largest of any hand-made grid

The best learned schedule is the one with the smallest hard held-out loss; no metric takes part in
the choice. Mean and standard deviation over seeds are of the schedules that share its settings
(trial and start) and differ in the seed."""

from __future__ import annotations

# A selection from a frame is a union of types to pandas' own annotations:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
import pandas as pd

COLUMNS = (
    "model",
    "conditioning",
    "guidance",
    "solver",
    "nfe",
    "cell",
    "baseline",
    "baseline_loss",
    "loss",
    "seed_mean",
    "seed_std",
    "seeds",
    "gain",
    "baseline_eval_loss",
    "eval_loss",
    "eval_gain",
    "baseline_fid",
    "fid",
    "teacher_fid",
    "baseline_coverage",
    "coverage",
    "teacher_coverage",
    "baseline_inception_score",
    "inception_score",
    "teacher_inception_score",
    "method",
    "gamma",
    "start",
    "distance",
    "learned",
    "ok",
    "not_ok",
    "key",
)
NUMBERS = (
    "guidance",
    "baseline_loss",
    "loss",
    "seed_mean",
    "seed_std",
    "gain",
    "baseline_eval_loss",
    "eval_loss",
    "eval_gain",
    "baseline_fid",
    "fid",
    "teacher_fid",
    "baseline_coverage",
    "coverage",
    "teacher_coverage",
    "baseline_inception_score",
    "inception_score",
    "teacher_inception_score",
    "gamma",
)
COUNTS = ("nfe", "seeds", "learned", "ok", "not_ok")


def summary_table(frame: pd.DataFrame, evaluations: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per cell, in order of model, conditioning, guidance, solver and NFE; null where
    nothing was measured.

    Args:
        frame: from `load_results`.
        evaluations: the table of evaluations, for the teachers' own metrics; without it they stay
            null.
    """
    teachers = teacher_scores(evaluations)
    records = [_cell(rows, teachers) for _, rows in frame.groupby("cell", sort=False)]
    table = pd.DataFrame(records, columns=list(COLUMNS))
    table = table.astype(dict.fromkeys(NUMBERS, "float64") | dict.fromkeys(COUNTS, "Int64"))
    return table.sort_values(
        ["model", "conditioning", "guidance", "solver", "nfe", "cell"], ignore_index=True
    )


def teacher_scores(evaluations: pd.DataFrame | None) -> dict[str, dict[str, object]]:
    """Teacher key -> its evaluation."""
    if evaluations is None:
        return {}
    rows = evaluations[evaluations["kind"] == "teacher"].drop_duplicates("key")
    return {str(row["key"]).removeprefix("teacher:"): row for row in rows.to_dict("records")}


def seed_group(rows: pd.DataFrame, best: pd.Series) -> pd.DataFrame:
    """The ok learned rows of a cell that share trial, start and gamma with `best`: they differ in
    the seed.
    """
    same = (rows["kind"] == "learned") & (rows["status"] == "ok")
    for column in ("trial", "start", "gamma", "distance", "coordinate", "preset", "coefficients"):
        value = best[column]
        same &= (
            rows[column].isna()
            if pd.isna(value)
            else (rows[column] == value).fillna(False).astype(bool)
        )
    return rows[same]


def best_row(rows: pd.DataFrame) -> pd.Series | None:
    """The best learned row of a cell, or None."""
    best = rows[rows["best"].astype(bool)]
    return None if best.empty else best.iloc[0]


def _cell(rows: pd.DataFrame, teachers: dict[str, dict[str, object]]) -> dict[str, object]:
    first = rows.iloc[0]
    record: dict[str, object] = {
        name: first[name] for name in ("model", "conditioning", "guidance", "solver", "nfe", "cell")
    }
    learned = rows[rows["kind"] == "learned"]
    baselines = rows[(rows["kind"] == "baseline") & (rows["status"] == "ok")]
    ok = learned["status"] == "ok"
    record |= {
        "learned": len(learned),
        "ok": int(ok.sum()),
        "not_ok": int((~ok).sum()),
        "distance": first["distance"],
    }
    if baselines["valid_loss"].notna().any():
        baseline = baselines.loc[baselines["valid_loss"].astype(float).idxmin()]
        record |= {"baseline": baseline["start"], "baseline_loss": baseline["valid_loss"]}
        record |= {
            "baseline_eval_loss": baselines["eval_loss"].min(),
            "baseline_fid": baselines["fid"].min(),
        }
        record |= {
            f"baseline_{name}": baselines[name].max() for name in ("coverage", "inception_score")
        }
    scores = teachers.get(str(first["teacher"]), {})
    record |= {
        f"teacher_{name}": scores.get(name) for name in ("fid", "coverage", "inception_score")
    }
    best = best_row(rows)
    if best is not None:
        losses = seed_group(rows, best)["valid_loss"].astype(float)
        record |= {
            "loss": best["valid_loss"],
            "seed_mean": losses.mean(),
            "seed_std": losses.std(),
            "seeds": len(losses),
        }
        record |= {
            name: best[name]
            for name in (
                "gain",
                "eval_loss",
                "eval_gain",
                "fid",
                "coverage",
                "inception_score",
                "gamma",
                "start",
                "distance",
                "key",
            )
        }
        record["method"] = f"{best['preset']}{' + coefficients' if best['coefficients'] else ''}"
    return record

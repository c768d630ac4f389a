"""Result tables of a sweep that never ran: the shape of the real ones, with numbers that are easy
to recompute.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ld3_dist.core.grid import discretize
from ld3_dist.core.noise import EDM
from ld3_dist.store.opening import open_storage
from ld3_dist.store.tables import write_table

NOISE = EDM(t_min=0.01, t_max=40.0)
BASELINES = ("karras", "log_snr", "uniform")
EXTRACTOR = "digits-classifier"
STEPS = {"ddim": 1.0, "dpmpp-3": 0.4, "unipc-3": 0.55, "ipndm-4": 0.3, "heun": 0.8}


def records(
    models: Sequence[str] = ("digits",),
    solvers: Sequence[str] = ("unipc-3", "dpmpp-3"),
    nfes: Sequence[int] = (4, 5),
    gammas: Sequence[float] = (0.0, 0.001, 0.01),
    seeds: Sequence[int] = (0, 1, 2),
    metrics: bool = True,
    learned: bool = True,
    broken: bool = True,
    everything: bool = False,
) -> tuple[list[dict], list[dict]]:
    """Records of the tables `rows` and `evaluations`.

    A cell's baselines and best are evaluated, or every row that is ok with `everything`.
    """
    rng = np.random.default_rng(7)
    rows: list[dict] = []
    evaluations: list[dict] = []
    for model in models:
        for solver in solvers:
            for nfe in nfes:
                cell = _cell(rng, model, solver, nfe, gammas, seeds if learned else (), broken)
                rows += cell
                if metrics:
                    ok = [row for row in cell if row["kind"] == "learned" and row["status"] == "ok"]
                    best = min(ok, key=lambda row: row["valid_loss"], default=None)
                    wanted = ok if everything else [best]
                    chosen = [r for r in cell if r["kind"] == "baseline" or r in wanted]
                    evaluations += [_measured(rng, row) for row in chosen]
        if metrics:
            evaluations.append(_teacher(model))
    return rows, evaluations


def write_sweep(folder: Path, **kinds) -> Path:
    """A sweep's folder with these tables and its experiment.json; arguments as `records`."""
    storage = open_storage(folder)
    rows, evaluations = records(**kinds)
    write_table(storage, "rows", "all", rows)
    write_table(storage, "evaluations", "all", evaluations)
    write_table(storage, "losses", "all", losses_of(evaluations))
    storage.write_bytes(
        "experiment.json", json.dumps({"name": "synthetic", "fingerprint": "3f9a1c0de4"}).encode()
    )
    return Path(folder)


def losses_of(evaluations: Sequence[dict]) -> list[dict]:
    """Records of the table `losses`: heavy-tailed, from common noise, with the means evaluated."""
    noise = np.random.default_rng(3).normal(size=200)
    found = []
    for i, record in enumerate(evaluations):
        if record.get("eval_loss") is None:
            continue
        x = np.exp(noise + 0.2 * np.random.default_rng(i).normal(size=200))
        x *= record["eval_loss"] / x.mean()
        shared = {"key": record["key"], "evaluation": record["evaluation"]}
        found.append(shared | {"repeat": 0, "start": 10**9, "losses": x.tolist()})
    return found


def _cell(rng, model, solver, nfe, gammas, seeds, broken) -> list[dict]:
    shared = {
        "experiment": "3f9a1c0de4",
        "cell": f"{model}/class/w1/{solver}/{nfe}",
        "model": model,
        "model_hash": "ab" * 32,
        "conditioning": "class",
        "guidance": 1.0,
        "solver": solver,
        "nfe": nfe,
        "steps": nfe,
        "distance": "l2",
        "teacher": f"t-{model}",
        "status": "ok",
        "settings": json.dumps({"noise": "edm"}),
        "version": "0.1.0",
        "torch_version": "2.14.1",
        "git_commit": "0123456789ab",
        "host": "node-0",
        "device": "cpu",
        "attempts": 1,
        "train_pairs": 50,
        "valid_pairs": 50,
        "batch": 10,
        "network_evals": 50 * nfe,
        "seconds": 1.5,
    }
    scale = STEPS.get(solver, 0.5) * (4 / nfe) ** 2 * 0.2
    rows = []
    for factor, name in zip((1.0, 1.5, 4.0), BASELINES, strict=True):
        knots = discretize(NOISE, nfe, name).tolist()
        rows.append(
            shared
            | {
                "key": f"b-{model}-{solver}-{nfe}-{name}",
                "kind": "baseline",
                "start": name,
                "knots": knots,
                "evals": knots[:-1],
                "valid_loss": scale * factor * float(rng.uniform(0.9, 1.1)),
            }
        )
    trial = 0
    for gamma in gammas:
        for start in ("karras", "log_snr"):
            for member, seed in enumerate(seeds):
                rows.append(
                    shared
                    | _member(rng, trial, member, gamma, start, seed, nfe, scale, shared["cell"])
                )
            trial += 1
    if broken and seeds:
        rows[-1] |= {
            "status": "diverged",
            "valid_loss": None,
            "message": "loss is not finite in epoch 7",
            "knots": None,
        }
        rows[-2] |= {
            "status": "collapsed",
            "message": "smallest gap 2e-6 of the range",
            "min_gap": 2e-6,
        }
    return rows


def _member(rng, trial, member, gamma, start, seed, nfe, scale, cell) -> dict:
    knots = discretize(NOISE, nfe, start).log()
    inner = knots[1:-1] + torch.as_tensor(rng.normal(0, 0.12, nfe - 1)) + 0.5
    knots = torch.cat(
        [
            knots[:1],
            inner.clamp(float(knots[-1]), float(knots[0])).sort(descending=True)[0],
            knots[-1:],
        ]
    )
    evals = (knots[:-1] + torch.as_tensor(rng.normal(0, 0.15, nfe))).clamp_max(float(knots[0]))
    final = scale * float(rng.uniform(0.05, 0.2)) * (1 + 10 * gamma)
    epochs = 30
    decay = np.exp(-np.arange(epochs + 1) / 5)
    valid = final + (scale * 1.2 - final) * decay * rng.uniform(0.9, 1.1, epochs + 1)
    valid[-1] = final
    return {
        "key": f"l-{cell}-{trial}-{member}",
        "kind": "learned",
        "trial": f"trial-{trial:03d}",
        "round": trial // 2,
        "start": start,
        "coordinate": "lambda",
        "gamma": gamma,
        "radius": gamma * 64 / nfe**2,
        "procedure": "fast",
        "coefficients": False,
        "lr": 0.1,
        "lr_times": 0.05,
        "lr_noise": 1.0,
        "seed": seed,
        "epochs": epochs,
        "knots": knots.exp().tolist(),
        "evals": evals.exp().tolist(),
        "min_gap": 0.05,
        "start_loss": scale * 1.2,
        "train_loss": final * 0.8,
        "valid_loss": float(final),
        "best_epoch": epochs,
        "epochs_run": epochs,
        "train_curve": [None, *(valid[1:] * 0.8).tolist()],
        "valid_curve": valid.tolist(),
        "network_evals": 60_000,
    }


def _measured(rng, row: dict) -> dict:
    loss = row["valid_loss"]
    return {
        "key": row["key"],
        "kind": row["kind"],
        "cell": row["cell"],
        "evaluation": "e1",
        "samples": 2000,
        "eval_loss": loss * float(rng.uniform(0.98, 1.05)),
        "eval_loss_sem": loss * 0.02,
        "fid": 2.0 + 60 * loss,
        "kid": loss / 10,
        "precision": 0.9,
        "recall": 0.8,
        "density": 1.0,
        "coverage": max(0.2, 0.93 - 2 * loss),
        "extractor": EXTRACTOR,
        "extractor_hash": "cd" * 32,
        "reference": "digits",
    }


def _teacher(model: str) -> dict:
    return {
        "key": f"teacher:t-{model}",
        "kind": "teacher",
        "evaluation": "e1",
        "samples": 2000,
        "fid": 1.9,
        "coverage": 0.93,
        "precision": 0.9,
        "recall": 0.8,
        "extractor": EXTRACTOR,
        "reference": "digits",
    }

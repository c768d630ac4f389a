"""Train and measure the embedded models.

`python -m ld3_dist.models.digits` trains the network; `flow`, `classifier`, `evaluate` and `data`
after it do the rest.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import nn

from ...core.errors import InputError
from ..embedded.denoiser import EmbeddedNetwork
from ..embedded.provenance import add_to, write_json, write_provenance
from ..weights import save_tensors
from .classifier import CLASSIFIER
from .data import data_hash, digits_reference, write_data
from .evaluate import EvaluateConfig, evaluate
from .network import FLOW, NETWORK, NetworkConfig
from .train import FlowConfig, TrainConfig, measure_sigma_data, settings, train_network
from .train_classifier import ClassifierConfig, train_classifier

COMMAND = "python -m ld3_dist.models.digits"
SOURCE = "8x8 handwritten digits (Alpaydin & Kaynak, UCI 1998), 1797 images, scaled to [-1, 1]"
app = typer.Typer(help=__doc__, invoke_without_command=True, pretty_exceptions_enable=False)


def _progress(text: str, total: int) -> tuple[Progress, Any]:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn())
    return bar, bar.add_task(text, total=total)


def _keep(
    net: nn.Module,
    file: Path,
    kind: str,
    config: dict[str, Any],
    record: dict[str, Any],
    device: str,
) -> None:
    """Write the weights, and beside them a JSON file that says how they were made."""
    save_tensors(file, dict(net.state_dict()), kind, config)
    source = {"data": SOURCE, "data_sha256": data_hash()}
    print(write_provenance(net, file, kind, source, record, device))


Steps = Annotated[int, typer.Option(help="Optimiser steps.")]
Batch = Annotated[int, typer.Option(help="Images per step.")]
Rate = Annotated[float, typer.Option(help="Peak learning rate of Adam.")]
Decay = Annotated[float, typer.Option(help="Decay of the weight average.")]
Dropout = Annotated[float, typer.Option(help="Probability of the null label.")]
Seed = Annotated[int, typer.Option(help="Seed of weights, order, labels and noise.")]
Device = Annotated[str, typer.Option(help="Torch device.")]
Out = Annotated[Path, typer.Option(help="Weights file to write; a .json goes beside it.")]


@app.callback()
def network(
    context: typer.Context,
    steps: Steps = TrainConfig.steps,
    batch: Batch = TrainConfig.batch,
    lr: Rate = TrainConfig.lr,
    ema: Decay = TrainConfig.ema,
    dropout: Dropout = TrainConfig.dropout,
    seed: Seed = TrainConfig.seed,
    device: Device = TrainConfig.device,
    out: Out = NETWORK.file,
) -> None:
    """Train the digits network (without a subcommand)."""
    if context.invoked_subcommand:
        return
    given = {"ema": ema, "dropout": dropout, "seed": seed, "device": device}
    _train(NETWORK, TrainConfig(steps, batch, lr, **given), out, COMMAND)


@app.command()
def flow(
    steps: Steps = FlowConfig.steps,
    batch: Batch = FlowConfig.batch,
    lr: Rate = FlowConfig.lr,
    ema: Decay = FlowConfig.ema,
    dropout: Dropout = FlowConfig.dropout,
    seed: Seed = FlowConfig.seed,
    device: Device = FlowConfig.device,
    out: Out = FLOW.file,
) -> None:
    """Train the digits network of flow matching."""
    given = {"ema": ema, "dropout": dropout, "seed": seed, "device": device}
    _train(FLOW, FlowConfig(steps, batch, lr, **given), out, f"{COMMAND} flow")


def _train(network: EmbeddedNetwork[Any], config: TrainConfig, out: Path, command: str) -> None:
    """Train a network, showing the loss, and write weights and provenance."""
    sizes, last = NetworkConfig(), None
    bar, task = _progress("loss", config.steps)
    with bar:
        for last in train_network(config, sizes):
            bar.update(task, completed=last.step, description=f"loss {last.loss:.4f}")
    assert last is not None
    sigma_data = measure_sigma_data(digits_reference()[0])
    facts = {"command": command, "settings": settings(config, sizes), "sigma_data": sigma_data}
    facts |= {"loss": round(last.loss, 5), "seconds": round(last.seconds, 1)}
    _keep(
        last.average,
        out,
        network.kind,
        {"network": asdict(sizes), "sigma_data": sigma_data},
        facts,
        config.device,
    )


@app.command()
def classifier(
    epochs: Annotated[
        int, typer.Option(help="Passes over the training images.")
    ] = ClassifierConfig.epochs,
    seed: Annotated[
        int, typer.Option(help="Seed of weights, order and noise.")
    ] = ClassifierConfig.seed,
    device: Device = ClassifierConfig.device,
    out: Out = CLASSIFIER.file,
) -> None:
    """Train the classifier on four fifths of the digits; the rest gives its accuracy."""
    config, last = ClassifierConfig(epochs=epochs, seed=seed, device=device), None
    bar, task = _progress("accuracy", epochs)
    with bar:
        for last in train_classifier(config):
            bar.update(
                task, completed=last.epoch, description=f"held-out accuracy {last.accuracy:.4f}"
            )
    assert last is not None
    facts = {
        "command": f"{COMMAND} classifier",
        "settings": asdict(config),
        "loss": round(last.loss, 5),
    }
    facts |= {"held_out_accuracy": round(last.accuracy, 5), "seconds": round(last.seconds, 1)}
    _keep(
        last.network, out, CLASSIFIER.kind, {"channels": list(last.network.channels)}, facts, device
    )


@app.command(name="evaluate")
def evaluate_command(
    samples: Annotated[
        int, typer.Option(help="Class-conditional samples.")
    ] = EvaluateConfig.samples,
    nfe: Annotated[
        int, typer.Option(help="Network evaluations of the teacher.")
    ] = EvaluateConfig.nfe,
    solver: Annotated[str, typer.Option(help="Solver of the teacher.")] = EvaluateConfig.solver,
    guidance: Annotated[
        float, typer.Option(help="Guidance scale, 1 = none.")
    ] = EvaluateConfig.guidance,
    seed: Annotated[int, typer.Option(help="Seed of noise and labels.")] = EvaluateConfig.seed,
    device: Device = EvaluateConfig.device,
    file: Annotated[
        Path | None, typer.Option(help="Weights file to measure, if not the packaged one.")
    ] = None,
    flow: Annotated[bool, typer.Option(help="It is a network of flow matching.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="JSON file to write, e.g. results/models/digits.json.")
    ] = None,
    record: Annotated[
        bool, typer.Option(help="Also write the figures into the weights' provenance file.")
    ] = False,
) -> None:
    """Measure the model.

    The record holds the share of samples that are classified as asked, and the Fréchet distance of
    samples to the data, beside the distance between two halves of the data.
    """
    config = EvaluateConfig(samples, nfe, solver, guidance=guidance, seed=seed, device=device)
    network = FLOW if flow else NETWORK
    file = network.file if file is None else file
    command = " ".join([COMMAND, *sys.argv[1:]])
    figures = {"command": command, **evaluate(config, file, network)}
    print(json.dumps(figures, indent=1))
    if out is not None:
        write_json(out, figures)
    if record:
        add_to(file.with_suffix(".json"), "quality", figures)


@app.command()
def data() -> None:
    """Write the packaged copy of the data, from scikit-learn's copy."""
    write_data()


if __name__ == "__main__":
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None

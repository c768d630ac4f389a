"""Train and measure the embedded model `fashion`.

Without a stage, all of them run: the classifier, the statistics of the test images, the network,
the evaluation. They need torch, numpy and safetensors only.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...core.errors import InputError
from ..embedded.classifier import accuracy
from ..embedded.provenance import add_to, device_name, write_json, write_provenance
from ..weights import save_tensors, sha256_of
from .classifier import CLASSIFIER
from .data import DEBIAN_FOLDER, FashionData, read_fashion, scale
from .evaluate import EvaluateConfig, evaluate, write_sheet
from .network import NETWORK, NetworkConfig
from .reference import write_reference
from .train import TrainConfig, TrainProgress, measure_sigma_data, train_network
from .train_classifier import ClassifierConfig, train_classifier

COMMAND = "python -m ld3_dist.models.fashion"
SOURCE = (
    "Fashion-MNIST (Xiao et al. 2017, MIT licence), 60,000 + 10,000 images of 28x28, scaled to "
    "[-1, 1]"
)
STAGES = ("classifier", "statistics", "network", "evaluate")


def parse(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument(
        "stages",
        nargs="*",
        help=f"any of {', '.join(STAGES)}; all if none is given",
        metavar="stage",
    )
    parser.add_argument(
        "--data", type=Path, default=DEBIAN_FOLDER, help="folder of the four IDX files"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="folder to write to"
    )
    parser.add_argument(
        "--steps", type=int, default=TrainConfig.steps, help="optimiser steps of the network"
    )
    parser.add_argument(
        "--minutes", type=float, help="time for the network's training, instead of steps"
    )
    parser.add_argument(
        "--batch", type=int, default=TrainConfig.batch, help="images per step of the network"
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=ClassifierConfig.epochs,
        help="passes of the classifier over the images",
    )
    parser.add_argument(
        "--lr", type=float, default=TrainConfig.lr, help="peak learning rate of the network"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of weights, order, labels and noise"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device"
    )
    parser.add_argument("--eager", action="store_true", help="never record a CUDA graph")
    parser.add_argument(
        "--tiny", action="store_true", help="dry run: little data, small sizes, seconds of work"
    )
    chosen = parser.parse_args(words)
    for stage in chosen.stages:
        if stage not in STAGES:
            parser.error(f"unknown stage {stage!r}: one of {', '.join(STAGES)}")
    chosen.stages = chosen.stages or list(STAGES)
    return chosen


class Run:
    """The stages of one command, and the files they read and write."""

    def __init__(self, chosen: argparse.Namespace, words: list[str]) -> None:
        self.chosen, self.device = chosen, chosen.device
        self.command = " ".join([COMMAND, *without_folders(words)])
        self.out = Path(chosen.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.network_file, self.classifier_file = (
            self.out / f"{n}.safetensors" for n in ("network", "classifier")
        )
        self.state_file = self.out / "training.safetensors"
        self.data: FashionData = read_fashion(chosen.data)
        self.sigma_data = measure_sigma_data(self.data.train_images)
        if chosen.tiny:
            self.data = self.data.first(512, 256)

    def classifier(self) -> None:
        """Train the classifier; write its weights in half precision, and their accuracy."""
        epochs = 1 if self.chosen.tiny else self.chosen.epochs
        config, last = (
            ClassifierConfig(epochs=epochs, seed=self.chosen.seed, device=self.device),
            None,
        )
        for last in train_classifier(config, self.data):
            say(
                f"classifier  epoch {last.epoch}  loss {last.loss:.4f}  "
                f"accuracy {last.accuracy:.4f}",
                last.seconds,
            )
        assert last is not None
        facts = {
            "settings": asdict(config),
            "loss": round(last.loss, 5),
            "seconds": round(last.seconds, 1),
        }
        sizes = {"channels": list(last.network.channels)}
        write_weights(last.network, self.classifier_file, CLASSIFIER.kind, sizes)
        kept = CLASSIFIER.load(self.device, file=self.classifier_file)
        found = accuracy(kept, scale(self.data.test_images.to(self.device)), self.data.test_labels)
        say(f"classifier  accuracy {found:.4f} on the test images, as written")
        self.describe(
            kept, self.classifier_file, CLASSIFIER.kind, {**facts, "test_accuracy": round(found, 5)}
        )

    def statistics(self) -> None:
        """Write the test images' features, and add the file to the classifier's provenance."""
        file = self.out / "reference.safetensors"
        write_reference(file, self.data, self.classifier_file, self.device)
        facts = {"file": file.name, "sha256": sha256_of(file), "bytes": file.stat().st_size}
        self.note(self.classifier_file, "reference", facts)
        say(f"{file}  {facts['bytes']} bytes")

    def network(self) -> None:
        """Train the network, and write the averaged weights every minute."""
        c, tiny = self.chosen, self.chosen.tiny
        report = (250 if self.device.startswith("cuda") else 20) if not tiny else 4
        sizes = NetworkConfig((16, 32), (1, 1, 1), 32) if tiny else NetworkConfig()
        config = TrainConfig(
            steps=min(c.steps, 12) if tiny else c.steps,
            batch=32 if tiny else c.batch,
            lr=c.lr,
            seed=c.seed,
            device=self.device,
            minutes=c.minutes,
            report=report,
            graph=not c.eager,
        )
        last, written, shown = None, 0.0, -1e9
        for last in train_network(config, self.data, sizes, self.state_file):
            if last.seconds - shown >= 5 or last.step == last.steps:
                shown = last.seconds
                say(
                    f"network  step {last.step} of {last.steps}  loss {last.loss:.4f}", last.seconds
                )
            if last.seconds - written >= 60:
                written = last.seconds
                self.keep_network(config, sizes, last)
        if last is not None:
            self.keep_network(config, sizes, last)
        self.state_file.unlink(missing_ok=True)

    def keep_network(self, config: TrainConfig, sizes: NetworkConfig, last: TrainProgress) -> None:
        """Write the averaged weights, and how they were made."""
        write_weights(
            last.average,
            self.network_file,
            NETWORK.kind,
            {"network": asdict(sizes), "sigma_data": self.sigma_data},
        )
        done = {"steps": last.steps or last.step, "done": last.step, "loss": round(last.loss, 5)}
        facts = {"settings": {**asdict(config), **asdict(sizes), "steps": done.pop("steps")}}
        facts |= {"sigma_data": self.sigma_data, **done, "seconds": round(last.seconds, 1)}
        self.describe(last.average, self.network_file, NETWORK.kind, facts)

    def evaluate(self) -> None:
        """Draw a sheet of samples, measure the model, and write the figures beside its weights."""
        torch.backends.cudnn.allow_tf32 = False  # full precision, as in use
        torch.backends.cudnn.benchmark = False
        batch = 1000 if self.device.startswith("cuda") else EvaluateConfig.batch
        config = EvaluateConfig(seed=20 + self.chosen.seed, batch=batch, device=self.device)
        if self.chosen.tiny:
            config = EvaluateConfig(samples=40, asked=20, nfe=5, device=self.device)
        write_sheet(config, self.network_file, self.out / "sheet.png")
        say(f"{self.out / 'sheet.png'}")
        figures = {
            "command": self.command,
            **evaluate(config, self.data, self.network_file, self.classifier_file),
        }
        figures["device"] = device_name(self.device)
        print(json.dumps(figures, indent=1), flush=True)
        write_json(self.out / "quality.json", figures)
        self.note(self.network_file, "quality", figures)

    def note(self, file: Path, key: str, facts: dict[str, Any]) -> None:
        """Add a key to the provenance of a weights file, if there is one."""
        if (provenance := file.with_suffix(".json")).is_file():
            add_to(provenance, key, facts)

    def describe(self, net: nn.Module, file: Path, kind: str, facts: dict[str, Any]) -> None:
        """Write the provenance of a weights file beside it."""
        source = {"data": SOURCE, "data_sha256": self.data.sha256}
        facts = {"command": self.command, **facts}
        say(write_provenance(net, file, kind, source, facts, self.device))


def without_folders(words: list[str]) -> list[str]:
    """The words of a command line, with FOLDER in place of folders, which differ by machine."""
    kept = list(words)
    for i, word in enumerate(words):
        option, equals, _ = word.partition("=")
        if option in ("--data", "--out"):
            if equals:
                kept[i] = f"{option}=FOLDER"
            elif i + 1 < len(words):
                kept[i + 1] = "FOLDER"
    return kept


def write_weights(net: nn.Module, file: Path, kind: str, config: dict[str, Any]) -> None:
    """Write matrices and kernels in half precision, and vectors (biases, norms) in their own."""
    tensors = {name: t.half() if t.ndim > 1 else t for name, t in net.state_dict().items()}
    save_tensors(file, tensors, kind, config)


def say(text: str, seconds: float | None = None) -> None:
    """Print at once."""
    print(text if seconds is None else f"{text}  {seconds:.1f} s", flush=True)


def main(words: list[str]) -> int:
    """Run the stages and return the exit code.

    A stage that fails does not stop the stages after it.
    """
    logging.basicConfig(format="%(levelname)s %(message)s")
    run, start = Run(parse(words), words), time.perf_counter()
    if run.device.startswith("cuda"):
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = False
    say(
        f"{device_name(run.device)}, torch {torch.__version__}, data {run.data.sha256[:12]}, "
        f"sd {run.sigma_data}"
    )
    steps: dict[str, Callable[[], None]] = {name: getattr(run, name) for name in STAGES}
    failed = []
    for stage in STAGES:
        if stage not in run.chosen.stages:
            continue
        try:
            steps[stage]()
        except InputError:
            raise
        except Exception:  # noqa: BLE001, a failing stage must not cost hours of training
            traceback.print_exc()
            failed.append(stage)
        say(f"{stage} {'failed' if stage in failed else 'done'}", time.perf_counter() - start)
    return 3 if "network" in failed else 1 if failed else 0


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None

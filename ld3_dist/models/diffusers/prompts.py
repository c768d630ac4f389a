"""Text conditions: each sample draws a line of the prompts file.

Every line is encoded once, by the pipeline's own encoders.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.denoiser import Condition
from ...core.errors import InputError
from ...core.sample import sample_generator
from ...core.text import read_lines
from ..conditions import LONGEST_LIST, PROMPTS_FILE
from ..options import ModelOptions


class Prompts:
    """Prompts as conditions: it draws lines and encodes them, on the CPU, in float32.

    Args:
        pipeline: its `encode_prompt` makes the embeddings.
        kind: "sd", "sdxl", "sd3" or "flux"; their encode_prompt takes and returns different things.
        lines: to draw from, uniformly; [""] for an unconditional use.
        spec: the model's name in messages.
    """

    def __init__(
        self, pipeline: Any, kind: str, lines: Sequence[str], options: ModelOptions, spec: str
    ) -> None:
        self.pipeline, self.kind, self.lines, self.device = (
            pipeline,
            kind,
            list(lines),
            options.device,
        )
        self.negative, self.spec = options.negative_prompt, spec
        self._known: dict[str, dict[str, Tensor]] = {}

    def draw(self, seed: int, indices: Sequence[int]) -> Condition:
        """{"prompt": [M, tokens, width], "pooled": [M, width] if there is one}."""
        encoded = [self.encode(self.lines[self.pick(seed, i)]) for i in indices]
        return {name: torch.cat([one[name] for one in encoded]) for name in encoded[0]}

    def texts(self, seed: int, indices: Sequence[int]) -> list[str]:
        """The prompts of samples [M]."""
        return [self.lines[self.pick(seed, i)] for i in indices]

    def pick(self, seed: int, index: int) -> int:
        """The number of the line that sample `index` draws."""
        return int(
            torch.randint(len(self.lines), (), generator=sample_generator(seed, index, "condition"))
        )

    def encode(self, line: str) -> dict[str, Tensor]:
        """Embeddings of one prompt, batch of 1."""
        if line not in self._known:
            self._known[line] = self._encoded(line)[0]
        return self._known[line]

    def null(self) -> dict[str, Tensor]:
        """Embeddings of the negative prompt, batch of 1.

        An empty prompt is encoded as the pipeline would encode it.
        """
        return self._encoded("")[1]

    def _encoded(self, line: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The same as `_call`. Raises InputError if the encoders fail on a prompt."""
        try:
            return self._call(line)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # by what of a configuration or tokenizer is nonsense
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" …")
            raise InputError(
                f"model {self.spec!r}: its text encoders cannot encode {line[:60]!r} ({reason}); "
                "check the folders text_encoder and tokenizer, or download them again"
            ) from error

    @torch.no_grad()
    def _call(self, line: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Embeddings (of the prompt, of the negative prompt), batch of 1 each."""
        pipeline, negative = self.pipeline, self.negative or None
        for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
            if getattr(pipeline, name, None) is not None:
                getattr(pipeline, name).to(self.device)
        if self.kind == "sd":
            prompt, null = pipeline.encode_prompt(
                line, self.device, 1, True, negative_prompt=negative
            )
            return _named(prompt), _named(null)
        if self.kind == "flux":
            both = [
                pipeline.encode_prompt(text, None, device=self.device)
                for text in (line, self.negative)
            ]
            return _named(*both[0][:2]), _named(*both[1][:2])
        rest = (None,) if self.kind == "sdxl" else (None, None)
        prompt, null, pooled, null_pooled = pipeline.encode_prompt(
            line,
            *rest,
            device=self.device,
            do_classifier_free_guidance=True,
            negative_prompt=negative,
        )
        return _named(prompt, pooled), _named(null, null_pooled)


def _named(prompt: Tensor, pooled: Tensor | None = None) -> dict[str, Tensor]:
    found = {"prompt": prompt.float().cpu()}
    return found if pooled is None else {**found, "pooled": pooled.float().cpu()}


def prompt_lines(options: ModelOptions, model: str) -> list[str]:
    """The prompts to draw from; InputError if there are none, or classes instead."""
    if options.classes:
        raise InputError(
            f"model {model!r} is conditioned on text: classes={options.classes!r} does not apply "
            f"to it"
        )
    if options.conditional is False:
        return [""]
    if not options.prompts:
        raise InputError(
            f"model {model!r} is conditioned on text: give prompts (a text file, one prompt a "
            f"line), or "
            "conditional: false"
        )
    return read_lines(options.prompts, PROMPTS_FILE, LONGEST_LIST)

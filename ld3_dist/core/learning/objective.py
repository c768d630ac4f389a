"""The loss of K students on pairs, and its gradients, in bounded memory.

    l_kb = d( decode(sample(tableau_k, x_kb)), target_b )        gradients of mean_b l_kb

are taken with respect to the tableaux of the members k and to the noise x. A step differentiates
through E network evaluations and the decoder. If all activations are kept, they grow with E. If
they are recomputed, every evaluation stores only its input and runs twice, and the peak is one
evaluation. Samples are independent: a call that does not fit is split into smaller batches,
whose gradients add up to the same numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..denoiser import Denoiser, map_condition
from ..distance import Distance
from ..errors import InputError, unknown
from ..memory import free_memory, out_of_memory
from ..sample import initial_state, sample
from ..solver import Tableau
from .config import CHECKPOINTING
from .pairs import Pairs

SAFE = 0.8
"""The fraction of the free memory that activations may fill before they are recomputed."""

log = logging.getLogger("ld3_dist")


class Objective:
    """Distances between students and the teacher, on rows of `pairs`.

    Args:
        checkpointing: "always" recomputes activations in the backward pass, and "never" keeps them.
            "auto" measures one sample's activations at the first step, and recomputes if a whole
            step's activations would not fit into the free memory.
    """

    def __init__(self, denoiser: Denoiser, distance: Distance, checkpointing: str = "auto") -> None:
        if checkpointing not in CHECKPOINTING:
            raise unknown("checkpointing", checkpointing, CHECKPOINTING)
        self.denoiser, self.distance = denoiser, distance
        self.free_to_choose = checkpointing == "auto"
        self.recompute = None if self.free_to_choose else checkpointing == "always"
        self.most = 2**62  # rows in one call, halved when memory runs out
        self.network_evals = 0

    def losses(
        self, tableau: Tableau, x: Tensor, pairs: Pairs, features: list[Tensor], rows: Tensor
    ) -> Tensor:
        """Distances [K, b] of the samples from noise x to the targets of `rows`; no gradients.

        Args:
            tableau: of K members.
            x: unit-variance noise [K, b, *shape].
            features: of the targets of all pairs.
            rows: indices of the pairs [K, b].
        """
        with torch.no_grad():
            while True:
                try:
                    out = x.new_empty(rows.shape)
                    for k, b in self.blocks(rows):
                        out[k, b] = self._forward(
                            tableau.take(k), x[k, b], pairs, features, rows[k, b], False
                        ).to(out)
                    return out
                except RuntimeError as error:
                    self._halve(error, rows)

    def gradients(
        self, tableau: Tableau, x: Tensor, pairs: Pairs, features: list[Tensor], rows: Tensor
    ) -> Tensor:
        """Distances [K, b], from the arguments of `losses`; gradients are left in the leaves.

        The gradient of each member's mean distance goes to the leaves of `tableau`, and to x if x
        requires it. If a member has a distance that is not finite, its gradient may be so too; the
        other members' gradients do not depend on it.
        """
        while True:
            try:
                if self.recompute is None:
                    self.recompute = True  # in case that memory runs out while it is measured
                    self.recompute = self._decide(tableau, x, pairs, features, rows)
                out = x.new_empty(rows.shape).detach()
                for k, b in self.blocks(rows):
                    loss = self._forward(
                        tableau.take(k), x[k, b], pairs, features, rows[k, b], self.recompute
                    )
                    loss.sum().div(rows.shape[1]).backward()
                    out[k, b] = loss.detach().to(out)
                return out
            except RuntimeError as error:
                self._halve(error, rows)
                for leaf in (tableau.evals, tableau.state, tableau.outputs, x):
                    leaf.grad = None

    def _forward(
        self, tableau, x, pairs: Pairs, features: list[Tensor], rows: Tensor, recompute: bool
    ) -> Tensor:
        flat = rows.flatten()
        condition = map_condition(lambda c: c[flat.to(c.device)], pairs.condition)
        x_0 = sample(self.denoiser, tableau, initial_state(self.denoiser, x), condition, recompute)
        images = x_0.flatten(0, 1)
        decode = lambda z: self.distance.features(self.denoiser.decode(z))
        made = checkpoint(decode, images, use_reentrant=False) if recompute else decode(images)
        self.network_evals += len(flat) * tableau.nfe
        return self.distance.between(made, [f[flat.to(f.device)] for f in features]).view(
            rows.shape
        )

    def blocks(self, rows: Tensor) -> Iterator[tuple[slice, slice]]:
        """Slices of members and of positions that go through the network together.

        Samples are split first, and members only after that.
        """
        K, b = rows.shape
        members, samples = min(K, self.most), max(1, self.most // K)
        for k in range(0, K, members):
            for i in range(0, b, samples):
                yield slice(k, k + members), slice(i, i + samples)

    def _halve(self, error: RuntimeError, rows: Tensor) -> None:
        """Halve the rows of one call after memory ran out.

        Raises any other error again, and InputError if a single sample does not fit.
        """
        if not out_of_memory(error):
            raise error
        before = min(self.most, rows.numel())
        if before < 2 and self.free_to_choose and not self.recompute:
            self.recompute = True
            log.warning("out of memory with one sample: its activations are recomputed")
            return
        if before < 2:
            raise InputError(
                f"one sample does not fit into memory ({str(error).splitlines()[0]}); use a "
                "smaller model dtype, learn.checkpointing: always, or a device with more memory"
            ) from error
        self.most = before // 2
        torch.cuda.empty_cache()
        log.warning("out of memory with %d samples at once: going on with %d", before, self.most)

    def _decide(
        self, tableau: Tableau, x: Tensor, pairs: Pairs, features: list[Tensor], rows: Tensor
    ) -> bool:
        """Return True if the activations of a whole step would not fit into the free memory.

        One sample's activations are measured and multiplied. If not even one evaluation of all rows
        fits, the rows are split into smaller calls.
        """
        free, spent = SAFE * free_memory(x.device), self.network_evals
        one = Tableau(tableau.evals[:1, :1], tableau.state[:1, :2], tableau.outputs[:1, :2, :1])

        def kept(count: int) -> int:
            """Bytes kept to differentiate one evaluation of `count` samples, weights included."""
            sizes: dict[int, int] = {}

            def pack(saved: Tensor) -> Tensor:
                sizes[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
                return saved.detach()  # a node that keeps its own output is never freed

            same = torch.zeros(1, count, dtype=torch.long, device=rows.device)
            with (
                torch.enable_grad(),
                torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved),
            ):
                self._forward(one, x[:1, same[0]], pairs, features, rows[:1, same[0]], False)
            return sum(sizes.values())

        each = kept(2) - kept(1)
        self.network_evals = spent
        needed = each * tableau.nfe * rows.numel()
        recompute = needed > free
        if recompute:
            self.most = max(1, min(self.most, int(free // max(each, 1))))
        log.log(
            logging.WARNING if recompute else logging.INFO,
            "activations of a step: %.2f GiB at most, %.2f GiB free: %s%s",
            needed / 2**30, free / 2**30, "recomputed" if recompute else "kept",
            f", {self.most} samples at once" if self.most < rows.numel() else "",
        )  # fmt: skip
        return recompute


def clipped(gradient: Tensor | None, most: float) -> Tensor:
    """Each member's gradient [K, …], scaled to a norm of at most `most`.

    Entries that are not finite become zero.
    """
    assert gradient is not None
    gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
    norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
    return gradient * (most / norm).clamp_max(1.0).view(-1, *[1] * (gradient.ndim - 1))

"""Checks of a network before anything is learned for it.

A schedule is learned by gradients through the network D(x, t), so D must have

    a gradient with respect to x     no `no_grad`, `detach`, NumPy or ONNX on the way
    a gradient with respect to t     no `t.long()`; without it network times cannot be learned
    equal values in two calls        no dropout: evaluation mode
    samples that are independent     no batch statistics: evaluation mode
    finite values of x's shape and dtype

`probe` calls the network at log-SNR 0 and compares its gradients with differences of its values.
Large networks are called once, on two equal samples, and their graph is searched for x and t
instead; nothing is kept for a backward pass then. If memory is too small for nine samples, smaller
networks are probed in this way too. The largest are not called on a CPU, where one call takes
longer than loading them. Networks without data ("meta") are never called.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core.denoiser import Condition, Denoiser, map_condition, network_output
from ..core.errors import InputError
from ..core.memory import out_of_memory
from ..core.noise import NoiseSchedule
from .inside import (
    device_of,
    direction,
    dtype_of,
    gradient_of,
    has_gradient,
    network_denoiser,
    parameters_of,
    reached,
    tensors_of,
    uncompiled,
)

if TYPE_CHECKING:
    from .loaded import Model

log = logging.getLogger("ld3_dist")

LARGE = 100_000_000
"""Networks of more parameters are called once, without a backward pass."""

LARGEST_ON_CPU = 1_000_000_000
"""Networks of more parameters are not called on a CPU."""

STEP_X, STEP_T = 1e-2, 2e-2
"""Steps of the differences, relative to the size of x and to t.

The second is long because some networks round their time to a thousand steps. Over several such
steps, the staircase has the slope of its trend.
"""

TOLERANCE = {torch.float64: 1e-5, torch.float32: 5e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Relative difference of values that counts as equal, by the dtype of the network."""

COMPARED = 128
"""Numbers that are compared between two calls, at least; smaller samples are copied."""

CONVERGED, WRONG = 0.15, 0.1
"""Two relative limits.

If the differences over one step and over two agree within CONVERGED, they are taken as the
derivative. A gradient that is off from it by more than WRONG is a wrong one.
Over a bend both differences are off by about as much as they differ, so twice that is allowed too.
"""


@dataclass(frozen=True)
class Probe:
    """The findings of calling a network.

    called: False if it was not called; all else is then taken for granted.
    time_gradient: False if the output has no gradient with respect to time.
    """

    called: bool
    time_gradient: bool = True


def check_denoiser(denoiser: object, name: str) -> None:
    """Raise InputError for an object that is no Denoiser."""
    if not isinstance(denoiser, Denoiser) or not callable(denoiser):
        missing = [
            part
            for part in ("noise", "shape", "__call__", "decode")
            if not hasattr(denoiser, part) or (part == "__call__" and not callable(denoiser))
        ]
        raise InputError(
            f"model {name!r}: got {type(denoiser).__name__}, which lacks {', '.join(missing)}; "
            "put your network into ld3_dist.core.denoiser.NetworkDenoiser"
        )
    if not isinstance(denoiser.noise, NoiseSchedule):
        raise InputError(
            f"model {name!r}: noise is {type(denoiser.noise).__name__}, not a ld3_dist.core.noise "
            f"schedule"
        )


def decoded_shape(denoiser: Denoiser, name: str) -> tuple[int, ...]:
    """[C, H, W] of a decoded sample, found by decoding zeros; InputError if that fails."""
    zeros = torch.zeros(1, *denoiser.shape, device=device_of(denoiser))
    try:
        with torch.no_grad():
            return tuple(denoiser.decode(zeros).shape[1:])
    except (Exception, SystemExit) as error:  # it is somebody else's code: anything may come
        raise InputError(
            f"model {name!r}: decode fails on zeros {tuple(zeros.shape)} "
            f"({type(error).__name__}: {error}); repair decode, or give image_shape"
        ) from error


def probe(model: Model, device: torch.device | str | None = None) -> Probe:
    """Call a model's network and see that schedules can be learned for it.

    Args:
        device: of the network, if it has no parameters that tell.

    A missing gradient with respect to t is a warning; the Probe says so. Every other failure is an
    InputError that names the property and the remedy.
    """
    return _Trial(model, device).run()


@dataclass(frozen=True)
class _Call:
    """One call of a denoiser, with the graph that it leaves.

    x, t: the inputs, which are leaves.
    out: D(x, t).
    net: (output, input x, input time, condition) of the network inside a NetworkDenoiser.
    """

    x: Tensor
    t: Tensor
    out: Tensor
    net: tuple[Tensor, Tensor, Tensor, Condition] | None


class _Trial:
    """The calls of one probe, on one model."""

    def __init__(self, model: Model, device: torch.device | str | None) -> None:
        self.denoiser, self.name = model.denoiser, model.id
        self.inner = network_denoiser(model.denoiser)
        self.draw = model.draw_condition
        self.device = torch.device(device) if device is not None else device_of(model.denoiser)
        self.dtype = dtype_of(model.denoiser)

    def run(self) -> Probe:
        """The findings, by the checks that the network's size allows."""
        count = parameters_of(self.denoiser)
        known = isinstance(self.denoiser, nn.Module)
        on_meta = known and any(p.is_meta for p in tensors_of(self.denoiser))
        if on_meta or (count > LARGEST_ON_CPU and self.device.type == "cpu"):
            return Probe(called=False)
        devices = [self.device] if self.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=devices),
            uncompiled(self.denoiser),
            torch.enable_grad(),
        ):
            for look in [self._light] if count > LARGE else [self._full, self._light]:
                try:
                    return look()
                except RuntimeError as error:
                    if not out_of_memory(error):
                        raise
        return Probe(called=False)  # sampling goes on with fewer samples at once, or reports it

    def _light(self) -> Probe:
        """One call on the same sample twice; its graph is searched, and nothing is kept for it."""
        x, t = self._inputs()
        condition = self._condition([0, 0])
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, lambda kept: kept):
            call = self._call(x[:1].repeat(2, *[1] * (x.ndim - 1)), t[:1].repeat(2), condition)
        if self._far(call.out[0], call.out[1]):
            raise self._unequal()
        if call.net is None:
            seen = reached(call.out, [call.x, call.t])
        else:
            seen = reached(call.net[0], call.net[1:3])
        if not seen[0]:
            raise self._no_gradient()
        return self._with_time(seen[1])

    def _full(self) -> Probe:
        """A call on two samples with a backward pass, and one on the first with its differences."""
        x, t = self._inputs()
        generator = torch.Generator().manual_seed(1)
        v = torch.randn(x[0].shape, generator=generator).to(x)
        h, d = STEP_X * float(x[0].square().mean().sqrt()), STEP_T * float(t[0])
        steps = [(h, 0.0), (-h, 0.0), (2 * h, 0.0), (-2 * h, 0.0)]
        steps += [(0.0, d), (0.0, -d), (0.0, 2 * d), (0.0, -2 * d), (0.0, 0.0)]
        call = self._call(x, t, self._condition([0, 1]))
        with torch.no_grad():
            near = self._values(
                torch.stack([x[0] + a * v for a, _ in steps]),
                torch.stack([t[0] + b for _, b in steps]),
                self._condition([0] * len(steps)),
            )
        self._repeat(call)
        if self._far(near[-1], call.out[0]):
            with torch.no_grad():
                again = self._values(x, t, self._condition([0, 1]))
            raise self._dependent() if not self._far(again, call.out) else self._unequal()
        slopes = [
            (near[i] - near[i + 1]) / (2 * s) for i, s in ((0, h), (2, 2 * h), (4, d), (6, 2 * d))
        ]
        self._check_x(call, slopes[:2], v)
        return self._with_time(self._has_time(call, slopes[2:]))

    def _repeat(self, call: _Call) -> None:
        """Raise InputError if a call on copies of the samples gives other values.

        On few numbers, rare noise (dropout of a tenth) may just not show."""
        copies = COMPARED // call.x.numel()
        if not copies:
            return
        x, t, out = (
            whole.detach().repeat(copies, *[1] * (whole.ndim - 1))
            for whole in (call.x, call.t, call.out)
        )
        with torch.no_grad():
            again = self._values(x, t, self._condition([0, 1] * copies))
        if self._far(again, out):
            raise self._unequal()

    def _check_x(self, call: _Call, slopes: list[Tensor], v: Tensor) -> None:
        """Raise InputError unless there is a gradient with respect to x, and the right one."""
        if call.net is not None:
            out, inputs, time, _ = call.net
            if not has_gradient(out, inputs) and self._net_moves(inputs + 0.1, time, call.net):
                raise self._no_gradient()
        gradient = gradient_of(call.out[0], call.x, direction(slopes[0]))
        if self._wrong(None if gradient is None else float((gradient[0] * v).sum()), slopes):
            raise self._no_gradient()

    def _has_time(self, call: _Call, slopes: list[Tensor]) -> bool:
        """True if there is a gradient with respect to t, and the right one."""
        if call.net is not None:
            out, inputs, time, _ = call.net
            other = (time * 0.5).to(time.dtype)
            if not has_gradient(out, time) and self._net_moves(inputs, other, call.net):
                return False
        gradient = gradient_of(call.out[0], call.t, direction(slopes[0]))
        return not self._wrong(None if gradient is None else float(gradient[0]), slopes)

    def _wrong(self, found: float | None, slopes: list[Tensor]) -> bool:
        """True if differences have converged to another derivative than the gradient."""
        size = float(slopes[0].norm())
        if not size > 1e-4:
            return False
        if found is None:
            return True
        if self.dtype not in (torch.float32, torch.float64):
            return False  # differences of half-precision values are noise
        gap = float((slopes[0] - slopes[1]).norm())
        if gap > CONVERGED * size:
            return False
        return abs(found - size) > WRONG * size + 2 * gap

    def _net_moves(
        self, inputs: Tensor, time: Tensor, net: tuple[Tensor, Tensor, Tensor, Condition]
    ) -> bool:
        """True if the network inside gives another output for other inputs."""
        assert self.inner is not None
        with torch.no_grad():
            other = network_output(self.inner.net(inputs, time, net[3]), inputs)
        return self._far(other, net[0], 1e-3)

    def _inputs(self) -> tuple[Tensor, Tensor]:
        """Two samples x [2, *shape] of unit data at lambda = 0 or as near as t goes, and t [2]."""
        noise = self.denoiser.noise
        t = float(noise.inverse(torch.zeros((), dtype=torch.float64)))
        t = min(max(t, noise.t_min), noise.t_max)
        time = torch.tensor([t, t], dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)
        shape = tuple(self.denoiser.shape)
        data, unit = (torch.randn(2, *shape, generator=generator) for _ in range(2))
        at = time[0]
        x = float(noise.alpha(at)) * 0.5 * data + float(noise.sigma(at)) * unit
        return x.to(self.device), time.float().to(self.device)

    def _condition(self, indices: list[int]) -> Condition:
        return map_condition(lambda c: c.to(self.device), self.draw(0, indices))

    def _call(self, x: Tensor, t: Tensor, condition: Condition) -> _Call:
        """A call with x and t as leaves."""
        x, t = x.detach().requires_grad_(), t.detach().requires_grad_()
        caught: list[tuple[Tensor, Tensor, Tensor, Condition]] = []
        if self.inner is None:
            return _Call(x, t, self._values(x, t, condition), None)

        def catch(net: nn.Module, given: tuple[Any, ...], out: Any) -> None:
            caught.append((network_output(out, given[0]), given[0], given[1], given[2]))

        hook = self.inner.net.register_forward_hook(catch)
        try:
            out = self._values(x, t, condition)
        finally:
            hook.remove()
        return _Call(x, t, out, caught[0] if caught else None)

    def _values(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """D(x, t), checked for shape, dtype and finite numbers."""
        try:
            out = self.denoiser(x, t, condition)
        except InputError as error:
            raise self._error(str(error)) from error
        except (Exception, SystemExit) as error:  # it is somebody else's code: anything may come
            if out_of_memory(error):
                raise
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            raise self._error(
                f"a call on x {tuple(x.shape)}, t {tuple(t.shape)} fails ({text}); a denoiser is "
                "called as D(x, t, condition), a network inside a NetworkDenoiser as "
                "net(x, time [B], condition)"
            ) from error
        if not isinstance(out, Tensor):
            raise self._error(f"returned {type(out).__name__}; it must return a tensor like x")
        if out.shape != x.shape:
            raise self._error(
                f"for x {tuple(x.shape)} it returned {tuple(out.shape)}; shapes must be equal"
            )
        if out.dtype != x.dtype:
            raise self._error(f"for x of {x.dtype} it returned {out.dtype}; return out.to(x.dtype)")
        if not torch.isfinite(out.detach()).all():
            raise self._error(
                f"returned values that are not finite at t = {float(t.detach()[0]):g}; check its "
                "weights and its noise schedule"
            )
        return out

    def _far(self, a: Tensor, b: Tensor, tolerance: float | None = None) -> bool:
        a, b = a.detach(), b.detach()
        limit = TOLERANCE.get(self.dtype, 5e-3) if tolerance is None else tolerance
        return float((a - b).abs().max()) > limit * float(b.abs().max().clamp_min(1e-6))

    def _with_time(self, found: bool) -> Probe:
        if not found:
            log.warning(
                "model %r has no gradient with respect to its time (is it rounded, or made an "
                "integer?): network times stay at those of the grid",
                self.name,
            )
        return Probe(called=True, time_gradient=found)

    def _unequal(self) -> InputError:
        return self._error(
            f"two calls on the same samples give different values{self._mode()}; take all "
            "randomness out of it (dropout, noise)"
        )

    def _dependent(self) -> InputError:
        return self._error(
            f"the value of a sample depends on the others of its batch{self._mode()}; take "
            "statistics of the batch out of it (batch norm)"
        )

    def _no_gradient(self) -> InputError:
        return self._error(
            "its output has no gradient with respect to x, or a wrong one, so nothing can be "
            "learned for it; remove no_grad, inference_mode, detach, NumPy and ONNX on the way"
        )

    def _mode(self) -> str:
        training = isinstance(self.denoiser, nn.Module) and any(
            part.training for part in self.denoiser.modules() if part is not self.denoiser
        )
        return " (parts of it are in training mode: call .eval())" if training else ""

    def _error(self, text: str) -> InputError:
        return InputError(f"model {self.name!r}: {text}")

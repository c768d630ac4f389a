"""Scores of two schedules, prompt by prompt.

    d_i     score of sample i with one schedule, minus that with the other: same noise, same prompt
    mean    of d_i over all n samples
    se^2 = P / (P - 1) sum_p (sum_(i of prompt p) (d_i - mean))^2 / n^2

Samples of a prompt resemble each other, so P prompts count as P draws, however many samples each
has: the interval is Student's with P - 1 degrees of freedom (Cameron and Miller 2015, section
II.B). Where there is one prompt, or none, every sample is a draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..paired import NOTHING, OUTSIDE, Estimate


def difference(x: Tensor, y: Tensor, prompts: Sequence[str] | None = None) -> Estimate:
    """The mean of x - y over samples [M], with its 95 % interval over prompts."""
    from scipy.stats import t

    d = (x.double() - y.double()).numpy()
    groups = np.arange(len(d))
    if prompts is not None and len(set(prompts)) > 1:
        groups = np.unique(np.array(prompts), return_inverse=True)[1]
    count, mean = int(groups.max()) + 1, float(d.mean())
    if count < 2:
        return NOTHING._replace(value=mean)
    totals = np.bincount(groups, d - mean)
    error = math.sqrt(count / (count - 1) * float(totals @ totals)) / len(d)
    width = float(t.ppf(1 - OUTSIDE / 2, count - 1)) * error
    return Estimate(mean, mean - width, mean + width)

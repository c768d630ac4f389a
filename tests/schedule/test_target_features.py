"""Features of targets are made once, and distances are the same numbers as without that."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from ld3_dist.core.distance import make_distance
from ld3_dist.schedule.target_features import TargetFeatures


class Counting:
    """An extractor that counts the samples it sees."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, x: Tensor) -> list[Tensor]:
        self.seen += len(x)
        return [x.flatten(1).cos(), x.square().flatten(1)]


def images(seed: int, count: int = 10) -> Tensor:
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("name", ["l1", "l2", "feature", "l2+0.1*feature", "resized:6:feature"])
@pytest.mark.parametrize("limit", [2**29, 0])
def test_distances_are_those_of_the_distance_itself(name: str, limit: int) -> None:
    distance, known, target = make_distance(name, Counting()), TargetFeatures(limit), images(0)
    for seed in (1, 2, 1):
        found = known.distances(distance, images(seed), target, 4)
        assert found.dtype == torch.float64
        alone = [distance(images(seed)[i : i + 4], target[i : i + 4]) for i in (0, 4, 8)]
        assert torch.equal(found, torch.cat(alone).double())


def test_features_of_targets_are_made_once() -> None:
    counting, known, target = Counting(), TargetFeatures(), images(0)
    distance = make_distance("l2+0.1*feature", counting)
    for seed in range(1, 6):
        known.distances(distance, images(seed), target, 4)
    assert counting.seen == 10 + 5 * 10


def test_no_more_is_kept_than_the_limit_allows() -> None:
    counting = Counting()
    distance, targets = make_distance("feature", counting), [images(0), images(1)]
    of_one = 10 * 2 * 16 * 4  # two layers of 16 numbers of 4 bytes
    for limit, seen in ((of_one - 1, 80), (of_one, 60), (2 * of_one, 60), (2 * of_one - 1, 60)):
        known, counting.seen = TargetFeatures(limit), 0
        for target in (targets[0], targets[0], targets[1], targets[1]):
            known.distances(distance, images(2), target, 4)
        assert counting.seen == seen, limit
    known, counting.seen = TargetFeatures(of_one), 0
    for target in (*targets, *targets):  # each pushes out the other
        known.distances(distance, images(2), target, 4)
    assert counting.seen == 80


def test_a_new_target_is_never_taken_for_one_that_is_gone() -> None:
    distance, known, made = make_distance("feature", Counting()), TargetFeatures(), images(99)
    for seed in range(20):  # the allocator gives the same places again
        target = images(seed)
        found = known.distances(distance, made, target, 10)
        assert torch.equal(found, distance(made, target).double())
        del target
        gc.collect()


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        TargetFeatures().distances(make_distance("l2"), images(0), images(0, 9), 4)

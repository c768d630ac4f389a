"""Resources of a cluster that are neither CPUs nor GPUs: in YAML, and per trial and per actor."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray import tune
from ray.tune import RunConfig, TuneConfig, Tuner
from tiny_sweep import changed

from ld3_dist.cluster.ray import connect as joining
from ld3_dist.cluster.ray.connect import SETTINGS, sizes_of
from ld3_dist.cluster.ray.liveness import room_for
from ld3_dist.cluster.ray.pool import Done, Pool, Task
from ld3_dist.core.errors import InputError
from ld3_dist.experiment import parse_experiment


def node(**resources: float) -> dict[str, Any]:
    return {"Alive": True, "Resources": {name.replace("__", ":"): n for name, n in
                                         resources.items()}}  # fmt: skip


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"trial": {"GPU": 1}}, r"resources\.trial.*'GPU' has a key of its own.*gpus_per_trial"),
        ({"actor": {"num_cpus": 1}}, r"resources\.actor.*'num_cpus' has a key of its own"),
        ({"trial": {"memory": 1}}, r"'memory' is Ray's own"),
        ({"trial": {"node:10.0.0.1": 1}}, r"'node:10\.0\.0\.1' is Ray's own"),
        ({"trial": {"license": 0}}, r"'license' = 0: must be positive"),
        ({"trial": {"license": True}}, r"'license' = True: give an amount"),
        ({"trial": {"license": "many"}}, r"'license' = 'many': give an amount"),
        ({"trial": {"license": float("nan")}}, r"'license' = nan: must be positive"),
        ({"trial": {"license": 1.5}}, r"'license' = 1\.5: above 1 it must be a whole number"),
        ({"trial": {"license": 1e-9}}, r"ten-thousandths"),
        ({"trial": {"accelerator_type": 1}}, r"'accelerator_type' = 1: give a kind"),
        ({"trial": {"a b": 1}}, r"'a b': a resource's name has letters"),
        ({"trial": 3}, r"resources\.trial"),
    ],
)
def test_what_ray_could_not_give_is_refused_by_its_key(
    resources: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        parse_experiment(changed(resources=resources))


def test_a_kind_of_accelerator_is_a_resource_of_ray() -> None:
    experiment = parse_experiment(changed(resources={"trial": {"accelerator_type": "A100"}}))
    assert experiment.resources.trial == {"accelerator_type:A100": 0.001}
    again = parse_experiment(experiment.model_dump(mode="json"))
    assert again.resources == experiment.resources


def test_trials_go_only_where_a_resource_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kinds of node: those with the resource count, each for as many trials as it has."""
    nodes = [node(CPU=8, license=3), node(CPU=8), node(CPU=1, license=5)]
    monkeypatch.setattr(joining.ray, "nodes", lambda: nodes)
    resources = {"cpus_per_trial": 1, "cpus_per_actor": 1, "trial": {"license": 1}}
    resources["concurrent_trials"] = 100
    sizes = sizes_of(parse_experiment(changed(resources=resources)))
    assert sizes.trials == 3 + 1
    assert sizes.trial == {"cpu": 1, "gpu": 0, "license": 1}
    assert sizes.actor == {"cpu": 1, "gpu": 0}
    assert room_for(sizes.trial)
    nodes[0]["Resources"]["license"] = nodes[2]["Resources"]["license"] = 0.5
    assert not room_for(sizes.trial)


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"trial": {"license": 4}}, r"resources\.trial: license = 4: no node has more than 3"),
        ({"actor": {"lisense": 1}}, r"resources\.actor: lisense.*no node.*offers it.*license"),
        ({"cpus_per_trial": 8, "trial": {"license": 1}}, r"at the same time, license"),
    ],
)
def test_more_than_a_node_has_is_refused(
    monkeypatch: pytest.MonkeyPatch, resources: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(joining.ray, "nodes", lambda: [node(CPU=4, license=3), node(CPU=8)])
    with pytest.raises(InputError, match=message):
        sizes_of(parse_experiment(changed(resources=resources)))


@pytest.fixture(scope="module")
def a_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        ray.init(
            "local",
            num_cpus=2,
            resources={"license": 1, "accelerator_type:A100": 1},
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=100_000_000,
        )
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
        ray.shutdown()


def held() -> dict[str, float]:
    """What this process holds of the cluster's resources."""
    return ray.get_runtime_context().get_assigned_resources()


@pytest.mark.cluster
def test_actors_hold_what_was_asked(a_ray: None) -> None:
    with Pool(1, 0.5, 0, 0, 60, custom={"license": 1}) as pool:
        pool.add([Task("teach", "a", held, ())])
        (done,) = pool.run()
    assert isinstance(done, Done)
    assert done.result["license"] == 1


def trainable(config: dict[str, Any]) -> None:
    used = ray.cluster_resources()["license"] - ray.available_resources().get("license", 0)
    tune.report({"used": used})


@pytest.mark.cluster
def test_trials_hold_what_was_asked(a_ray: None, tmp_path: Any) -> None:
    """As the search starts its trials: sizes to Tune's own resources."""
    experiment = parse_experiment(
        changed(resources={"trial": {"license": 1, "accelerator_type": "A100"}})
    )
    sizes = sizes_of(experiment)
    assert sizes.trials == 1
    function = tune.with_resources(trainable, {k: v for k, v in sizes.trial.items() if v})
    run = RunConfig(storage_path=str(tmp_path), verbose=0)
    (result,) = Tuner(function, tune_config=TuneConfig(num_samples=1), run_config=run).fit()
    assert result.error is None
    assert result.metrics is not None
    assert result.metrics["used"] == 1

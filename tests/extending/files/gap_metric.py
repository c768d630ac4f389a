"""A metric: of the samples' features and a reference, as one number or as several by name."""

from ld3_dist.metrics.scores import NotMeasured


def gap(samples, reference):
    """How far means and variances of the features are from the reference's."""
    if reference is None:
        raise NotMeasured("there is no reference")
    features = samples.features.double()
    mean = (features.mean(0) - reference.moments.mean).norm()
    variance = (features.var(0) - reference.moments.covariance.diagonal()).norm()
    return {"mean": float(mean), "variance": float(variance)}

"""A figure: of the results of one model, as `load_results` gives them."""

from matplotlib.figure import Figure

from ld3_dist.report.figures import Plot


def smallest_gaps(data):
    """Smallest gap of the knots against held-out loss; None where there is nothing to show."""
    learned = data.frame[data.frame["kind"] == "learned"]
    if learned.empty:
        return None
    figure = Figure(figsize=(5, 3))
    axes = figure.subplots()
    axes.loglog(learned["min_gap"], learned["valid_loss"], "o")
    axes.set(xlabel="smallest gap", ylabel="held-out loss")
    alt = f"{len(learned)} learned schedules as points"
    return Plot(data.name("smallest-gaps"), "Smallest gaps", "Every learned schedule.", alt, figure)

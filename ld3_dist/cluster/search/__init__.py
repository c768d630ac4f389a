"""The search of a sweep: a Ray Tune run with an Optuna study per cell."""

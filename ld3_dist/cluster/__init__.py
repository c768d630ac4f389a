"""Sweeps on Ray: teacher and evaluation actors, Tune's search with Optuna's studies. Nothing else
imports either.
"""

"""Schedules, denoisers, solvers, sampling and learning: what a machine with PyTorch alone can run."""

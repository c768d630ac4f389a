"""Noise schedules, denoisers, solvers, sampling and learning; PyTorch is all this room needs."""

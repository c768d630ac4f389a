"""One cell on plain values, from starts to the schedule file and its export.

Starts, sampling, teaching, learning and evaluating each have a module.
"""

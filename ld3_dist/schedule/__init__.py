"""One cell on plain values: starts, sampling, teaching, learning, evaluating, the schedule file and
its export.
"""

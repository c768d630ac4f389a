"""Quality of samples, from features alone: Fréchet and kernel distance, precision, recall, density,
coverage.
"""

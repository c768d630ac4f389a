"""EDM checkpoints (Karras et al. 2022).

They are read without executing them, and run in networks of this package.
"""

"""EDM checkpoints (Karras et al. 2022): read without executing them, and run in networks of our
own.
"""

"""diffusers pipelines as denoisers.

They are pixel or latent, class- or text-conditional, diffusion or flow models.
"""

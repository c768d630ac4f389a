"""diffusers pipelines, pixel and latent, class- and text-conditional, diffusion and flow, as
denoisers.
"""

"""Distributions whose denoiser is known exactly."""

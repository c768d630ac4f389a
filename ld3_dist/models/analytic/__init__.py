"""Models whose denoiser is known exactly: mixtures of Gaussians, and their names."""

"""Models from a user's own Python file or module."""

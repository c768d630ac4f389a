"""Schedules in other people's programs."""

"""Schedules in other programs."""

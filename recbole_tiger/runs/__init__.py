"""Runs from settings to a result: one, several side by side, a sweep, recommendations."""

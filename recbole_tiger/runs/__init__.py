"""Runs from settings to a result: one run, a comparison, a sweep, recommendations."""

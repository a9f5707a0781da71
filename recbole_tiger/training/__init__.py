"""Batches, the training loop, checkpoints and evaluation."""

"""The models: tensors of codes -> probabilities of items."""

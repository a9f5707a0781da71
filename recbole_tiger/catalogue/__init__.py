"""Item text -> embeddings -> codes: the catalogue that models recommend from, and the datasets to download."""

"""How much of the embeddings the codes keep."""

import torch
import torch.nn.functional as F

NEIGHBOURS = 10
# Items whose neighbours are looked up where the catalogue has more.
QUERIES = 20_000
# Similarities, or numbers of embeddings, that are held at once.
NUMBERS = 2**26


def neighbour_shares(codes, embeddings, seed):
    """Share of the nearest neighbours by cosine that share the first code, and the first two, with an item.

    Args:
        codes: int tensor [n, levels]. embeddings: float tensor [n, dim] on the same device.
        seed: draws :data:`QUERIES` items whose neighbours are looked up, where there are more.

    Returns:
        list of floats, the mean over items for the first code and, where there are two levels or more, for the first two.
        Neighbours are the nearest :data:`NEIGHBOURS` other items, or all where there are fewer.
    """
    directions = F.normalize(embeddings, dim=1)
    queries = torch.arange(len(codes), device=codes.device)
    if len(codes) > QUERIES:
        generator = torch.Generator().manual_seed(seed)
        queries = torch.randperm(len(codes), generator=generator)[:QUERIES].to(codes.device)
    count = min(NEIGHBOURS, len(codes) - 1)
    shared = torch.zeros(min(2, codes.shape[1]), device=codes.device)
    for rows in queries.split(max(1, NUMBERS // len(codes))):
        similarity = directions[rows] @ directions.T
        similarity[torch.arange(len(rows), device=rows.device), rows] = -torch.inf  # an item is no neighbour of its own
        nearest = similarity.topk(count, dim=1).indices
        same = codes[rows, None, :2] == codes[nearest, :2]
        shared += same.cumprod(dim=2).sum(dim=(0, 1))
    return (shared / max(1, len(queries) * count)).tolist()


def reconstruction_error(quantizer, codes, embeddings):
    """Squared error of the embeddings that codes give back, relative to that of the mean embedding: 0 is perfect.

    Args:
        quantizer: a fitted one that reconstructs.
        codes: int64 tensor [n, levels]. embeddings: float tensor [n, dim] on the same device.
    """
    rows = max(1, NUMBERS // embeddings.shape[1])
    error = sum(
        (part - quantizer.reconstruct(of_part)).pow(2).sum().item()
        for part, of_part in zip(embeddings.split(rows), codes.split(rows), strict=True)
    )
    return error / (embeddings - embeddings.mean(dim=0)).pow(2).sum().item()

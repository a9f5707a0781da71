"""Measures of how much of the embeddings the codes keep."""

import torch
import torch.nn.functional as F

NEIGHBOURS = 10
# Number of items whose neighbours are looked up if the catalogue is larger.
QUERIES = 20_000
# Number of similarities, or of elements of embeddings, held in memory at once.
NUMBERS = 2**26


def neighbour_shares(codes, embeddings, seed):
    """Mean share of an item's nearest neighbours by cosine that share its first code, and its first two codes.

    Args:
        codes: int tensor [n, levels]. embeddings: float tensor [n, dim] on the same device.
        seed: for drawing :data:`QUERIES` items if there are more.

    Returns:
        list of floats, for the first code and, with two levels or more, for the first two. Neighbours are the nearest
        :data:`NEIGHBOURS` other items, or all others if there are fewer.
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
        similarity[torch.arange(len(rows), device=rows.device), rows] = -torch.inf  # an item is not its own neighbour
        nearest = similarity.topk(count, dim=1).indices
        same = codes[rows, None, :2] == codes[nearest, :2]
        shared += same.cumprod(dim=2).sum(dim=(0, 1))
    return (shared / max(1, len(queries) * count)).tolist()


def reconstruction_error(quantizer, codes, embeddings):
    """Squared error of the reconstructed embeddings, relative to that of the mean embedding: 0 is perfect.

    Args:
        quantizer: fitted, with ``reconstruct``.
        codes: int64 tensor [n, levels]. embeddings: float tensor [n, dim] on the same device.
    """
    rows = max(1, NUMBERS // embeddings.shape[1])
    error = sum(
        (part - quantizer.reconstruct(part_codes)).pow(2).sum().item()
        for part, part_codes in zip(embeddings.split(rows), codes.split(rows), strict=True)
    )
    return error / (embeddings - embeddings.mean(dim=0)).pow(2).sum().item()

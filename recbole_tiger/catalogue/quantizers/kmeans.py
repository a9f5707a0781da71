"""Lloyd's k-means with k-means++ seeding, in tensors."""

import torch

# Number of rows whose distances are computed at once; bounds memory for large catalogues.
CHUNK = 65536
# Number of rows whose differences to one centroid stay in the CPU cache.
CACHED = 2048


def assign(x, centroids):
    """Nearest centroid of each row.

    Args:
        x: float tensor [n, dim]. centroids: [k, dim].

    Returns:
        int64 tensor [n] of indices, float tensor [n] of squared distances.
    """
    norms = centroids.pow(2).sum(1)
    labels, distances = [], []
    for part in x.split(CHUNK):
        # |x|^2 is the same for all centroids, so it is added after the minimum.
        smallest, index = torch.addmm(norms, part, centroids.T, alpha=-2).min(dim=1)
        labels.append(index)
        distances.append((smallest + part.pow(2).sum(1)).clamp_(min=0))
    return torch.cat(labels), torch.cat(distances)


def means(x, labels, k):
    """Mean and number of the rows of each label.

    Returns:
        float tensor [k, dim] (0 for a label without rows), float tensor [k].
    """
    counts = torch.zeros(k, device=x.device).index_add_(0, labels, torch.ones(len(x), device=x.device))
    # Unlike index_add_, this sums in the same order in every run on a GPU, so the rounding is reproducible.
    sums = torch.zeros(k, x.shape[1], device=x.device).index_put_((labels,), x, accumulate=True)
    return sums / counts.clamp(min=1).unsqueeze(1), counts


def seed_centroids(x, k, generator):
    """k-means++: draws each next centroid in proportion to the squared distance to the nearest centroid so far."""

    def distances(index):
        row = x[index]
        return torch.cat([(part - row).pow(2).sum(1) for part in x.split(CACHED)])

    first = torch.randint(len(x), (1,), generator=generator)
    chosen = [first]
    nearest = distances(first.to(x.device))
    for _ in range(k - 1):
        cumulative = nearest.double().cumsum(0)
        draw = torch.rand(1, generator=generator, dtype=torch.float64).to(x.device) * cumulative[-1]
        index = torch.searchsorted(cumulative, draw).clamp(max=len(x) - 1)
        chosen.append(index.cpu())
        nearest = torch.minimum(nearest, distances(index))
    return x[torch.cat(chosen).to(x.device)].clone()


def lloyd(x, centroids, iterations):
    """Lloyd's algorithm: repeatedly move each centroid to the mean of its nearest rows.

    A centroid that loses all its rows moves to a row far from its own centroid, so no code stays unused while rows differ.

    Args:
        x: float tensor [n, dim]. centroids: [k, dim].
        iterations: maximal number of steps; stops earlier if no label changes.

    Returns:
        float tensor [k, dim].
    """
    k, labels = len(centroids), None
    for _ in range(iterations):
        new_labels, distances = assign(x, centroids)
        if labels is not None and torch.equal(new_labels, labels):
            break
        labels = new_labels
        centroids, counts = means(x, labels, k)
        dead = (counts == 0).nonzero().flatten()
        if len(dead):
            centroids[dead] = x[distances.topk(len(dead)).indices]
    return centroids


def kmeans(x, k, *, iterations, generator, sample=None):
    """Cluster ``x``.

    Args:
        x: float tensor [n, dim]. k: number of centroids, at most n.
        iterations: as for :func:`lloyd`.
        generator: CPU random generator.
        sample: fit on this number of random rows if there are more.

    Returns:
        float tensor [k, dim].
    """
    if sample is not None and len(x) > sample:
        x = x[torch.randperm(len(x), generator=generator)[:sample].to(x.device)]
    return lloyd(x, seed_centroids(x, k, generator), iterations)

"""Shared by the benchmarks: the dimensions of the paper, and generated datasets of any size.

The datasets have clustered item embeddings, power-law popularity, and users who stay near their cluster.
"""

from pathlib import Path

import numpy as np

from recbole_tiger.settings.properties import property_file

# The dimensions of the paper.
PAPER = {name: property_file("recipe", "TIGER-paper")[name] for name in ("n_heads", "head_size", "inner_size")}
DIM, LATENT = 384, 24
WORDS = ("amber", "basil", "cedar", "dahlia", "elm", "fern", "ginger", "hazel", "iris", "juniper", "kelp", "lilac")
CHUNK = 65536


def clustered_embeddings(n_items, seed=0):
    """Unit vectors around nested centres in a space of few dimensions, similar to sentence embeddings.

    Returns:
        float32 array [n_items, 384]; item i is of cluster ``i % clusters(n_items)``.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    fine = normal(32, LATENT)[np.arange(clusters(n_items)) % 32] + 0.7 * normal(clusters(n_items), LATENT)
    projection = normal(LATENT, DIM)
    embeddings = np.empty((n_items, DIM), dtype=np.float32)
    for begin in range(0, n_items, CHUNK):
        part = np.arange(begin, min(begin + CHUNK, n_items))
        x = (fine[part % len(fine)] + 0.5 * normal(len(part), LATENT)) @ projection
        embeddings[part] = x / np.linalg.norm(x, axis=1, keepdims=True)
    return embeddings


def clusters(n_items):
    """Number of clusters of a catalogue."""
    return max(2, min(5000, n_items // 20))


def item_tokens(n_items):
    """Tokens of the items, a list."""
    return [f"i{i}" for i in range(n_items)]


def write_dataset(folder, name, n_items, n_users, n_interactions, seed=0):
    """Write ``<folder>/<name>/<name>.item`` and ``.inter``.

    Every user has at least five interactions and goes on within the cluster of the item before with probability 0.7;
    popularity falls with the square root of the rank.
    """
    rng = np.random.default_rng(seed)
    path = Path(folder) / name
    path.mkdir(parents=True)
    words = rng.integers(len(WORDS), size=(n_items, 6))
    with open(path / f"{name}.item", "w", encoding="utf-8") as stream:
        stream.write("item_id:token\ttitle:token\n")
        for i, row in enumerate(words.tolist()):
            stream.write(f"i{i}\t{' '.join(WORDS[word] for word in row)} {i}\n")

    share = rng.exponential(size=n_users)
    lengths = 5 + rng.multinomial(n_interactions - 5 * n_users, share / share.sum())
    users = np.repeat(np.arange(n_users), lengths)
    n_clusters = clusters(n_items)
    # The square of a uniform number draws item i of n with a density proportional to 1 / sqrt(i).
    anywhere = (rng.random(n_interactions) ** 2 * n_items).astype(np.int64)
    place = (rng.random(n_interactions) ** 2 * (n_items // n_clusters)).astype(np.int64)
    first = np.flatnonzero(np.append(True, users[1:] != users[:-1]))
    moves = rng.random(n_interactions) >= 0.7
    moves[first] = True
    # The cluster is that of the last item drawn from anywhere.
    last_move = np.maximum.accumulate(np.where(moves, np.arange(n_interactions), 0))
    items = np.where(moves, anywhere, place * n_clusters + anywhere[last_move] % n_clusters)
    step = np.arange(n_interactions) - np.repeat(first, lengths)
    with open(path / f"{name}.inter", "w", encoding="utf-8") as stream:
        stream.write("user_id:token\titem_id:token\ttimestamp:float\n")
        stream.writelines(
            f"u{user}\ti{item}\t{128 * time}\n"
            for user, item, time in zip(users.tolist(), items.tolist(), step.tolist(), strict=True)
        )

"""RQ-VAE: an autoencoder whose latent is residually quantized (paper section 3.1; Zeghidour et al. 2021)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from recbole_tiger.catalogue.quantizers.base import Quantizer
from recbole_tiger.catalogue.quantizers.kmeans import assign, kmeans
from recbole_tiger.errors import TigerError
from recbole_tiger.graphs import Graphs


def mean_and_scale(x):
    """Mean and standard deviation of each dimension of ``x`` [n, dim], two tensors [dim]; a constant has deviation 0."""
    spread = x.std(dim=0, correction=min(1, len(x) - 1))
    # The mean of a large constant has a rounding error, which division by a tiny deviation would blow up.
    constant = spread <= 1e-6 * x.abs().amax(dim=0)
    return x.mean(dim=0), spread.clamp(min=1e-6).masked_fill(constant, 0)


def scaled(x, mean, scale):
    """``(x - mean) / scale`` for ``x`` [n, dim], ``mean`` and ``scale`` [dim]; 0 where ``scale`` is 0."""
    return ((x - mean) / scale).masked_fill(scale == 0, 0)


def standardised(x):
    """``x`` [n, dim] with mean 0 and standard deviation 1 per dimension; 0 in a constant dimension."""
    return scaled(x, *mean_and_scale(x))


def mlp(sizes):
    """Linear maps of the given sizes with ReLU between them."""
    layers = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Network(nn.Module):
    """Encoder, codebooks [depth, size, latent], decoder."""

    def __init__(self, dim, hidden_sizes, latent_size, depth, size, beta):
        super().__init__()
        sizes = [dim, *hidden_sizes, latent_size]
        self.encoder, self.decoder = mlp(sizes), mlp(sizes[::-1])
        self.codebooks = nn.Parameter(torch.zeros(depth, size, latent_size))
        self.beta = beta

    def quantize(self, z):
        """Codes [n, depth], and a list of the residuals [n, latent] that each level quantizes."""
        residual, codes, residuals = z, [], []
        for codebook in self.codebooks:
            with torch.no_grad():
                labels, _ = assign(residual, codebook)
            codes.append(labels)
            residuals.append(residual)
            # The codebooks learn from the quantization loss only; everything else treats them as constants.
            residual = residual - codebook[labels].detach()
        return torch.stack(codes, dim=1), residuals

    def losses(self, x):
        """Reconstruction and quantization loss per item (paper section 3.1), and the codes.

        ||x - x_hat||^2, and ||sg[r] - e||^2 + beta ||r - sg[e]||^2 summed over levels; norms sum over dimensions.
        """
        z = self.encoder(x)
        codes, residuals = self.quantize(z)
        quantized, quantization = 0, 0
        for codebook, labels, residual in zip(self.codebooks, codes.unbind(1), residuals, strict=True):
            vector = codebook[labels]
            quantization = quantization + (residual.detach() - vector).pow(2).sum(1)
            quantization = quantization + self.beta * (residual - vector.detach()).pow(2).sum(1)
            quantized = quantized + vector.detach()
        straight_through = z + (quantized - z).detach()
        reconstruction = (x - self.decoder(straight_through)).pow(2).sum(1)
        return reconstruction.mean(), quantization.mean(), codes


class RQVAE(Quantizer):
    """The paper's quantizer.

    The input is standardised per dimension. The autoencoder warms up without quantization; then k-means of the residuals of
    the whole catalogue initialises the codebooks. A code that is unused for an epoch restarts at a residual of the data.

    Args:
        codebook_size, codebook_depth: number of codes per level, number of levels.
        rq_vae_hidden_sizes: widths of the encoder's hidden layers (the decoder mirrors them).
        rq_vae_latent_size: width of the latent.
        rq_vae_beta: weight of the commitment loss.
        rq_vae_steps, rq_vae_warmup_steps: total number of training steps, and how many of them run without quantization.
        rq_vae_batch_size, rq_vae_learning_rate: of AdamW.
        kmeans_iterations, kmeans_sample: for the initial codebooks, as in RQKMeans.
    """

    REVISION = 3

    def __init__(
        self,
        *,
        codebook_size,
        codebook_depth,
        rq_vae_hidden_sizes,
        rq_vae_latent_size,
        rq_vae_beta,
        rq_vae_steps,
        rq_vae_warmup_steps,
        rq_vae_batch_size,
        rq_vae_learning_rate,
        kmeans_iterations,
        kmeans_sample,
    ):
        super().__init__()
        if rq_vae_warmup_steps >= rq_vae_steps:
            raise TigerError(
                f"rq_vae_warmup_steps {rq_vae_warmup_steps} has to be less than the {rq_vae_steps} rq_vae_steps: "
                f"quantization begins after the warm-up; lower it"
            )
        self.codebook_size, self.codebook_depth = codebook_size, codebook_depth
        self.hidden_sizes, self.latent_size, self.beta = rq_vae_hidden_sizes, rq_vae_latent_size, rq_vae_beta
        self.steps, self.warmup_steps = rq_vae_steps, rq_vae_warmup_steps
        self.batch_size, self.learning_rate = rq_vae_batch_size, rq_vae_learning_rate
        self.kmeans_iterations, self.kmeans_sample = kmeans_iterations, kmeans_sample

    def fit(self, x, *, seed, show_progress=False):
        """Codes of ``x`` [n_items, dim], an int64 tensor [n_items, codebook_depth]."""
        generator = torch.Generator().manual_seed(seed)
        embeddings, (mean, scale) = x, mean_and_scale(x)
        x = scaled(x, mean, scale)
        with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
            torch.manual_seed(seed)
            network = self._network(x.shape[1]).to(x.device)
        on_gpu = x.device.type == "cuda"
        optimizer = torch.optim.AdamW(network.parameters(), lr=self.learning_rate, fused=on_gpu, capturable=on_gpu)
        used = torch.zeros(self.codebook_depth, self.codebook_size, dtype=torch.bool, device=x.device)

        def update(loss):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        def warm_up(batch):
            return update(F.mse_loss(network.decoder(network.encoder(x[batch])), x[batch]) * x.shape[1])

        def train(batch):
            reconstruction, quantization, codes = network.losses(x[batch])
            for level in range(self.codebook_depth):
                used[level].index_fill_(0, codes[:, level], True)
            return update(reconstruction + quantization)

        if on_gpu:  # separate graphs: the optimizer creates the codebooks' state in their first step
            warm_up, train = Graphs(warm_up), Graphs(train)
        batches = iter(())
        progress = tqdm(range(self.steps), desc="RQ-VAE", disable=not show_progress)
        for step in progress:
            if step == self.warmup_steps:
                self._seed_codebooks(network, x, generator)
                batches = iter(())  # start a new epoch: used codes are counted over whole epochs
            batch = next(batches, None)
            if batch is None:
                if step > self.warmup_steps:
                    self._restart_dead(network, x, used, generator)
                used.zero_()
                batches = iter(torch.randperm(len(x), generator=generator).to(x.device).split(self.batch_size))
                batch = next(batches)
            loss = (warm_up if step < self.warmup_steps else train)(batch)
            if show_progress and step % 50 == 0:
                progress.set_postfix(loss=f"{loss.item():.1f}")
        self.learnt = {"mean": mean, "scale": scale, **network.state_dict()}
        return self.encode(embeddings)

    def _network(self, dim):
        return Network(dim, self.hidden_sizes, self.latent_size, self.codebook_depth, self.codebook_size, self.beta)

    def _fitted(self):
        """The fitted network, and the mean and the scale of its input."""
        mean, scale = self.learnt["mean"], self.learnt["scale"]
        with torch.device("meta"):  # draws no random weights
            network = self._network(len(mean))
        network.load_state_dict({name: self.learnt[name] for name in network.state_dict()}, assign=True)
        return network, mean, scale

    def encode_part(self, x):
        """Codes of the rows of ``x``."""
        network, mean, scale = self._fitted()
        return network.quantize(network.encoder(scaled(x, mean, scale)))[0]

    @torch.no_grad()
    def reconstruct(self, codes):
        """Decoder output for ``codes`` [n, codebook_depth], a float tensor [n, dim]."""
        self._move(codes.device)
        network, mean, scale = self._fitted()
        vectors = (codebook[level] for codebook, level in zip(network.codebooks, codes.unbind(1), strict=True))
        return network.decoder(sum(vectors)) * scale + mean

    @torch.no_grad()
    def _seed_codebooks(self, network, x, generator):
        residual = network.encoder(x)
        for codebook in network.codebooks:
            codebook.copy_(
                kmeans(
                    residual,
                    self.codebook_size,
                    iterations=self.kmeans_iterations,
                    generator=generator,
                    sample=self.kmeans_sample,
                )
            )
            residual = residual - codebook[assign(residual, codebook)[0]]

    @torch.no_grad()
    def _restart_dead(self, network, x, used, generator):
        if used.all():
            return
        rows = torch.randperm(len(x), generator=generator)[: self.codebook_size].to(x.device)
        _, residuals = network.quantize(network.encoder(x[rows]))
        for level, residual in enumerate(residuals):
            dead = (~used[level]).nonzero().flatten()
            network.codebooks[level, dead] = residual[: len(dead)]

"""How fast is it? Training, decoding and preparation compared with common alternatives, in one run on the same data.

python benchmarks/speed.py --data_path=... --output=benchmarks/results/speed.json --plot=benchmarks/results/speed.png

The contenders take turns in rounds, a few seconds each; a rate is the median over the rounds. Any setting of TIGER may be
given as --key=value; --enable_amp=True runs all contenders in bf16, --gpu_id=0 on a GPU. If the dataset is not under
--data_path, one of the shape of amazon-beauty is generated.
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
import warnings
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch
from generated import PAPER, clustered_embeddings, item_tokens, write_dataset
from recbole.data import data_preparation
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.model.sequential_recommender.sasrec import SASRec
from tabulate import tabulate
from torch.profiler import profile
from tqdm import tqdm
from transformers import T5Config, T5ForConditionalGeneration
from transformers.utils import logging as transformers_logging

from recbole_tiger.catalogue.encoder import load_encoder
from recbole_tiger.catalogue.item_text import text_of_items
from recbole_tiger.catalogue.quantizers import QUANTIZERS, quantizer_settings
from recbole_tiger.commands.shared import names
from recbole_tiger.errors import TigerError
from recbole_tiger.model.base import left_padded
from recbole_tiger.model.tiger import TIGER
from recbole_tiger.report.results import write_result
from recbole_tiger.runs import experiment
from recbole_tiger.settings.arguments import parse_arguments
from recbole_tiger.training.dataset import CatalogueDataset, Windows, training_windows
from recbole_tiger.training.memory import keep_freed_memory
from recbole_tiger.training.tiger import TIGERTrainer
from recbole_tiger.training.trainer import autocast

BEAUTY = {"n_items": 12101, "n_users": 22363, "n_interactions": 198502}
WIDTHS = (10, 20, 50)
# Test users for decoding; batch sizes in users, of which Hugging Face's generate uses the fastest for every width.
USERS, HF_USERS = 256, (8, 32)
GPU_USERS, GPU_HF_USERS = 4096, (128, 512, 2048)
# Parts measured by default.
PARTS = ("training", "decoding", "preparation", "memory")
# Steps of a schedule, more than are ever run.
FAR_OFF = 10**9
# A process that has used the driver of a GPU cannot be forked; NVML finds GPUs without the driver's context.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
# Texts per slice of encoding.
TEXTS = 128

# Settings on which the numbers depend.
SHOWN = (
    *("hidden_size", "n_heads", "head_size", "inner_size", "n_layers", "n_decoder_layers", "encoder_tokens"),
    *("codebook_size", "codebook_depth", "train_batch_size", "MAX_ITEM_LIST_LENGTH", "enable_amp"),
)

# Operators of PyTorch by purpose; an operator belongs to the first group with a part of its name.
GROUPS = {
    "matrix products": ("aten::mm", "aten::addmm", "mkldnn_linear"),
    "attention": ("aten::bmm", "aten::baddbmm", "scaled_dot_product", "flash_attention"),
    "loss": ("nll_loss", "log_softmax"),
    "softmax": ("softmax",),
    "optimizer": ("adam", "norm", "_foreach"),
    "dropout masks": ("random_", "bernoulli", "dropout"),
    "choice of beams": ("topk", "sort", "gather", "masked_fill"),
    "embedding and indexing": ("index", "embedding", "scatter", "select"),
    "copies": ("copy_", "cat", "clone", "fill_", "zero_", "pad"),
}
# The norm of a layer is element-wise; the norm of the gradients belongs to the optimizer.
ELEMENT_WISE = ("layer_norm",)


def in_child(function, *args):
    """Call a function in a forked process; the parent never starts PyTorch's threads, which a fork would lose."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(function(*args)))
    child.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        child.join()
        raise TigerError(
            f"{function.__name__} ended with exit code {child.exitcode}; after -9 memory ran out: lower train_batch_size"
        ) from None
    child.join()
    return result


def peak_memory(build, *args):
    """Peak bytes that building a contender and two of its steps add to the process, or to the GPU if it is on one.

    Called in a child: what is there before, the imported libraries and the data as arrays, is not counted.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = build(*args)
    step()
    step()
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def finished():
    """The time after the GPU has finished its work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def rate(step, seconds):
    """Units per second of ``step``, which returns the number of units done, called until time runs out."""
    begin, done = finished(), 0
    while time.perf_counter() - begin < seconds or not done:
        done += step()
    return done / (finished() - begin)


def take_turns(contenders, args, label):
    """Rates of every contender, one slice per round, after a warm-up step.

    Args:
        contenders: dict of name to step.

    Returns:
        dict of name to list of rates.
    """
    rates = {name: [] for name in contenders}
    for step in contenders.values():
        step()
    for _ in tqdm(range(args.rounds), label):
        for name, step in contenders.items():
            rates[name].append(rate(step, args.seconds))
    return rates


def seconds_of(function, *args):
    """Seconds of a call."""
    begin = finished()
    function(*args)
    return finished() - begin


# --- the data, as plain arrays ---


def read_data(config):
    """The inputs of the contenders: semantic IDs, training rows and windows, histories of test users."""
    dataset = CatalogueDataset(config)
    train_data, _, test_data = data_preparation(config, dataset)
    rows, test = train_data._dataset, test_data._dataset.inter_feat
    item, length = config["ITEM_ID_FIELD"], config["ITEM_LIST_LENGTH_FIELD"]
    sequence = item + config["LIST_SUFFIX"]
    users = np.random.default_rng(config["seed"]).permutation(len(test))
    users = users[: GPU_USERS if config["device"].type == "cuda" else USERS]
    histories = left_padded(test[sequence][users], test[length][users], config["MAX_ITEM_LIST_LENGTH"])
    return SimpleNamespace(
        catalogue=replace(dataset.catalogue, tokenizer=None),  # its tensors cannot be sent through the pipe
        shape={
            "users": dataset.user_num - 1,
            "items": dataset.item_num - 1,
            "interactions": len(dataset.inter_feat) + dataset.user_num - 1,  # no row has a user's first as its target
        },
        targets=len(rows),
        rows={name: rows.inter_feat[name].numpy() for name in (sequence, length, item)},
        windows={
            one_target: {name: value.numpy() for name, value in vars(training_windows(rows, one_target)).items()}
            for one_target in (False, True)
        },
        histories=histories.numpy(),
    )


# --- contenders: functions that make a model and return its step ---


def tiger(config, data):
    """Our model."""
    dataset = SimpleNamespace(
        catalogue=data.catalogue,
        num=lambda field: len(data.catalogue.items) + 1,
        field2id_token={config["USER_ID_FIELD"]: ["[PAD]"]},
    )
    torch.manual_seed(config["seed"])
    return TIGER(config, dataset).to(config["device"])


def train_tiger(config, data, bidirectional, warm=True):
    """A step of TIGERTrainer on a batch of windows; returns its targets."""
    config["bidirectional_encoder"] = bidirectional
    trainer = TIGERTrainer(config, tiger(config, data))
    windows = Windows(**{name: torch.from_numpy(value) for name, value in data.windows[bidirectional].items()})
    windows = windows.to(trainer.device)
    epoch = windows.batches(config["train_batch_size"], torch.Generator().manual_seed(config["seed"]))
    batches = cycle(epoch)

    def step():
        batch = next(batches)
        trainer.train_step(windows, batch, FAR_OFF)
        return int(windows.n_targets[batch].sum())

    if warm and config["device"].type == "cuda":  # captures every shape as a graph
        for _ in range(len(epoch)):
            step()
    return step


def t5(config, data):
    """Hugging Face's T5 of the same dimensions with a single vocabulary: padding, then the codes of every level.

    Returns:
        the model, and the tokens of every item [n_items + 1, levels], padding for item 0.
    """
    codes = torch.from_numpy(data.catalogue.semantic_ids.codes)
    widths = codes.max(dim=0).values + 1
    tokens = torch.nn.functional.pad(codes + 1 + widths.cumsum(0) - widths, (0, 0, 1, 0))
    torch.manual_seed(config["seed"])
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=int(widths.sum()) + 1,
            d_model=config["hidden_size"],
            d_kv=config["head_size"],
            d_ff=config["inner_size"],
            num_heads=config["n_heads"],
            num_layers=config["n_layers"],
            num_decoder_layers=config["n_decoder_layers"],
            dropout_rate=config["hidden_dropout_prob"],
            pad_token_id=0,
            decoder_start_token_id=0,
            eos_token_id=None,  # an ID has a fixed number of codes and needs no end
        )
    )
    return model.to(config["device"]), tokens.to(config["device"])


def shuffled_rows(config, data, size):
    """Endless batches of training rows, padded to MAX_ITEM_LIST_LENGTH as in RecBole."""
    rows = {name: torch.from_numpy(value) for name, value in data.rows.items()}
    order = torch.randperm(data.targets, generator=torch.Generator().manual_seed(config["seed"]))
    for batch in cycle(order.split(size)):
        yield Interaction({name: value[batch] for name, value in rows.items()}).to(config["device"])


def optimizer_step(optimizer, loss):
    """Backward and update."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def train_t5(config, data):
    """Hugging Face's T5 with one row per prefix, 20 items of codes with padding; the step returns the number of targets."""
    model, tokens = t5(config, data)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["learning_rate"], fused=True)
    item = config["ITEM_ID_FIELD"]
    batches = shuffled_rows(config, data, config["train_batch_size"])

    def step():
        batch = next(batches)
        history = tokens[batch[item + config["LIST_SUFFIX"]]].flatten(1)
        with autocast(config):
            loss = model(history, attention_mask=history != 0, labels=tokens[batch[item]]).loss
        optimizer_step(optimizer, loss)
        return len(batch)

    return step


def train_sasrec(config, data):
    """RecBole's model with its own settings, rows and batch size; the step returns the number of targets."""
    model = SASRec(config, SimpleNamespace(num=lambda field: len(data.catalogue.items) + 1)).to(config["device"])
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=config["learning_rate"])
    batches = shuffled_rows(config, data, config["train_batch_size"])

    def step():
        batch = next(batches)
        with autocast(config):
            loss = model.calculate_loss(batch)
        optimizer_step(optimizer, loss)
        return len(batch)

    return step


def decode_tiger(config, data, width):
    """Beam search for all users; the step returns their number."""
    model = tiger(config, data).eval()
    histories = torch.from_numpy(data.histories)

    @torch.no_grad()
    def step():
        with autocast(config):
            model.recommend(histories, None, width, width, "beam")
        return len(histories)

    return step


def decode_t5(config, data, width, users, prefixes):
    """``generate`` for a batch of users; the step returns their number.

    Args:
        users: users a batch.
        prefixes: whether a prefix function allows codes of the catalogue alone.
    """
    model, tokens = t5(config, data)
    model.eval()
    histories = torch.from_numpy(data.histories).to(config["device"])
    batches = cycle(histories.split(users))
    levels = tokens.shape[1]
    children = {}
    for row in tokens[1:].tolist():
        for level in range(levels):
            children.setdefault(tuple(row[:level]), set()).add(row[level])
    children = {prefix: sorted(following) for prefix, following in children.items()}

    def allowed(batch, sequence):
        return children.get(tuple(sequence[1:].tolist()), [0])  # a beam without any item continues with padding

    @torch.no_grad()
    def step():
        batch = next(batches)
        batch = batch[:, -int((batch != 0).sum(dim=1).max()) :]
        history = tokens[batch].flatten(1)
        with autocast(config):
            model.generate(
                history,
                attention_mask=(history != 0).long(),
                num_beams=width,
                num_return_sequences=width,
                max_new_tokens=levels,
                do_sample=False,
                use_cache=True,
                prefix_allowed_tokens_fn=allowed if prefixes else None,
            )
        return len(batch)

    return step


# --- arithmetic ---


def training_flops(config, data):
    """Operations of the matrix products of an epoch, forward and backward: 3 times forward, 2 per multiply-add.

    Products of weights and of attention, of what a target may see alone: neither padding nor masked pairs nor anything
    computed twice counts.
    """
    windows = data.windows[False]
    codes = data.catalogue.semantic_ids.codes
    levels, classes = codes.shape[1], int((codes.max(axis=0) + 1).sum())
    tokens = levels if config["encoder_tokens"] == "code" else 1
    hidden, inner, width = config["hidden_size"], config["inner_size"], config["n_heads"] * config["head_size"]
    history, targets = windows["lengths"] - 1, windows["n_targets"]
    read, written = (history * tokens).sum(), (targets * levels).sum()
    seen = (targets * history - targets * (targets - 1) // 2).sum()  # items before each target
    encoder = read * (4 * hidden * width + 2 * hidden * inner)
    encoder += (history * (history + 1) // 2).sum() * tokens**2 * 2 * width
    decoder = written * (6 * hidden * width + 2 * hidden * inner) + read * 2 * hidden * width
    decoder += targets.sum() * levels * (levels + 1) // 2 * 2 * width + seen * levels * tokens * 2 * width
    products = config["n_layers"] * encoder + config["n_decoder_layers"] * decoder + targets.sum() * hidden * classes
    return float(6 * products)


def multiply(config, data):
    """Every matrix product with weights of a training step, by torch.mm alone; the step returns the operations."""
    windows = data.windows[False]
    codes = data.catalogue.semantic_ids.codes
    levels = codes.shape[1]
    tokens = levels if config["encoder_tokens"] == "code" else 1
    hidden, inner, width = config["hidden_size"], config["inner_size"], config["n_heads"] * config["head_size"]
    share = config["train_batch_size"] / windows["n_targets"].sum()
    read = round(share * (windows["lengths"] - 1).sum() * tokens)
    targets = config["train_batch_size"]
    written = targets * levels
    # Input and output width of every product in a layer.
    layer = [(hidden, width), (hidden, 2 * width), (width, hidden), (hidden, inner), (inner, hidden)]
    shapes = [(read, *shape) for shape in layer] * config["n_layers"]
    shapes += [(written, *shape) for shape in layer] * config["n_decoder_layers"]
    shapes += [(written, hidden, width), (read, hidden, 2 * width), (written, width, hidden)] * config["n_decoder_layers"]
    shapes += [(targets, hidden, int(codes[:, level].max()) + 1) for level in range(levels)]
    made = {
        shape: (torch.randn(shape[0], shape[1]), torch.randn(shape[2], shape[1]), torch.randn(shape[0], shape[2]))
        for shape in set(shapes)
    }
    kind = torch.bfloat16 if config["enable_amp"] else torch.float32
    made = {shape: [tensor.to(config["device"], kind) for tensor in tensors] for shape, tensors in made.items()}

    def step():
        for shape in shapes:
            x, weight, gradient = made[shape]
            torch.mm(x, weight.T)
            torch.mm(gradient, weight)
            torch.mm(gradient.T, x)
        return sum(6 * rows * inputs * outputs for rows, inputs, outputs in shapes)

    return step


# --- the measurements ---


def measure_training(config, sasrec_config, data, args):
    """Rates of training in targets per second, and of torch.mm in operations per second."""
    contenders = {
        "ours": train_tiger(config, data, False),
        "ours, a row a prefix": train_tiger(config, data, True),
        "hf": train_t5(config, data),
        "sasrec": train_sasrec(sasrec_config, data),
        "mm": multiply(config, data),
    }
    return take_turns(contenders, args, "training")


def measure_decoding(config, data, width, args):
    """Rates in users per second, and Hugging Face's best number of users per batch."""
    users = {}
    for prefixes in (False, True):
        tried = {}
        for size in GPU_HF_USERS if config["device"].type == "cuda" else HF_USERS:
            step = decode_t5(config, data, width, size, prefixes)
            step()
            tried[size] = rate(step, args.seconds)
        users[prefixes] = max(tried, key=tried.get)
    contenders = {
        "ours": decode_tiger(config, data, width),
        "hf": decode_t5(config, data, width, users[False], False),
        "hf_prefix": decode_t5(config, data, width, users[True], True),
    }
    return take_turns(contenders, args, f"decoding, beam {width}"), users


def measure_preparation(config, data, args):
    """Measure encoding, both quantizers, and our dataset and RecBole's in turns, from the files to the three splits."""
    items = list(data.catalogue.items)
    texts = text_of_items(config, items)[0][:TEXTS]
    encoder = load_encoder(config["text_encoder"], config["device"])
    encoder.encode(texts[:8])
    encoding = [len(texts) / seconds_of(encoder.encode, texts) for _ in tqdm(range(args.rounds), "encoding")]
    x = torch.from_numpy(data.catalogue.embeddings).to(config["device"])
    quantizers = {}
    for name, make in QUANTIZERS.items():
        config["quantizer"] = name
        quantizer = make(**quantizer_settings(config))
        quantizers[name] = seconds_of(lambda quantizer=quantizer: quantizer.fit(x, seed=config["seed"], show_progress=True))

    datasets = {"ours": [], "recbole": []}
    with tempfile.TemporaryDirectory() as folder:
        config["semantic_ids"] = str(Path(folder) / "ids.tsv")
        data.catalogue.semantic_ids.save(config["semantic_ids"])
        for _ in tqdm(range(args.rounds), "dataset"):
            for name, make in (("ours", CatalogueDataset), ("recbole", SequentialDataset)):
                datasets[name].append(seconds_of(lambda make=make: data_preparation(config, make(config))))
    return {"encoding": encoding, "quantizers": quantizers, "datasets": datasets}


def contenders_of(config, sasrec_config, data, training, decoding):
    """Functions that build the measured contenders, by part and name."""
    builds = {}
    if training:
        builds |= {
            ("training", "ours"): (train_tiger, config, data, False, False),
            ("training", "ours, a row a prefix"): (train_tiger, config, data, True, False),
            ("training", "hf"): (train_t5, config, data),
            ("training", "sasrec"): (train_sasrec, sasrec_config, data),
        }
    for width, (_, users) in decoding.items():
        builds["decoding", width, "ours"] = (decode_tiger, config, data, width)
        builds["decoding", width, "hf"] = (decode_t5, config, data, width, users[False], False)
        builds["decoding", width, "hf_prefix"] = (decode_t5, config, data, width, users[True], True)
    return builds


def where_time_goes(build, args, *more):
    """Shares of a contender's time by group of operators.

    Returns:
        list of rows: group, share of the time.
    """
    step = build(*more)
    step()
    steps = max(1, round(args.seconds / seconds_of(step)))
    whole = sum(seconds_of(step) for _ in range(steps))
    with profile() as profiler:
        for _ in range(steps):
            step()
    spent = dict.fromkeys([*GROUPS, "element-wise", "between operators"], 0.0)
    for event in profiler.key_averages():
        seconds = (event.self_cpu_time_total + event.self_device_time_total) / 1e6
        if event.key.startswith("aten::"):
            spent[group_of(event.key)] += seconds
    spent["between operators"] = max(0.0, whole - sum(spent.values()))
    total = sum(spent.values())
    return sorted(([name, value / total] for name, value in spent.items()), key=lambda row: -row[1])


def group_of(operator):
    """The group in GROUPS of an operator."""
    if any(part in operator for part in ELEMENT_WISE):
        return "element-wise"
    return next((name for name, parts in GROUPS.items() if any(part in operator for part in parts)), "element-wise")


def measured(unit, values, peak):
    """The median of rates, the rates, and the peak bytes of a contender if measured."""
    row = {f"{unit}_per_second": median(values)}
    return {**row, **({} if peak is None else {"peak_bytes": peak}), "rounds": values}


def summary(data, training, decoding, preparation, memory, flops):
    """Medians and their ratios (how many times as fast ours is) for the measured parts."""
    result, ratios = {}, {}
    if training:
        result["training"] = {
            name: measured("targets", values, memory.get(("training", name)))
            for name, values in training.items()
            if name != "mm"
        }
        rates = {name: row["targets_per_second"] for name, row in result["training"].items()}
        for name, row in result["training"].items():
            row["epoch_seconds"] = data.targets / rates[name]
        gflops = rates["ours"] * flops / data.targets / 1e9
        result["arithmetic"] = {
            "training_gflops": gflops,
            "mm_gflops": median(training["mm"]) / 1e9,
            "share_of_mm": gflops * 1e9 / median(training["mm"]),
            "gflop_per_target": flops / data.targets / 1e9,
        }
        ratios["training_vs_hf"] = rates["ours"] / rates["hf"]
        ratios["training_vs_sasrec"] = rates["ours"] / rates["sasrec"]
        ratios["training_row_a_prefix_vs_hf"] = rates["ours, a row a prefix"] / rates["hf"]
    for width, (values, users) in decoding.items():
        row = {name: measured("users", rates, memory.get(("decoding", width, name))) for name, rates in values.items()}
        row["hf"]["users_a_batch"], row["hf_prefix"]["users_a_batch"] = users[False], users[True]
        result.setdefault("decoding", {})[f"beam{width}"] = row
        for name in ("hf", "hf_prefix"):
            ratio = row["ours"]["users_per_second"] / row[name]["users_per_second"]
            ratios[f"decoding_vs_{name}_beam{width}"] = ratio
    if preparation:
        made = {"dataset_seconds": median(preparation["datasets"]["ours"])}
        made["recbole_dataset_seconds"] = median(preparation["datasets"]["recbole"])
        ratios["dataset_vs_recbole"] = made["recbole_dataset_seconds"] / made["dataset_seconds"]
        result["preparation"] = {
            "encoding_items_per_second": median(preparation["encoding"]),
            **{f"{name}_seconds": seconds for name, seconds in preparation["quantizers"].items()},
            **made,
        }
    return {**result, "ratios": ratios}


def tables(result):
    """The summary as text."""
    rows = []
    groups = {"training": result.get("training", {})}
    groups |= {f"decoding, {beam}": contenders for beam, contenders in result.get("decoding", {}).items()}
    for group, contenders in groups.items():
        for name, row in contenders.items():
            unit = next(key for key in row if key.endswith("_per_second"))
            peak = f"{row['peak_bytes'] / 2**20:.0f} MiB" if "peak_bytes" in row else ""
            rows.append([f"{group}, {name}", f"{row[unit]:.1f} {unit.removesuffix('_per_second')}/s", peak])
    rows += [[name.replace("_", " "), f"{value:.1f}", ""] for name, value in result.get("preparation", {}).items()]
    arithmetic = result.get("arithmetic", {})
    rows += [[f"arithmetic, {name.replace('_', ' ')}", f"{value:.3g}", ""] for name, value in arithmetic.items()]
    medians = tabulate(rows, ["", "median", "peak memory"], tablefmt="github", disable_numparse=True)
    ratios = [[name.replace("_", " "), f"{value:.2f}"] for name, value in result["ratios"].items()]
    return f"{medians}\n\n{tabulate(ratios, ['ratio', 'times faster'], tablefmt='github', disable_numparse=True)}"


def plot(result, file):
    """Plot the ratios on a logarithmic axis, from the line of equal speed."""
    import matplotlib.pyplot as plt

    names = list(result["ratios"])[::-1]
    values = [result["ratios"][name] for name in names]
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(names) + 1), layout="constrained")
    rows = range(len(names))
    axes.hlines(rows, 1, values, linewidth=3)
    axes.plot(values, rows, "o")
    for row, value in zip(rows, values, strict=True):
        axes.annotate(f"{value:.2g}", (value, row), xytext=(0, 6), textcoords="offset points", ha="center")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(rows, [name.replace("_", " ") for name in names])
    axes.set(xscale="log", xlabel="times faster", xlim=(min(0.5, *values) * 0.8, max(values) * 1.5))
    axes.set_ylim(-0.5, len(names) - 0.3)
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if axes.get_xlim()[0] < tick < axes.get_xlim()[1]]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    figure.savefig(file, dpi=120)


def dataset_settings(args, folder):
    """Settings of the data: the dataset under --data_path, or a generated one of the same shape."""
    if (Path(args.data_path) / args.dataset).is_dir():
        return {"data_path": args.data_path}
    print(f"{args.data_path}/{args.dataset} is not there: a set of its shape is generated")
    write_dataset(folder, args.dataset, **BEAUTY)
    embeddings = Path(folder) / "embeddings.npz"
    n_items = BEAUTY["n_items"]
    np.savez(embeddings, items=np.array(item_tokens(n_items)), embeddings=clustered_embeddings(n_items))
    return {"data_path": folder, "item_embeddings": str(embeddings), "text_fields": ["title"]}


def main():
    """Print tables, and write JSON and a plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", default="dataset/", help="parent folder of the dataset (default: dataset/)")
    parser.add_argument("--dataset", default="amazon-beauty")
    parser.add_argument("--quick", action="store_true", help="shorter and fewer slices: 5 of 1 s instead of 7 of 3 s")
    parser.add_argument("--rounds", type=int, help="number of slices of each contender")
    parser.add_argument("--seconds", type=float, help="least seconds of a slice")
    parser.add_argument(
        "--parts", type=names, default=PARTS, help=f"what to measure, separated by commas (default: {','.join(PARTS)})"
    )
    parser.add_argument("--output", help="JSON file of all numbers")
    parser.add_argument("--plot", help="PNG file of the ratios")
    parser.add_argument("--profile", action="store_true", help="show where the time of training and decoding goes instead")
    args, rest = parser.parse_known_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))} is not one of {', '.join(PARTS)}")
    keep_freed_memory()
    args.rounds = args.rounds or (5 if args.quick else 7)
    args.seconds = (1 if args.quick else 3) if args.seconds is None else args.seconds
    warnings.simplefilter("ignore", FutureWarning)
    transformers_logging.set_verbosity_error()

    begin, home = time.perf_counter(), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        cache = {"cache_dir": str(home / "cache")}
        found = dataset_settings(args, folder)
        settings = {
            "gpu_id": "",
            **cache,
            **PAPER,
            "quantizer": "rq_kmeans",
            "encoder_text": False,
            **found,
            **parse_arguments(rest),
        }
        of_all = ("gpu_id", "data_path", "text_fields", "enable_amp")
        shared = {key: settings[key] for key in of_all if key in settings}
        settings["data_path"] = shared["data_path"] = str(Path(settings["data_path"]).resolve())
        if settings.get("item_embeddings"):
            settings["item_embeddings"] = str(Path(settings["item_embeddings"]).resolve())
        config = experiment.prepare("TIGER", args.dataset, {**settings, "show_progress": False, "beam_size": max(WIDTHS)})
        sasrec_config = experiment.prepare("SASRec", args.dataset, shared)
        os.chdir(folder)  # RecBole's trainers write logs in the working directory
        try:
            data = in_child(read_data, config)
            if args.profile:
                contenders = {"training": (train_tiger, False), "decoding, beam 20": (decode_tiger, 20)}
                for name, (build, option) in contenders.items():
                    rows = in_child(where_time_goes, build, args, config, data, option)
                    print(f"\n{tabulate(rows, [name, 'share'], tablefmt='github', floatfmt='.3f')}")
                return
            training = in_child(measure_training, config, sasrec_config, data, args) if "training" in args.parts else {}
            widths = WIDTHS if "decoding" in args.parts else ()
            decoding = {width: in_child(measure_decoding, config, data, width, args) for width in widths}
            preparation = in_child(measure_preparation, config, data, args) if "preparation" in args.parts else {}
            memory = {}
            if "memory" in args.parts:
                builds = contenders_of(config, sasrec_config, data, training, decoding)
                memory = {name: in_child(peak_memory, *build) for name, build in tqdm(builds.items(), "memory")}
        finally:
            os.chdir(home)

    result = {
        "dataset": {"name": args.dataset, "generated": "item_embeddings" in found, **data.shape},
        "rounds": args.rounds,
        "slice_seconds": args.seconds,
        "settings": {key: config[key] for key in SHOWN},
        "hardware": experiment.hardware(),
        "versions": experiment.versions(),
        **summary(data, training, decoding, preparation, memory, training_flops(config, data)),
        "minutes": (time.perf_counter() - begin) / 60,
    }
    print(f"\n{tables(result)}")
    if args.output:
        write_result(result, args.output)
    if args.plot:
        plot(result, args.plot)


if __name__ == "__main__":
    main()

"""TIGERTrainer: resuming, early stopping, learning rate schedule, averaged weights, weight decay, mixed precision."""

import math
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_tiger.catalogue.semantic_ids import SemanticIDs, add_collision_level
from recbole_tiger.errors import TigerError
from recbole_tiger.files import link_or_copy, whole_file
from recbole_tiger.runs import experiment
from recbole_tiger.settings.identity import run_key
from recbole_tiger.training import checkpoint
from recbole_tiger.training import trainer as trainer_module
from recbole_tiger.training.checkpoint import load_checkpoint, save_checkpoint
from recbole_tiger.training.tiger import TIGERTrainer, warmup_cosine
from tests.conftest import read_sequences, write_dataset
from tests.test_recbole import built


def run_until_killed(settings, epoch, during=False):
    """Train in a process that kills itself after writing the state of ``epoch``, or (``during``) halfway through writing.

    Returns the path of the state.
    """

    whole_save = torch.save

    def half(state, file, **options):
        whole_save(state, file, **options)
        os.truncate(file, os.path.getsize(file) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    def die_when_last(file, written):
        if Path(file).name == "last.pth" and written == epoch:
            os.kill(os.getpid(), signal.SIGKILL)

    def save(state, file):
        if state["epoch"] == epoch and during:
            torch.save = half
        save_checkpoint(state, file)
        die_when_last(file, state["epoch"])

    def copy(source, file):  # called if the last epoch is the best so far
        link_or_copy(source, file)
        die_when_last(file, load_checkpoint(file)["epoch"])

    def train():
        checkpoint.save_checkpoint, trainer_module.link_or_copy = save, copy
        run(settings)

    process = multiprocessing.get_context("fork").Process(target=train)
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    (state,) = Path(settings["checkpoint_dir"]).glob("TIGER-*/last.pth")
    return state


def run(settings, **more):
    return experiment.run(experiment.prepare("TIGER", "tiny", {**settings, **more}), "results")


def log_text():
    return "".join(file.read_text() for file in sorted(Path("log/TIGER").glob("*.log")))


def outcome(result):
    """The metrics of a run, and the losses and scores of its epochs."""
    course = [{key: epoch[key] for key in ("train_loss", "valid_score", "valid_result")} for epoch in result["epoch_log"]]
    names = ("best_valid_score", "best_valid_result", "test_result", "best_epoch", "epochs")
    return [result[name] for name in names], course


def same_weights(one, other):
    weights = [load_checkpoint(result["checkpoint"])["state_dict"] for result in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name in weights[0]:
        assert torch.equal(weights[0][name], weights[1][name]), name


# --- resuming ---


@pytest.fixture
def resumable(settings):
    """Settings for four epochs with all dropouts."""
    more = {"epochs": 4, "stopping_step": 10, "hidden_dropout_prob": 0.2, "metric_decimal_place": 10}
    return {**settings, **more, "topk": [10], "beam_size": 10}


@pytest.mark.parametrize(
    ("killed_at", "during", "sampled", "ema_decay"),
    [(0, False, False, 0.0), (2, False, True, 0.0), (2, True, False, 0.0), (1, False, False, 0.9)],
    ids=[
        "after epoch 0",
        "after epoch 2, sampled evaluation",
        "while the state of epoch 2 is written",
        "after epoch 1, averaged weights",
    ],
)
def test_killed_run_resumes_and_ends_as_the_uninterrupted_one(resumable, tmp_path, killed_at, during, sampled, ema_decay):
    settings = {**resumable, "ema_decay": ema_decay}
    if sampled:
        settings["eval_args"] = {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "uni20"}
    whole = run(settings, checkpoint_dir=str(tmp_path / "whole"))

    state = run_until_killed(settings, killed_at, during)
    done = killed_at - during
    assert load_checkpoint(state)["epoch"] == done
    assert "Resuming" not in log_text()
    resumed = run(settings, resume=True)
    assert f"epochs 0 to {done} are done" in log_text()
    assert outcome(resumed) == outcome(whole)
    same_weights(resumed, whole)


SCORES = [0.5, 0.9, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35]


@pytest.mark.parametrize("killed_at", [2, 4], ids=["before the stop", "after the stop"])
def test_a_resumed_run_stops_where_the_uninterrupted_one_does(settings, tmp_path, monkeypatch, killed_at):
    """After the third evaluation without a gain; the best epoch is the second."""

    def valid_epoch(trainer, *_, **__):
        score = SCORES[len(trainer.epoch_log) - 1]
        return score, {"ndcg@10": score}

    monkeypatch.setattr(TIGERTrainer, "_valid_epoch", valid_epoch)
    settings = {**settings, "epochs": 8, "stopping_step": 2}
    whole = run(settings, checkpoint_dir=str(tmp_path / "whole"))
    assert (whole["epochs"], whole["best_epoch"], whole["still_improving"]) == (5, 1, False)
    run_until_killed(settings, killed_at)
    result, trainer, _ = experiment.train(experiment.prepare("TIGER", "tiny", {**settings, "resume": True}))
    assert list(trainer.train_loss_dict) == list(range(killed_at + 1, 5))
    assert [result[name] for name in ("epochs", "best_epoch", "best_valid_score")] == [5, 1, 0.9]
    same_weights(result, whole)


def test_a_resumed_run_keeps_the_limit_of_time(settings):
    """The minutes of the killed process count."""
    settings = {**settings, "epochs": 9, "max_minutes": 0.5}
    state = run_until_killed(settings, 1)
    saved = load_checkpoint(state)
    saved["epoch_log"][0]["train_seconds"] = 31.0
    save_checkpoint(saved, state)
    result = run(settings, resume=True)
    assert (result["epochs"], result["out_of_time"]) == (2, True)
    assert result["test_result"]["recall@10"] > 0


def test_a_resumed_run_reports_the_codes_of_its_checkpoint(settings):
    run_until_killed(settings, 0)
    (cache,) = Path(settings["cache_dir"]).glob("quantized-*.npz")
    arrays = dict(np.load(cache))
    made = arrays["semantic_ids"]
    other = add_collision_level(made[:, :-1] // 2)
    np.savez(cache, **arrays | {"semantic_ids": other})  # another machine may make other codes from the same settings
    result = run(settings, resume=True)
    assert "epochs 0 to 0 are done" in log_text()
    made, other = (SemanticIDs(range(len(codes)), codes).statistics() for codes in (made, other))
    assert result["semantic_ids"] == made != other


@pytest.mark.parametrize("resume", [False, True])
def test_only_resume_reads_the_stored_state(settings, resume):
    _, (train_data, valid_data, _), _, trainer = built(settings)
    trainer.fit(train_data, valid_data)
    assert load_checkpoint(trainer.state_file)["epoch"] == 1
    _, (train_data, valid_data, _), _, trainer = built({**settings, "resume": resume})
    trainer.fit(train_data, valid_data)
    assert list(trainer.train_loss_dict) == ([] if resume else [0, 1])


def test_a_run_of_other_settings_does_not_resume(settings):
    _, (train_data, valid_data, _), _, trainer = built({**settings, "epochs": 1})
    trainer.fit(train_data, valid_data)
    assert trainer.state_file.is_file()
    _, _, _, same = built({**settings, "epochs": 1, "resume": True, "eval_batch_size": 7})
    assert same.state_file == trainer.state_file
    for change in ({"learning_rate": 0.002}, {"seed": 1}, {"codebook_size": 9}):
        _, _, _, other = built({**settings, "epochs": 1, "resume": True, **change})
        assert other.state_file != trainer.state_file


@pytest.mark.parametrize("name", ["item_embeddings", "semantic_ids"])
def test_the_key_of_a_run_depends_on_the_content_of_files(settings, data_path, name):
    """The content of the user's files counts, not just their names."""
    shutil.copy(data_path / "tiny" / "embeddings.npz", "mine")
    key = run_key(experiment.prepare("TIGER", "tiny", {**settings, name: "mine"}))
    with open("mine", "ab") as file:
        file.write(b"more")
    assert run_key(experiment.prepare("TIGER", "tiny", {**settings, name: "mine"})) != key


def test_the_key_of_another_model_depends_on_the_model_that_it_continues(data_path):
    settings = {"data_path": str(data_path), "train_stage": "finetune", "pre_model_path": "mine.pth"}
    keys = []
    for content in (b"one", b"two"):
        Path("mine.pth").write_bytes(content)
        keys.append(run_key(experiment.prepare("S3Rec", "tiny", settings)))
    assert keys[0] != keys[1]


def batches_of(settings, epochs=2):
    """The items and users of every training batch, per epoch."""
    _, (train_data, *_), model, trainer = built({**settings, "epochs": epochs})
    found, loss, train_epoch = [], model.window_loss, trainer._train_epoch

    def noting(items, targets, positions, users, padded):
        found[-1].append((items.tolist(), users.tolist()))
        return loss(items, targets, positions, users, padded)

    model.window_loss = noting
    trainer._train_epoch = lambda *args, **kwargs: found.append([]) or train_epoch(*args, **kwargs)
    trainer.fit(train_data, None, saved=False)
    return found, train_data._dataset


def test_batches_are_shuffled_by_seed_and_epoch(settings):
    (first, second), _ = batches_of(settings)
    (other, _), _ = batches_of({**settings, "seed": 7})
    (again, _), _ = batches_of(settings)
    assert first == again != second
    assert other not in (first, second)
    windows = [sorted(user for _, users in epoch for user in users) for epoch in (first, second, other)]
    assert windows[0] == windows[1] == windows[2]


def test_each_window_is_of_its_user(settings, data_path):
    """The items of a row are consecutive in the training interactions of the row's user, all but the last two."""
    (batches,), dataset = batches_of({**settings, "n_user_tokens": 7}, epochs=1)
    sequences = read_sequences(data_path / "tiny")
    seen = 0
    for items, users in batches:
        for row, user in zip(items, users, strict=True):
            whole = sequences[dataset.id2token("user_id", user)][:-2]
            own = [dataset.id2token("item_id", item) for item in row if item]
            assert any(own == whole[begin : begin + len(own)] for begin in range(len(whole)))
            seen += 1
    assert seen >= len(sequences)


def test_a_metric_that_is_better_when_smaller(settings):
    more = {"metrics": ["NDCG", "GiniIndex"], "valid_metric": "GiniIndex@10", "topk": [10], "epochs": 4, "beam_size": 10}
    result = run(settings, **more)
    scores = [epoch["valid_score"] for epoch in result["epoch_log"]]
    assert scores[0] != min(scores)
    assert result["best_valid_score"] == min(scores) == scores[result["best_epoch"]]
    assert result["valid_score_bigger"] is False
    assert load_checkpoint(result["checkpoint"])["epoch"] == result["best_epoch"]


def test_finished_run_leaves_its_best_checkpoint_only(settings):
    result = run(settings)
    left = list(Path(settings["checkpoint_dir"]).iterdir())
    assert [str(file) for file in left] == [result["checkpoint"]]
    assert left[0].name.startswith("TIGER-")
    assert left[0].suffix == ".pth"


# --- stopping ---


def test_early_stopping_and_the_best_epoch_is_tested(settings):
    settings = {**settings, "ema_decay": 0.0}
    result = run(settings, epochs=60, stopping_step=2, learning_rate=0.02, metric_decimal_place=10, topk=[10], beam_size=10)
    scores = [epoch["valid_score"] for epoch in result["epoch_log"]]
    best, since = -math.inf, 0
    for number, score in enumerate(scores):
        best, since = (score, 0) if score >= best else (best, since + 1)
        assert (since == 3) == (number == len(scores) - 1)  # more than stopping_step evaluations without a better one
    assert len(scores) < 60
    assert result["best_epoch"] == len(scores) - 4
    assert result["best_valid_score"] == max(scores)
    assert "best eval result in epoch " + str(result["best_epoch"]) in log_text()

    state = load_checkpoint(result["checkpoint"])
    assert state["epoch"] == result["best_epoch"]
    _, (_, valid_data, test_data), model, trainer = built(
        {**settings, "metric_decimal_place": 10, "topk": [10], "beam_size": 10}
    )
    model.load_state_dict(state["state_dict"])
    assert trainer.evaluate(test_data, load_best_model=False) == result["test_result"]
    assert trainer.evaluate(valid_data, load_best_model=False)["ndcg@10"] == max(scores)


def test_evaluation_every_other_epoch(settings):
    result = run(settings, epochs=4, eval_step=2)
    assert ["valid_score" in epoch for epoch in result["epoch_log"]] == [False, True, False, True]
    assert load_checkpoint(result["checkpoint"])["epoch"] == result["best_epoch"]
    assert result["best_epoch"] in (1, 3)


def test_without_validation_data_the_last_epoch_is_kept(settings):
    _, (train_data, _, test_data), model, trainer = built(settings)
    assert trainer.fit(train_data, None) == (-math.inf, None)
    assert load_checkpoint(trainer.saved_model_file)["epoch"] == 1
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer.evaluate(test_data)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


# --- the optimizer ---


def test_schedule_by_hand():
    # Ten steps, two of them warm-up, eight of cosine.
    expected = [0.5, 1.0, 1.0, 0.9619398, 0.8535534, 0.6913417, 0.5, 0.3086583, 0.1464466, 0.0380602]
    assert [warmup_cosine(step, 10, 0.2) for step in range(10)] == pytest.approx(expected, abs=1e-7)
    assert warmup_cosine(10, 10, 0.2) == pytest.approx(0)
    assert [warmup_cosine(step, 100, 0.03) for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert warmup_cosine(0, 10, 0.0) == 1


def test_training_follows_the_schedule(settings):
    _, (train_data, valid_data, _), _, trainer = built(
        {**settings, "epochs": 3, "warmup_ratio": 0.25, "learning_rate": 0.01, "ema_decay": 0.0}
    )
    rates = []
    trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.append([group["lr"] for group in optimizer.param_groups])
    )
    trainer.fit(train_data, valid_data)
    targets = len(train_data._dataset)
    steps = 3 * -(-targets // 128)
    assert len(rates) == steps
    assert all(rate == rates[i][:1] * 2 for i, rate in enumerate(rates))
    assert rates[round(0.25 * steps) - 1][0] == pytest.approx(0.01)
    assert max(rates)[0] == pytest.approx(0.01)
    assert rates[0][0] == pytest.approx(0.01 / round(0.25 * steps))
    assert 0 < rates[-1][0] < 0.001


def test_averaged_weights_by_hand(settings):
    """Validation, checkpoints and the model after training use the average; the learning rate stays at its peak."""
    _, (train_data, valid_data, test_data), model, trainer = built(
        {**settings, "epochs": 3, "ema_decay": 0.8, "learning_rate": 0.01, "metric_decimal_place": 10}
    )
    parameters = list(model.parameters())
    average, steps, rates = None, 0, []

    def follow(*_):
        nonlocal average, steps
        steps += 1
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        weights = [p.detach().double().clone() for p in parameters]
        # The mean of the first five steps, then a decay of four fifths.
        share = max(1 - 0.8, 1 / steps)
        average = weights if steps == 1 else [(1 - share) * a + share * w for a, w in zip(average, weights, strict=True)]

    trainer.optimizer.register_step_post_hook(follow)
    _, best = trainer.fit(train_data, valid_data)
    assert steps > 15
    assert rates[-1] == max(rates) == 0.01
    for parameter, expected in zip(parameters, average, strict=True):
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-4, atol=1e-6)
    last = load_checkpoint(trainer.state_file)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, last["state_dict"][name]), name
    trainer.evaluate(test_data)
    assert trainer.evaluate(valid_data, load_best_model=False) == best


def test_averaged_weights_go_on_from_averaged_weights_alone(settings):
    for one, other in ((0.0, 0.9), (0.9, 0.0)):
        _, (train_data, valid_data, _), _, trainer = built({**settings, "epochs": 1, "ema_decay": one})
        trainer.fit(train_data, valid_data)
        *_, second = built({**settings, "epochs": 2, "ema_decay": other})
        with pytest.raises(TigerError, match="another ema_decay"):
            second.resume_checkpoint(trainer.state_file)


def test_weight_decay_shrinks_matrices_only(settings):
    _, _, model, trainer = built({**settings, "learning_rate": 0.1, "weight_decay": 0.5})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()
    kinds = set()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if parameter.dim() >= 2 else 1
        kinds.add(factor)
        torch.testing.assert_close(parameter.detach(), before[name] * factor, msg=name)
    assert kinds == {0.95, 1}


def test_the_betas_reach_the_optimizer(settings):
    _, _, _, trainer = built({**settings, "betas": [0.8, 0.95]})
    assert isinstance(trainer, TIGERTrainer)
    assert [group["betas"] for group in trainer.optimizer.param_groups] == [(0.8, 0.95)] * 2


def test_gradients_are_clipped(settings):
    _, (train_data, valid_data, _), model, trainer = built({**settings, "epochs": 1, "clip_grad_norm": {"max_norm": 0.01}})
    norms = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters())))
    )
    trainer.fit(train_data, valid_data)
    assert norms
    assert max(norms) <= 0.01 * 1.001


def test_mixed_precision(settings):
    losses = {}
    for amp in (False, True):
        _, (train_data, _, test_data), model, trainer = built({**settings, "epochs": 1, "enable_amp": amp})
        kinds = set()
        linear = next(module for module in model.network.modules() if isinstance(module, torch.nn.Linear))
        handle = linear.register_forward_hook(lambda module, inputs, output, kinds=kinds: kinds.add(output.dtype))
        trainer.fit(train_data, None)
        assert kinds == {torch.bfloat16 if amp else torch.float32}
        losses[amp] = trainer.train_loss_dict[0]
        assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in model.parameters())
        kinds.clear()
        result = trainer.evaluate(test_data)
        handle.remove()
        assert kinds == {torch.bfloat16 if amp else torch.float32}
        assert all(np.isfinite(value) for value in result.values())
    assert losses[True] == pytest.approx(losses[False], rel=0.03)
    assert losses[True] != losses[False]


def test_mixed_precision_learns_the_same(settings, tmp_path):
    """Without dropout both runs differ by rounding only, so their losses and metrics stay close."""
    # With this many users NDCG has a standard error of about a fortieth of its value.
    write_dataset(tmp_path / "many", n_users=1000)
    settings["data_path"] = str(tmp_path / "many")
    still = dict.fromkeys(("hidden_dropout_prob", "attn_dropout_prob", "code_dropout_prob"), 0.0)
    found = {
        amp: run(settings, **still, epochs=6, train_batch_size=1024, learning_rate=0.01, enable_amp=amp)
        for amp in (False, True)
    }
    curves = {amp: [epoch["train_loss"] for epoch in result["epoch_log"]] for amp, result in found.items()}
    assert curves[True] == pytest.approx(curves[False], rel=0.01)
    assert curves[False][0] > 1.3 * curves[False][-1]
    for metric in ("best_valid_result", "test_result"):
        scores = {amp: result[metric]["ndcg@10"] for amp, result in found.items()}
        assert scores[True] == pytest.approx(scores[False], rel=0.1)
        assert scores[False] > 0.3 + found[False]["epoch_log"][0]["valid_score"]


def test_a_copy_where_links_do_not_work(monkeypatch):
    def refuse(*files):
        raise OSError("no links here")

    Path("a").write_text("content")
    monkeypatch.setattr("os.link", refuse)
    link_or_copy("a", "b")
    assert Path("b").read_text() == Path("a").read_text() == "content"


def test_a_symbolic_link_stays_one():
    Path("folder").mkdir()
    Path("folder/real").write_text("old")
    Path("link").symlink_to("folder/real")
    with whole_file("link") as temporary:
        temporary.write_text("new")
    assert Path("link").is_symlink()
    assert Path("folder/real").read_text() == "new"
    assert [file.name for file in Path("folder").iterdir()] == ["real"]

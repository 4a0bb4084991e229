"""Long runs: killed, stopped, gone on with, ended early, diverged; what is in the run directory then."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

import fastrnn
from fastrnn import cli, files, training
from fastrnn.checkpoint import checkpoint_path, checkpoints, load_checkpoint, save_checkpoint
from fastrnn.data import prepare_data
from tests.datasets import write_coco

# Everything at once that a step may depend on
OPTIONS = [
    *("--hidden", "12", "--wordvec", "6", "--batch-size", "4", "--epochs", "24", "--max-train", "37"),
    *("--schedule", "cosine", "--warmup", "20", "--lr-decay", "0.95", "--clip-norm", "1", "--bucket"),
    *("--dropout", "0.3", "--dropout-words", "0.2", "--checkpoint-every", "1", "--tensorboard"),
]
ITERATIONS = 240


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    prepare_data(directory / "data", **write_coco(directory / "coco", images=20), min_count=1)
    return directory / "data"


def command(data, out, *options):
    return [sys.executable, "-m", "fastrnn", "train", "--data", data, "--out", out, *OPTIONS, *options]


def train(data, out, *options):
    return cli.main([str(argument) for argument in command(data, out, *options)[3:]])


def metrics(run):
    """The lines, without what no two runs share."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name not in ("seconds", "tokens_per_second")}
        for line in lines
    ]


def assert_same_run(run, other):
    """Models, optimiser state, history and metrics are the same to the last bit."""
    for name in ("best.safetensors", "last.safetensors", f"checkpoints/{checkpoints_of(run)[0]}"):
        (arrays, _), (others, _) = (files.read_tensors(each / name) for each in (run, other))
        assert arrays.keys() == others.keys()
        for key, array in arrays.items():
            assert array.tobytes() == others[key].tobytes(), (name, key)
    assert metrics(run) == metrics(other)


def checkpoints_of(run):
    return [path.name for path in checkpoints(run / "checkpoints")]


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train(data, run) == 0
    assert len(metrics(run)) == ITERATIONS + 24
    return run


# ---------------------------------------------------------------------------------------------------
# Killed and stopped


def test_kill_9_at_random_moments(data, uninterrupted, tmp_path):
    """Twenty times: some while it starts, most some iterations on, which are writing for the most part."""
    run, rng = tmp_path / "run", np.random.default_rng()
    killed = 0
    while killed < 20:
        wanted = lines_of(run) + rng.integers(1, 12)
        process = subprocess.Popen(command(data, run, "--resume"), stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + (rng.uniform(0, 1.5) if killed % 4 == 0 else 60)
        while lines_of(run) < wanted and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.005))  # an iteration
        process.kill()
        if process.wait() == 0:
            break
        killed += 1
    assert killed >= 15, "it ended before it was killed often enough"
    assert len(metrics(run)) < ITERATIONS + 24
    assert train(data, run, "--resume") == 0
    assert_same_run(run, uninterrupted)
    assert not list(run.glob("**/.*"))


def lines_of(run):
    log = run / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals(data, uninterrupted, tmp_path, signum):
    """A checkpoint, the newest model and one line of what to do; the run goes on as if nothing had been."""
    run = tmp_path / "run"
    process = subprocess.Popen(
        command(data, run, "--checkpoint-every", "1000"), stderr=subprocess.PIPE, text=True
    )
    while not (run / "metrics.jsonl").exists() or len(metrics_or_none(run)) < 34:
        time.sleep(0.005)
    process.send_signal(signum)
    _, error = process.communicate(timeout=60)
    iteration = metrics(run)[-1]["iteration"]
    assert process.returncode == 128 + signum
    assert error.splitlines()[-1] == (
        f"fastrnn: stopped by {signal.Signals(signum).name} after iteration {iteration}; to go on: "
        f"fastrnn train --out {run} --resume"
    )
    assert checkpoints_of(run)[0] == f"iteration-{iteration:09}.safetensors"
    fastrnn.CaptioningRNN.load(run / "last.safetensors")
    assert cli.main(["train", "--out", str(run), "--resume", "--checkpoint-every", "1"]) == 0
    assert_same_run(run, uninterrupted)


def metrics_or_none(run):
    try:
        return metrics(run)
    except ValueError:  # a line is being written
        return []


def test_a_second_signal_ends_it_at_once(data, tmp_path):
    slow = f"""
import sys, time
from fastrnn import cli, training
loss = training.CaptioningRNN.loss
def slowly(*arguments, **options):
    print("step", flush=True)
    time.sleep(60)
training.CaptioningRNN.loss = slowly
sys.exit(cli.main({[str(a) for a in command(data, tmp_path / "run")[3:]]}))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", slow], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "step\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130


@pytest.mark.parametrize("when", ["validation", "last validation", "first step"])
def test_a_signal_while_it_validates(data, uninterrupted, tmp_path, when, monkeypatch, capsys):
    """The epoch's steps are done, its end is not: that comes first when it goes on."""
    run, evaluated = tmp_path / "run", []
    evaluate_loss = training.CaptioningRNN.evaluate_loss
    at = {"validation": 3, "last validation": 24, "first step": 1}[when]

    def interrupted(model, *batch):
        evaluated.append(1)
        if len(evaluated) == at and when != "first step":
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate_loss(model, *batch)

    loss = training.CaptioningRNN.loss

    def at_first(model, *batch, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(training.CaptioningRNN, "loss", loss)
        return loss(model, *batch, **options)

    monkeypatch.setattr("fastrnn.evaluation.BATCH", 20)  # two minibatches of val captions
    monkeypatch.setattr(training.CaptioningRNN, "evaluate_loss", interrupted)
    if when == "first step":
        monkeypatch.setattr(training.CaptioningRNN, "loss", at_first)
    assert train(data, run) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after iteration" in capsys.readouterr().err
    monkeypatch.undo()
    assert train(data, run, "--resume") == 0
    for name in ("iteration", "loss", "train_loss"):
        assert [m.get(name) for m in metrics(run)] == [m.get(name) for m in metrics(uninterrupted)]


# ---------------------------------------------------------------------------------------------------
# Going on


def test_going_on_with_a_run_that_is_done(data, uninterrupted, tmp_path, capsys):
    """Nothing changes; with more epochs it trains on."""
    run = tmp_path / "run"
    settings = ("--warmup", "0", "--schedule", "constant")
    assert train(data, run, "--epochs", "2", *settings) == 0
    before = {path: path.read_bytes() for path in run.rglob("*.safetensors")}
    assert cli.main(["train", "--out", str(run), "--resume"]) == 0
    captured = capsys.readouterr()
    assert "best val loss" in captured.out
    assert "2 epochs are done, nothing is left to do; --epochs asks for more" in captured.out + captured.err
    assert {path: path.read_bytes() for path in run.rglob("*.safetensors")} == before
    assert cli.main(["train", "--out", str(run), "--resume", "--epochs", "3"]) == 0
    assert train(data, tmp_path / "three", "--epochs", "3", *settings) == 0
    assert_same_run(run, tmp_path / "three")
    assert (run / "best.safetensors").read_bytes() == (tmp_path / "three/best.safetensors").read_bytes()
    assert cli.main(["train", "--out", str(run), "--resume", "--epochs", "2"]) == 2
    assert "epochs: the run has done 3, got 2" in capsys.readouterr().err
    assert training.read_config(run / "config.toml")["epochs"] == 3


def test_the_learning_rate_may_change(data, tmp_path):
    run = tmp_path / "run"
    plain = ("--epochs", "1", "--schedule", "constant", "--warmup", "0", "--lr", "0.01", "--lr-decay", "0.5")
    assert train(data, run, *plain) == 0
    assert cli.main(["train", "--out", str(run), "--resume", "--epochs", "2", "--lr", "0.03"]) == 0
    rates = [line["learning_rate"] for line in metrics(run) if "loss" in line]
    np.testing.assert_allclose(rates, [0.01] * 10 + [0.015] * 10)


def test_what_cannot_change(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert cli.main(arguments(data, run)) == 0
    contents = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    for option, value, stored in (
        ("--hidden", "13", "12"),
        ("--seed", "1", "0"),
        ("--batch-size", "5", "4"),
        ("--cell", "rnn", "'lstm'"),
    ):
        assert cli.main(["train", "--out", str(run), "--resume", option, value]) == 2
        error = capsys.readouterr().err
        name = option[2:].replace("-", "_")
        assert f"fastrnn: {name}: the run has {stored} and cannot go on with" in error
    prepare_data(tmp_path / "other", **write_coco(tmp_path / "coco", images=20, seed=1), min_count=1)
    shutil.copytree(data, tmp_path / "features")
    with h5py.File(tmp_path / "features" / "train2014_vgg16_fc7.h5", "a") as file:
        file["features"][...] = file["features"][()][::-1]
    for name in ("other", "features"):
        assert cli.main(["train", "--out", str(run), "--resume", "--data", str(tmp_path / name)]) == 2
        assert f"{name}: the data are not those that the run began with" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "--epochs", "2"]) == 2
    assert "Missing option '--out': the run to go on with" in capsys.readouterr().err
    assert cli.main(["train", "--out", str(tmp_path / "nowhere"), "--resume"]) == 2
    assert "nowhere is no run to go on with" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == contents


def test_killed_before_it_had_settings_or_a_checkpoint(data, uninterrupted, tmp_path, capsys):
    """The same command begins it; what is not the run's own is in the way."""
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.toml.0a1b2c3d").write_text("data =")
    assert train(data, run) == 2
    assert "run: exists already and is not an empty directory" in capsys.readouterr().err
    (run / "notes").touch()
    assert train(data, run, "--resume") == 2
    assert "run: exists already and is not an empty directory" in capsys.readouterr().err
    (run / "notes").unlink()
    assert train(data, run, "--resume") == 0
    shutil.rmtree(run / "checkpoints")
    for name in ("metrics.jsonl", "last.safetensors"):  # written later than the settings
        (run / name).unlink()
    assert cli.main(["train", "--out", str(run), "--resume"]) == 0
    assert_same_run(run, uninterrupted)


def test_damaged_checkpoints(data, uninterrupted, tmp_path, capsys):
    """The newest that is whole is taken; the others stay, under another name."""
    run = tmp_path / "run"
    assert train(data, run, "--epochs", "3", "--schedule", "constant", "--keep", "3") == 0
    assert checkpoints_of(run) == [f"iteration-{i:09}.safetensors" for i in (30, 29, 28)]
    newest, second, third = checkpoints(run / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:1000])
    second.write_bytes(b"")
    assert cli.main(["train", "--out", str(run), "--resume"]) == 0
    assert sorted(path.name for path in newest.parent.glob("*.damaged")) == [
        "iteration-000000029.damaged", "iteration-000000030.damaged",
    ]  # fmt: skip
    assert train(data, tmp_path / "whole", "--epochs", "3", "--schedule", "constant") == 0
    assert_same_run(run, tmp_path / "whole")
    for path in checkpoints(run / "checkpoints"):
        path.write_bytes(b"x")
    capsys.readouterr()
    assert cli.main(["train", "--out", str(run), "--resume"]) == 2
    assert "nothing is left to go on from, start another run" in capsys.readouterr().err
    assert third.exists()
    shutil.rmtree(run / "checkpoints")
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert cli.main(["train", "--out", str(run), "--resume"]) == 2
    assert f"{run}: has a model but no checkpoint to go on from" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('hidden = "abc"', "config.toml: hidden: input should be a valid integer, got 'abc'"),
        ("wordvec = 1.5", "config.toml: wordvec: input should be a valid integer, got 1.5"),
        ('lr = "x"', "config.toml: lr: input should be a valid number, got 'x'"),
        ("data = 3", "config.toml: data: input should be a valid string, got 3"),
        ('tensorboard = "no"', "config.toml: tensorboard: input should be a valid boolean, got 'no'"),
        ("keep = 0", "keep: input should be greater than or equal to 1, got 0"),
        ("seed = -1", "seed: input should be greater than or equal to 0, got -1"),
        ("max_train = 0", "max_train: input should be greater than or equal to 1, got 0"),
        ("wings = 2", "config.toml: unknown settings wings"),
        ("batch_size = 7", "config.toml: batch_size is 7, in the checkpoint 4"),
        ("seed = 7", "config.toml: seed is 7, in the checkpoint 0"),
        ("hidden = 7", "config.toml: hidden is 7, in the checkpoint 12"),
    ],
)
def test_a_config_that_was_edited(data, tmp_path, capsys, line, message):
    run, config = tmp_path / "run", tmp_path / "run" / "config.toml"
    assert cli.main(arguments(data, run)) == 0
    name = line.split(" = ")[0]
    kept = [each for each in config.read_text().splitlines() if not each.startswith(f"{name} =")]
    config.write_text("\n".join([*kept, line]))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert cli.main(["train", "--out", str(run), "--resume", "--epochs", "3"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert message in error
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_metrics_that_were_damaged(data, tmp_path):
    """Lines that are none are left out, the others stay."""
    run = tmp_path / "run"
    assert cli.main(arguments(data, run)) == 0
    log = run / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text(
        "".join([*lines[:3], "garbage\n", *lines[3:6], '[1]\n{"loss": 1}\n', *lines[6:], '{"iter'])
    )
    assert cli.main(["train", "--out", str(run), "--resume", "--epochs", "3"]) == 0
    assert cli.main([*arguments(data, tmp_path / "whole"), "--epochs", "3"]) == 0
    assert metrics(run) == metrics(tmp_path / "whole")


def test_the_number_of_threads_stays(data, tmp_path):
    threads = fastrnn.get_num_threads()
    try:
        run = tmp_path / "run"
        assert cli.main([*arguments(data, run), "--threads", "1"]) == 0
        fastrnn.set_num_threads(2)
        assert cli.main(["train", "--out", str(run), "--resume", "--epochs", "3"]) == 0
        assert (fastrnn.get_num_threads(), training.read_config(run / "config.toml")["threads"]) == (1, 1)
    finally:
        fastrnn.set_num_threads(threads)


def test_one_process_at_a_time(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert cli.main(arguments(data, run)) == 0
    holder = os.open(run, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    capsys.readouterr()
    assert cli.main(["train", "--out", str(run), "--resume", "--epochs", "3"]) == 2
    assert f"{run}: another process trains in it" in capsys.readouterr().err
    os.close(holder)
    assert cli.main(["train", "--out", str(run), "--resume", "--epochs", "3"]) == 0


def test_a_checkpoint_as_a_file(tmp_path):
    arrays = {"params.w": np.arange(3.0), "loss_history": np.array([1.5])}
    plain = {
        "iteration": 1,
        "generator": np.random.default_rng(3).bit_generator.state,
        "rate": np.float64(0.1),
    }
    path = checkpoint_path(tmp_path, 12)
    save_checkpoint(path, (arrays, plain), {"note": [1, "two"]})
    (loaded, state), notes = load_checkpoint(path)
    assert (state, notes) == (plain, {"note": [1, "two"]})
    np.testing.assert_array_equal(loaded["params.w"], arrays["params.w"])
    for i in (7, 100):
        save_checkpoint(checkpoint_path(tmp_path, i), (arrays, plain))
    (tmp_path / "iteration-1.safetensors").touch()
    (tmp_path / ".iteration-000000008.safetensors.abcd1234").touch()
    assert [path.name[10:19] for path in checkpoints(tmp_path)] == ["000000100", "000000012", "000000007"]
    before = path.read_bytes()
    arrays["params.w"][1] = np.inf
    with pytest.raises(ValueError, match=r"params\.w: has NaN or infinite values at iteration 1"):
        save_checkpoint(path, (arrays, plain))
    assert path.read_bytes() == before
    files.write_tensors(path, arrays, {})
    with pytest.raises(ValueError, match="expected a checkpoint saved as"):
        load_checkpoint(path)


def test_a_full_disk(data, tmp_path, monkeypatch, capsys):
    """A checkpoint that cannot be written ends the run with its name; the one before is there."""
    run, write = tmp_path / "run", type(tmp_path).write_bytes

    def full(path, content):
        if "iteration-000000007" in path.name:
            write(path, content[:100])
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(type(tmp_path), "write_bytes", full)
    assert train(data, run) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert "iteration-000000007.safetensors" in error
    monkeypatch.undo()
    assert checkpoints_of(run)[0] == "iteration-000000006.safetensors"
    assert not list(run.glob("**/.*"))


# ---------------------------------------------------------------------------------------------------
# Ends


def test_a_loss_that_is_not_finite(data, tmp_path, monkeypatch, capsys):
    """It says where that began and which parameters; the last good checkpoint is there."""
    run, loss = tmp_path / "run", training.CaptioningRNN.loss

    def spoilt(model, *batch, **options):
        value, grads = loss(model, *batch, **options)
        if len(seen) == 12:
            grads["Wh"][0, 0] = np.nan
        seen.append(value)
        return value, grads

    for options, what, at in (((), "loss", 14), (("--clip-norm", "1"), "gradient norm", 13)):
        seen = []
        monkeypatch.setattr(training.CaptioningRNN, "loss", spoilt)
        shutil.rmtree(run, ignore_errors=True)
        assert cli.main([*arguments(data, run), "--checkpoint-every", "5", *options]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"run: the {what} is nan at iteration {at}: lower the learning rate (--lr)" in error
        assert "Wh" in error.split("after it ")[1]
        assert "the checkpoint of iteration 10 is good, --resume goes on from there" in error
        assert checkpoints_of(run)[0] == "iteration-000000010.safetensors"
        model = fastrnn.CaptioningRNN.load(run / "last.safetensors")
        assert all(np.isfinite(w).all() for w in model.params.values())
        monkeypatch.undo()
        assert cli.main(["train", "--out", str(run), "--resume", "--lr", "1e-4"]) == 0


def arguments(data, run):
    small = ("--hidden", "12", "--wordvec", "6", "--batch-size", "4", "--epochs", "2")
    return ["train", "--data", str(data), "--out", str(run), *small]


def test_no_checkpoint_of_parameters_that_are_not_finite(data, tmp_path, monkeypatch, capsys):
    run, loss = tmp_path / "run", training.CaptioningRNN.loss

    def spoilt(model, *batch, **options):
        value, grads = loss(model, *batch, **options)
        grads["b_vocab"][2] = np.inf
        return value, grads

    monkeypatch.setattr(training.CaptioningRNN, "loss", spoilt)
    assert cli.main([*arguments(data, run), "--checkpoint-every", "1"]) == 2
    assert "the b_vocab has values that are not finite at iteration 1" in capsys.readouterr().err
    assert checkpoints_of(run) == []


def test_early_stopping(data, tmp_path, monkeypatch, capsys):
    """After so many epochs without a better score; the best model is kept; going on does nothing."""
    run = tmp_path / "run"
    losses = iter([3.0, 2.0, 2.5, 1.0, 1.0, 1.5, 0.5])
    monkeypatch.setattr(training, "mean_loss", lambda *_: next(losses))
    assert cli.main([*arguments(data, run), "--epochs", "9", "--patience", "2"]) == 0
    captured = capsys.readouterr()
    assert "best val loss 1.000" in captured.out
    assert "no better val loss for 2 epochs: the end" in captured.out + captured.err
    assert [line["val_loss"] for line in metrics(run) if "epoch" in line] == [3.0, 2.0, 2.5, 1.0, 1.0, 1.5]
    assert cli.main(["train", "--out", str(run), "--resume"]) == 0
    assert next(losses) == 0.5


def test_the_best_model_by_bleu(data, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    options = ("--score", "bleu", "--epochs", "30", "--lr", "0.02", "--patience", "12")
    assert cli.main([*arguments(data, run), *options]) == 0
    out = capsys.readouterr().out
    epochs = [line for line in metrics(run) if "epoch" in line]
    scores = [line["val_bleu_4"] for line in epochs]
    assert max(scores) > 0.3
    assert f"best val BLEU-4 {max(scores):.3f}" in out
    assert cli.main(["evaluate", str(run)]) == 0
    evaluated = json.loads((run / "evaluation-val.json").read_text())
    np.testing.assert_allclose(evaluated["bleu_4"], max(scores), atol=1e-4)


def test_tensorboard(data, uninterrupted, tmp_path):
    """Events say what the metrics say."""
    from tensorboardX.proto.event_pb2 import Event

    def scalars(run):
        found = {}
        for path in sorted((run / "tensorboard").iterdir()):
            content = path.read_bytes()
            while content:
                size = int.from_bytes(content[:8], "little")
                event = Event.FromString(content[12 : 12 + size])
                content = content[16 + size :]
                for value in event.summary.value:
                    found[value.tag, event.step] = value.simple_value
        return found

    expected = {
        (name, line["iteration"]): value
        for line in metrics(uninterrupted)
        for name, value in line.items()
        if name not in ("iteration", "epoch")
    }
    found = scalars(uninterrupted)
    assert {key for key in found if key[0] not in ("seconds", "tokens_per_second")} == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-6)


def test_without_tensorboardx(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert train(data, tmp_path / "run") == 2
    assert "pip install 'fastrnn[tensorboard]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"schedule": "linear"}, "schedule: input should be 'constant' or 'cosine', got 'linear'"),
        ({"score": "meteor"}, "score: input should be 'loss' or 'bleu', got 'meteor'"),
        ({"epochs": 0}, "epochs: input should be greater than or equal to 1, got 0"),
        ({"patience": 0}, "patience: input should be greater than or equal to 1, got 0"),
        ({"warmup": -1}, "warmup: input should be greater than or equal to 0, got -1"),
        ({"lr": -1.0}, "lr: input should be greater than or equal to 0, got -1.0"),
        ({"lr_decay": float("nan")}, "lr_decay: input should be a finite number, got nan"),
        ({"dropout": 1.0}, "dropout: input should be less than 1, got 1.0"),
        ({"dropout_words": -0.5}, "dropout_words: input should be greater than or equal to 0, got -0.5"),
        ({"clip_norm": -1.0}, "clip_norm: input should be greater than 0, got -1.0"),
        ({"clip_norm": float("inf")}, "clip_norm: input should be a finite number, got inf"),
        ({"seed": 2**32}, "seed: input should be less than 4294967296, got 4294967296"),
        ({"update_rule": "adamw"}, "update_rule: expected the name of a rule such as .*, got 'adamw'"),
        ({"warmup": 10}, "warmup: expected fewer than the 10 iterations of 10 epochs, got 10"),
        ({"hidden": "many"}, "hidden: input should be a valid integer, got 'many'"),
        ({"wings": 2}, "unknown settings wings"),
    ],
)
def test_impossible_settings(data, tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        training.train(tmp_path / "run", **({"data": str(data), "hidden": 3, "wordvec": 3} | setting))
    assert not (tmp_path / "run").exists()

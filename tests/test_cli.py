"""The command line as a person uses it: whole journeys, and one line with exit code 2 for every mistake."""

import itertools
import json
import subprocess
import sys
import time
import tomllib

import h5py
import numpy as np
import pytest
from PIL import Image

import fastrnn
from fastrnn import backend, cli, evaluation, runs, training
from fastrnn.data.prepare import words
from fastrnn.images import placeholder_image
from tests.datasets import edit_json, write_coco, write_h5


@pytest.fixture(autouse=True)
def _undisturbed(monkeypatch):
    monkeypatch.setattr(backend, "_in_process", [])


@pytest.fixture
def coco(tmp_path):
    return write_coco(tmp_path / "coco", images=20)


def prepare_arguments(coco, out):
    options = [text for name, path in coco.items() for text in (f"--{name.replace('_', '-')}", str(path))]
    return ["data", "prepare", str(out), *options, "--min-count", "1"]


@pytest.fixture
def data(coco, tmp_path, capsys):
    assert cli.main(prepare_arguments(coco, tmp_path / "data")) == 0
    capsys.readouterr()
    return tmp_path / "data"


SMALL = ["--hidden", "12", "--wordvec", "6", "--batch-size", "8", "--epochs", "3"]


def train(data, out, *options):
    return cli.main(["train", "--data", str(data), "--out", str(out), *SMALL, *options])


def records(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "epoch" not in line], [line for line in lines if "epoch" in line]


def test_prepare_and_info(coco, tmp_path, capsys):
    assert cli.main([*prepare_arguments(coco, tmp_path / "data"), "--pca", "3"]) == 0
    out = capsys.readouterr().out
    assert "train: 20 images, 40 captions, 0 left out (0.0%), 0.0% of words <UNK>" in out
    assert cli.main(["data", "info", str(tmp_path / "data")]) == 0
    out = capsys.readouterr().out
    assert "features    3 wide, a PCA" in out
    assert "train       40 captions (40, 17) int32" in out
    assert "words       3 to 6, 4.5 on average" in out
    assert "<START> a " in out


def test_train_and_evaluate(data, tmp_path, capsys):
    run = tmp_path / "run"
    options = ("--cell", "lstm", "--lr", "0.02", "--lr-decay", "0.9", "--seed", "5", "--epochs", "40")
    assert train(data, run, *options) == 0
    captured = capsys.readouterr()
    assert "best val loss" in captured.out
    assert "tokens/s" in captured.err
    steps, epochs = records(run)
    assert [line["iteration"] for line in steps] == list(range(1, 201))
    assert [line["epoch"] for line in epochs] == list(range(1, 41))
    assert steps[-1]["loss"] < 0.3 * steps[0]["loss"]
    assert epochs[0]["tokens_per_second"] > 0
    np.testing.assert_allclose(epochs[1]["train_loss"], np.mean([line["loss"] for line in steps[5:10]]))

    opened = fastrnn.open_data(data)
    best = min(line["val_loss"] for line in epochs)
    for name, loss in (("best", best), ("last", epochs[-1]["val_loss"])):
        model = fastrnn.CaptioningRNN.load(run / f"{name}.safetensors")
        np.testing.assert_allclose(evaluation.mean_loss(model, opened.val), loss, rtol=1e-6)

    assert cli.main(["evaluate", str(run)]) == 0
    out = capsys.readouterr().out
    result = json.loads((run / "evaluation-val.json").read_text())
    assert f"BLEU-1  {result['bleu_1']:.4f}" in out
    assert result["protocol"] in out
    assert result["bleu_1"] > 0.85
    assert result["images"] == len(result["captions"]) == 20
    assert result["captions"][0]["image"] == opened.val.urls[0]
    assert result["captions"][0]["caption"].split()[0] in ("a", "the")
    assert cli.main(["evaluate", str(run), "--split", "train"]) == 0
    assert (run / "evaluation-train.json").exists()


def test_a_run_is_its_settings(data, tmp_path, monkeypatch):
    """The same losses as from a solver that is told the same in Python."""
    options = (
        "--cell",
        "rnn",
        "--lr",
        "0.01",
        "--lr-decay",
        "0.5",
        "--update-rule",
        "rmsprop",
        "--seed",
        "3",
    )
    threads = fastrnn.get_num_threads()
    try:
        assert train(data, tmp_path / "run", *options, "--threads", "1", "--backend", "numpy") == 0
        assert fastrnn.get_num_threads() == 1
        assert backend._in_process[-1][0] == "numpy"
    finally:
        fastrnn.set_num_threads(threads)
    opened = fastrnn.open_data(data)
    np.random.seed(3)
    model = fastrnn.CaptioningRNN(opened.word_to_idx, 6, 6, 12, "rnn")
    solver = fastrnn.CaptioningSolver(
        model, opened, update_rule="rmsprop", optim_config={"learning_rate": 0.01}, lr_decay=0.5,
        batch_size=8, num_epochs=3, rng=3, verbose=False,
    )  # fmt: skip
    solver.train()
    steps, epochs = records(tmp_path / "run")
    np.testing.assert_allclose([line["loss"] for line in steps], solver.loss_history, rtol=1e-5)
    val = opened.val
    whole = model.evaluate_loss(np.asarray(val.features[val.image_idxs]), val.captions)
    np.testing.assert_allclose(epochs[-1]["val_loss"], whole, rtol=1e-5)
    monkeypatch.setattr(evaluation, "BATCH", 7)  # 40 captions: the last minibatch is shorter
    np.testing.assert_allclose(evaluation.mean_loss(model, val), whole, rtol=1e-5)


def test_the_best_model_is_that_of_the_lowest_val_loss(data, tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(training, "mean_loss", lambda *_: next(losses))
    assert train(data, tmp_path / "run") == 0
    losses = iter([3.0, 1.0])
    assert train(data, tmp_path / "shorter", "--epochs", "2") == 0
    best, last, second = (
        fastrnn.CaptioningRNN.load(tmp_path / name).params["Wh"]
        for name in ("run/best.safetensors", "run/last.safetensors", "shorter/last.safetensors")
    )
    np.testing.assert_array_equal(best, second)
    assert not np.array_equal(last, second)


def test_unknown_words_stay_in_the_output_and_markers_do_not():
    class Parrot:
        def sample(self, features, max_length):
            return np.array([[1, 4, 3, 0, 4, 2, 4], [4, 4, 4, 4, 4, 4, 3]])[:, :max_length]

    words = ["<NULL>", "<START>", "<END>", "<UNK>", "a"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "MAX_LENGTH", 7)
        captions = evaluation.captions_of(Parrot(), np.zeros((2, 1)), words)
    assert captions == [["a", "<UNK>", "a"], [*"aaaaaa", "<UNK>"]]


def test_one_seed_one_run(data, tmp_path):
    """The same losses to the last bit; another seed gives others; a run's config repeats it."""
    for name, options in (("a", ()), ("b", ()), ("c", ("--seed", "1"))):
        assert train(data, tmp_path / name, *options) == 0
    config = str(tmp_path / "a" / "config.toml")
    assert cli.main(["train", "--config", config, "--out", str(tmp_path / "d")]) == 0
    losses = {name: [line["loss"] for line in records(tmp_path / name)[0]] for name in "abcd"}
    assert losses["a"] == losses["b"] == losses["d"] != losses["c"]
    assert tomllib.loads((tmp_path / "d" / "config.toml").read_text()) == tomllib.loads(
        (tmp_path / "a" / "config.toml").read_text()
    )


def test_config_file(data, tmp_path):
    """The file's settings stand in for defaults; the command line has precedence."""
    path = tmp_path / "config.toml"
    path.write_text(f'data = "{data}"\nhidden = 7\nwordvec = 5\nbatch-size = 10\nepochs = 1\ncell = "rnn"\n')
    arguments = ["train", "--config", str(path), "--wordvec", "4", "--max-train", "25"]
    assert cli.main([*arguments, "--out", str(tmp_path / "run")]) == 0
    resolved = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert resolved == {
        "data": str(data), "cell": "rnn", "hidden": 7, "wordvec": 4, "batch_size": 10, "epochs": 1,
        "lr": 1e-3, "lr_decay": 1.0, "schedule": "constant", "warmup": 0, "dropout": 0.0,
        "dropout_words": 0.0, "update_rule": "adam", "max_train": 25, "bucket": False, "score": "loss",
        "checkpoint_every": 1000, "keep": 2, "tensorboard": False, "seed": 0,
        "backend": fastrnn.current_backend(), "threads": fastrnn.get_num_threads(),
    }  # fmt: skip
    assert len(records(tmp_path / "run")[0]) == 3
    model = fastrnn.CaptioningRNN.load(tmp_path / "run" / "last.safetensors")
    assert model.params["Wx"].shape == (4, 7)


def test_default_run_directory(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--data", "data", *SMALL, "--epochs", "1"]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("data-lstm-")
    assert f"fastrnn evaluate runs/{run.name}" in capsys.readouterr().out


def test_the_run_keeps_the_feature_pca(coco, tmp_path):
    assert cli.main([*prepare_arguments(coco, tmp_path / "data"), "--pca", "3"]) == 0
    assert train(tmp_path / "data", tmp_path / "run", "--epochs", "1") == 0
    model = fastrnn.CaptioningRNN.load(tmp_path / "run" / "best.safetensors")
    np.testing.assert_array_equal(model.feature_pca.mean, fastrnn.open_data(tmp_path / "data").pca.mean)


def test_pictures(data, tmp_path, capsys):
    """loss.png with the training; captions.png with a sample, grey where there is no picture."""
    run = tmp_path / "run"
    assert train(data, run) == 0
    assert "    it says of 2" in capsys.readouterr().out
    assert fastrnn.load_image(run / "loss.png").ndim == 3
    assert cli.main(["sample", str(run), "--count", "5"]) == 0
    out = capsys.readouterr().out
    assert "5 of 5 pictures could not be reached or read" in out
    assert f"drawn in {run / 'captions.png'}" in out
    assert fastrnn.load_image(run / "captions.png").ndim == 3
    opened = fastrnn.open_data(data)
    lines = out.splitlines()
    names = [line.split(":")[0] for line in lines[:10:2]]
    assert len(set(names) & set(opened.val.urls)) == 5
    numbers = [opened.val.urls.index(name) for name in names]
    assert [line.removeprefix("    true: ") for line in lines[1:10:2]] == [
        opened.references("val")[number][0] for number in numbers
    ]
    assert cli.main(["sample", str(run), "--count", "5", "--seed", "1"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()[:10:2]] != names

    model = fastrnn.CaptioningRNN.load(run / "best.safetensors")
    said = fastrnn.decode_captions(model.sample(opened.train.features[3:4]), opened.idx_to_word)[0]
    arguments = ["sample", str(run), "3", opened.train.urls[3], "--split", "train"]
    assert cli.main([*arguments, "--out", str(tmp_path / "two.png")]) == 0
    out = capsys.readouterr().out
    assert out.count(f"{opened.train.urls[3]}: {said.removesuffix(' <END>')}\n") == 2
    assert (tmp_path / "two.png").exists()


def test_captions_of_a_data_set_without_references(data, tmp_path, capsys):
    assert train(data, tmp_path / "run", "--epochs", "1") == 0
    opened = fastrnn.open_data(data)
    raw = opened.true_captions("val", [4])[0]
    (data / "references.json").unlink()
    assert opened.true_captions("val", [4]) == [" ".join(words(raw))]
    assert cli.main(["sample", str(tmp_path / "run"), "4"]) == 0
    assert f"true: {' '.join(words(raw))}\n" in capsys.readouterr().out


def test_evaluation_without_raw_captions(data, tmp_path, capsys):
    """As of the published files: against what the tokens say; images without a caption do not count."""
    assert train(data, tmp_path / "run", "--epochs", "20", "--lr", "0.02") == 0
    assert cli.main(["evaluate", str(tmp_path / "run")]) == 0
    raw = json.loads((tmp_path / "run" / "evaluation-val.json").read_text())
    assert "; raw references;" in raw["protocol"]
    (data / "references.json").unlink()
    assert cli.main(["evaluate", str(tmp_path / "run")]) == 0
    decoded = json.loads((tmp_path / "run" / "evaluation-val.json").read_text())
    assert (
        "; references of at most 15 words, rare ones <UNK>, as the data set has them;" in decoded["protocol"]
    )
    assert decoded["bleu_4"] == raw["bleu_4"] > 0.1  # all words are in the vocabulary, all captions short
    opened = fastrnn.open_data(data)
    kept = opened.val.image_idxs != 7
    change_captions(data, val_captions=opened.val.captions[kept], val_image_idxs=opened.val.image_idxs[kept])
    references = fastrnn.open_data(data).references("val")
    assert [len(of_image) for of_image in references] == [2] * 7 + [0] + [2] * 12
    assert fastrnn.open_data(data).true_captions("val", [7, 8]) == ["", references[8][0]]
    outputs = [caption["caption"].split() for caption in decoded["captions"]]
    without = [i for i in range(20) if i != 7]
    assert evaluation.bleu_of(outputs, references) == evaluation.bleu_of(
        [outputs[i] for i in without], [references[i] for i in without]
    )


def change_captions(data, **changed):
    with h5py.File(data / "coco2014_captions.h5") as file:
        content = {name: file[name][()] for name in file}
    write_h5(data / "coco2014_captions.h5", **(content | changed))


def test_without_matplotlib_there_is_a_word_instead_of_a_picture(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run = tmp_path / "run"
    assert train(data, run, "--epochs", "1") == 0
    assert "fastrnn: no loss.png: drawing needs matplotlib: pip install" in capsys.readouterr().err
    assert cli.main(["sample", str(run), "2"]) == 0
    captured = capsys.readouterr()
    assert "true: " in captured.out
    assert "fastrnn: no captions.png: drawing needs matplotlib" in captured.err
    assert cli.main(["sample", str(run), "2", "--out", str(tmp_path / "asked.png")]) == 2
    assert not list(tmp_path.rglob("*.png"))


def test_the_embedded_data_set(tmp_path, capsys, monkeypatch):
    """Drawn, learnt, and captions of its pictures, of copies of them and of the user's own."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "shapes", "data", "--train", "40", "--val", "9", "--seed", "2"]) == 0
    assert "train: 40 pictures, 200 captions" in capsys.readouterr().out
    assert train("data", "run") == 0
    capsys.readouterr()
    assert cli.main(["sample", "run", "8", "pictures/val_00008.png", "data/pictures/val_00008.png"]) == 0
    by_number, true_caption, by_name, _, as_file, drawn = capsys.readouterr().out.splitlines()
    assert by_number == by_name == as_file.removeprefix("data/")
    assert true_caption.startswith("    true: a ")
    assert drawn == "drawn in run/captions.png"

    Image.new("RGB", (400, 300), "white").save("mine.png")
    assert cli.main(["sample", "run", "mine.png"]) == 0
    assert capsys.readouterr().out.startswith("mine.png: ")
    (tmp_path / "mine.png").write_bytes(b"no picture")
    assert "mine.png: not a readable picture" in refused(["sample", "run", "mine.png"], capsys)
    (tmp_path / "data" / "pictures" / "val_00003.png").write_bytes(b"no picture")
    drawn = []
    monkeypatch.setattr(runs, "plot_captions", lambda path, title, *columns: drawn.append(columns))
    assert cli.main(["sample", "run", "3", "8", "mine-not.png"]) == 2
    assert cli.main(["sample", "run", "3", "8"]) == 0
    out = capsys.readouterr().out
    assert "1 of 2 pictures could not be reached or read; they are grey" in out
    ((pictures, captions, true_captions),) = drawn
    np.testing.assert_array_equal(pictures[0], placeholder_image())
    np.testing.assert_array_equal(pictures[1], fastrnn.load_image("data/pictures/val_00008.png"))
    assert f"pictures/val_00008.png: {captions[1]}\n    true: {true_captions[1]}\n" in out
    monkeypatch.setattr(cli, "_IN_GRID", 4)
    assert cli.main(["sample", "run", "--count", "7"]) == 0
    assert "the first 4 are drawn in run/captions.png" in capsys.readouterr().out
    assert len(drawn[1][0]) == 4
    assert "data: exists already" in refused(["data", "shapes", "data"], capsys)
    assert "run: is a directory" in refused(["sample", "run", "--out", "run"], capsys)
    assert "out: expected a name that ends in .png" in refused(["sample", "run", "--out", "a.jpg"], capsys)
    (tmp_path / "run" / "best.safetensors").unlink()
    assert "no such file: the training ended before" in refused(["sample", "run"], capsys)


def test_info_and_help(capsys):
    assert cli.main(["info"]) == 0
    assert "backend" in capsys.readouterr().out
    for arguments in (
        [],
        ["--help"],
        ["train", "--help"],
        ["evaluate", "--help"],
        ["sample", "--help"],
        ["data", "shapes", "--help"],
        ["data", "prepare", "--help"],
    ):
        assert cli.main(arguments) == 0
        assert "Usage" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{fastrnn.__version__}\n"


def test_every_option_has_a_help_line():
    import typer.main

    def options(command, path=()):
        for parameter in command.params:
            yield path, parameter
        for name, inner in getattr(command, "commands", {}).items():
            yield from options(inner, (*path, name))

    every = list(options(typer.main.get_command(cli.app)))
    assert len(every) > 30
    assert [(path, parameter.name) for path, parameter in every if not parameter.help] == []


def test_as_a_module():
    result = subprocess.run(
        [sys.executable, "-m", "fastrnn", "evaluate", "nowhere"], capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "fastrnn: nowhere: no such run directory\n"


# ---------------------------------------------------------------------------------------------------
# Mistakes


def refused(arguments, capsys):
    """Exit code 2 and one line, which is returned."""
    capsys.readouterr()
    assert cli.main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("fastrnn: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "No such command 'fly'"),
        (["train"], "Missing option '--data'"),
        (["train", "--data", "nowhere"], "nowhere: no such directory"),
        (["train", "--data", "nowhere", "--wings", "2"], "No such option"),
        (["train", "--data", "nowhere", "--cell", "gru"], "gru"),
        (["train", "--data", "nowhere", "--update-rule", "adamw"], "adamw"),
        (["train", "--data", "nowhere", "--hidden", "many"], "many"),
        (["train", "--data", "nowhere", "--hidden", "0"], "0"),
        (["train", "--data", "nowhere", "--epochs", "-1"], "-1"),
        (["train", "--data", "nowhere", "--seed", "-1"], "-1"),
        (["train", "--data", "nowhere", "--backend", "torch"], "torch"),
        (["train", "--data", "nowhere", "--threads", "0"], "0"),
        (["train", "--config", "nowhere.toml"], "nowhere.toml"),
        (["evaluate"], "Missing argument 'run'"),
        (["evaluate", "nowhere"], "nowhere: no such run directory"),
        (["evaluate", "nowhere", "--split", "test"], "'--split': 'test' is not one of 'train', 'val'"),
        (["sample"], "Missing argument 'run'"),
        (["sample", "nowhere"], "nowhere: no such run directory"),
        (["sample", "nowhere", "--split", "test"], "test"),
        (["sample", "nowhere", "--count", "0"], "0"),
        (["sample", "nowhere", "--out", "nowhere/grid.png"], "nowhere: no such directory"),
        (["data", "info", "nowhere"], "nowhere: no such directory"),
        (["data", "shapes"], "Missing argument 'out'"),
        (["data", "shapes", "out", "--train", "0"], "0"),
        (["data", "shapes", "out", "--seed", "one"], "one"),
        (["data", "prepare", "out"], "Missing option '--train-captions'"),
    ],
)
def test_wrong_arguments(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(arguments, capsys)
    assert list(tmp_path.iterdir()) == []


def test_wrong_config_files(data, tmp_path, capsys):
    path = tmp_path / "config.toml"
    for text, message in (
        ("hidden = ", "not a TOML file"),
        ("wings = 2", "unknown settings wings; known are backend, batch_size"),
        ('hidden = "many"', "many"),
        ("hidden = true", "hidden: expected a number or a text, got True"),
        ("hidden = [1]", "hidden: expected one value, got [1]"),
        ('bucket = "yes"', "bucket: expected true or false, got 'yes'"),
        ("batch-size = 1\nbatch_size = 2", "has a setting twice"),
    ):
        path.write_text(text)
        line = refused(["train", "--data", data, "--config", path, "--out", tmp_path / "run"], capsys)
        assert message in line
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_left_alone(data, tmp_path, capsys):
    assert train(data, tmp_path / "run", "--epochs", "1") == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    line = refused(["train", "--data", data, "--out", tmp_path / "run"], capsys)
    assert "run: exists already and is not an empty directory; --resume goes on with it" in line
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_run_of_other_data(data, coco, tmp_path, capsys):
    assert train(data, tmp_path / "run", "--epochs", "1") == 0
    assert cli.main([*prepare_arguments(coco, tmp_path / "narrow"), "--pca", "2"]) == 0
    line = refused(["evaluate", tmp_path / "run", "--data", tmp_path / "narrow"], capsys)
    assert "the model takes features 6 wide, those of" in line
    edit_json(coco["train_captions"], lambda content: content["annotations"][0].update(caption="a zebra"))
    assert cli.main(prepare_arguments(coco, tmp_path / "other")) == 0
    for command in ("evaluate", "sample"):
        line = refused([command, tmp_path / "run", "--data", tmp_path / "other"], capsys)
        assert "best.safetensors: the model's vocabulary is not that of" in line
    assert not list((tmp_path / "run").glob("evaluation*"))


def test_images_that_are_not_there(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(data, run, "--epochs", "1") == 0
    (tmp_path / "mine.png").write_bytes(b"anything")
    for image, message in (
        ("20", "images: expected a number below 20, a name in the val split such as '"),
        ("-1", "No such option"),
        ("9" * 5000, "images: expected a number below 20"),
        ("nothing.png", "or a picture file, got 'nothing.png'"),
        (tmp_path / "mine.png", "mine.png is a new picture: features of it can be had for the embedded data"),
    ):
        assert message in refused(["sample", run, image], capsys)
    assert not (run / "captions.png").exists()
    for name, value in (("count", 0), ("seed", -1)):
        with pytest.raises(
            ValueError,
            match=f"{name}: expected at least {value or 1}, got {value}".replace("least -1", "least 0"),
        ):
            runs.sample(run, **{name: value})
    assert runs.sample(run, [3])[0].image == fastrnn.open_data(data).val.urls[3]


def test_pictures_outside_the_data_directory_are_not_drawn(data, tmp_path, monkeypatch):
    """Nor are others of the same name in the working directory."""
    assert train(data, tmp_path / "run", "--epochs", "1") == 0
    Image.new("RGB", (5, 5), "red").save(tmp_path / "x.png")
    monkeypatch.chdir(tmp_path)
    urls = (data / "val2014_urls.txt").read_text().splitlines()
    urls[:4] = "x.png", "../x.png", str(tmp_path / "x.png"), "file://" + str(tmp_path / "x.png")
    (data / "val2014_urls.txt").write_text("\n".join(urls))
    samples = runs.sample(tmp_path / "run", range(4))
    assert [sample.image for sample in samples] == urls[:4]
    assert [runs._picture(sample.source) for sample in samples] == [None] * 4
    Image.new("RGB", (1900, 700), "red").save(data / "x.png")
    (sample,) = runs.sample(tmp_path / "run", [0])
    assert runs._picture(sample.source).shape == (175, 475, 3)


def test_broken_runs(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(data, run, "--epochs", "1") == 0
    (run / "config.toml").write_text("data = 5")
    assert "config.toml: expected the data directory" in refused(["evaluate", run], capsys)
    (run / "config.toml").write_text("[")
    assert "config.toml: not a TOML file" in refused(["evaluate", run], capsys)
    (run / "best.safetensors").write_bytes(b"x")
    assert "best.safetensors: not a whole safetensors file" in refused(["evaluate", run], capsys)
    (run / "best.safetensors").unlink()
    assert "best.safetensors: no such file" in refused(["evaluate", run], capsys)


def test_options_of_prepare_and_evaluate_are_passed_on(coco, data, tmp_path, capsys):
    vocabulary = str(data / "coco2014_vocab.json")
    edit_json(coco["train_captions"], lambda content: content["annotations"].pop(0))
    edit_json(coco["train_captions"], lambda content: content["annotations"].pop(0))
    base = prepare_arguments(coco, "out")[3:-2]
    assert cli.main(["data", "prepare", str(tmp_path / "a"), *base, "--vocab", vocabulary]) == 2
    assert (
        cli.main(["data", "prepare", str(tmp_path / "a"), *base, "--vocab", vocabulary, "--allow-unmatched"])
        == 0
    )
    assert fastrnn.open_data(tmp_path / "a").idx_to_word == fastrnn.open_data(data).idx_to_word
    options = ["--vocab-size", "6", "--allow-unmatched"]
    assert cli.main(["data", "prepare", str(tmp_path / "b"), *base, *options]) == 0
    assert len(fastrnn.open_data(tmp_path / "b").idx_to_word) == 6
    captions = fastrnn.open_data(tmp_path / "b").val.captions
    rate = np.sum(captions == 3) / np.sum(captions > 2)
    capsys.readouterr()
    assert cli.main(["data", "info", str(tmp_path / "b")]) == 0
    assert f"unknown     {rate:.1%} of the words" in capsys.readouterr().out.split("val  ")[1]
    assert train(data, tmp_path / "run", "--epochs", "1") == 0
    threads = fastrnn.get_num_threads()
    try:
        assert cli.main(["evaluate", str(tmp_path / "run"), "--threads", "1", "--backend", "numpy"]) == 0
        assert fastrnn.get_num_threads() == 1
        assert backend._in_process[-1][0] == "numpy"
    finally:
        fastrnn.set_num_threads(threads)


def test_tokens_per_second_and_train_loss_count_what_was_there(data, tmp_path, monkeypatch):
    """40 captions in minibatches of 30 and 10. The clock ticks once whenever somebody looks."""
    monkeypatch.setattr(training.time, "perf_counter", itertools.count().__next__)
    assert train(data, tmp_path / "run", "--batch-size", "30", "--epochs", "1") == 0
    steps, (epoch,) = records(tmp_path / "run")
    expected = (30 * steps[0]["loss"] + 10 * steps[1]["loss"]) / 40
    np.testing.assert_allclose(epoch["train_loss"], expected)
    tokens = np.count_nonzero(fastrnn.open_data(data).train.captions[:, 1:])
    np.testing.assert_allclose(epoch["tokens_per_second"] * epoch["seconds"], tokens, rtol=0.01)


def test_validation_does_not_count_as_training_time(data, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "mean_loss", lambda *_: time.sleep(0.5) or 1.0)
    assert train(data, tmp_path / "run", "--epochs", "2") == 0
    assert records(tmp_path / "run")[1][-1]["seconds"] < 0.5


def test_a_val_loss_that_is_not_finite(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "mean_loss", lambda *_: float("nan"))
    assert train(data, tmp_path / "run") == 2
    assert "the val loss is nan at iteration 5: lower the learning rate" in capsys.readouterr().err


def test_another_pca(coco, data, tmp_path, capsys):
    for name in ("one", "two"):
        assert cli.main([*prepare_arguments(coco, tmp_path / name), "--pca", "6"]) == 0
        for split in ("train", "val"):  # the same features in another order of columns
            path = coco[f"{split}_features"]
            with h5py.File(path) as file:
                ids, features = file["image_ids"][()], file["features"][()]
            write_h5(path, image_ids=ids, features=features[:, ::-1])
    assert train(tmp_path / "one", tmp_path / "run", "--epochs", "1") == 0
    for other in (tmp_path / "two", data):
        line = refused(["evaluate", tmp_path / "run", "--data", other], capsys)
        assert "the model's features were made by another PCA" in line


@pytest.mark.parametrize("split", ["train", "val"])
def test_features_are_checked_before_a_run_begins(data, tmp_path, capsys, split):
    path = data / f"{split}2014_vgg16_fc7.h5"
    with h5py.File(path, "a") as file:
        file["features"][3, 1] = np.nan
    line = refused(["train", "--data", data, "--out", tmp_path / "run"], capsys)
    assert f"{split} features: those of image 3 (" in line
    assert not (tmp_path / "run").exists()


def test_a_run_that_diverges(data, tmp_path, capsys):
    """One clear line, whatever the progress bar showed before."""
    assert train(data, tmp_path / "run", "--lr", "1e30") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the loss is " in error
    assert "at iteration " in error
    assert "lower the learning rate" in error
    for option in ("--lr", "--lr-decay"):
        line = refused(["train", "--data", data, "--out", tmp_path / "other", option, "inf"], capsys)
        assert f"{option[2:].replace('-', '_')}: input should be a finite number, got inf" in line


def test_missing_extras(data, tmp_path, monkeypatch, capsys):
    """What an extra is needed for says which."""
    assert train(data, tmp_path / "run", "--epochs", "1") == 0
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    assert "pip install 'fastrnn[eval]'" in refused(["evaluate", tmp_path / "run"], capsys)

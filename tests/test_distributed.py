"""Several ranks compute what one does, agree to the last bit, and end together. Over loopback, by mpiexec."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fastrnn
from fastrnn.checkpoint import checkpoints, load_checkpoint
from fastrnn.data import prepare_data
from fastrnn.distributed import Ranks
from tests.datasets import write_coco

pytest.importorskip("mpi4py")
MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
if MPIEXEC is None:
    pytest.skip("no mpiexec: pip install mpich", allow_module_level=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """40 captions to train on."""
    directory = tmp_path_factory.mktemp("data")
    prepare_data(directory / "data", **write_coco(directory / "coco", images=20), min_count=1)
    return directory / "data"


def start(ranks, *arguments, **options):
    return subprocess.Popen(
        [MPIEXEC, "-n", str(ranks), sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run(ranks, *arguments):
    """Output and errors, and the exit code."""
    process = start(ranks, *arguments)
    try:
        out, error = process.communicate(timeout=120)
    finally:
        process.kill()
    return out, error, process.returncode


SOLVE = """
import json, sys
import numpy as np
import fastrnn
from fastrnn.captioning import Dropout
from fastrnn.distributed import connect

directory, dtype, batch_size, iterations, distributed, out = json.loads(sys.argv[1])
ranks = connect() if distributed else None
data = fastrnn.open_data(directory)
fastrnn.set_num_threads(1)
np.random.seed(ranks.rank if ranks else 0)  # rank 0's parameters are everybody's
model = fastrnn.CaptioningRNN(data.word_to_idx, data.input_dim, 7, 11, "lstm", dtype)
first = {}
def on_step(solver, captions):
    if solver.iteration == 1:
        first.update({name: config["m"].copy() for name, config in solver.optim_configs.items()})
    solver.stop = solver.iteration == iterations - distributed  # all ranks know by the next iteration
solver = fastrnn.CaptioningSolver(
    model, data, update_rule="adam", optim_config={"learning_rate": 5e-3}, batch_size=batch_size,
    num_epochs=1000, rng=3, ranks=ranks, clip_norm=2.0, dropout=Dropout(0.2, 0.1), bucket=True,
    verbose=False, on_step=on_step,
)
solver.train()
if ranks:
    ranks.check_agreement(solver._all_params, solver.iteration)
    for name, w in model.params.items():
        ranks.check_agreement(np.ascontiguousarray(w).reshape(-1), solver.iteration)
if not ranks or ranks.rank == 0:
    np.savez(out, losses=solver.loss_history, **{"params." + name: w for name, w in model.params.items()},
             **{"grad." + name: m for name, m in first.items()})
"""


def solve(tmp_path, data, dtype, ranks, batch_size=6, iterations=100):
    out = tmp_path / f"{ranks}.npz"
    arguments = json.dumps([str(data), dtype, batch_size, iterations, ranks > 0, str(out)])
    if ranks:
        _, error, code = run(ranks, "-c", SOLVE, arguments)
        assert code == 0, error
    else:
        subprocess.run([sys.executable, "-c", SOLVE, arguments], check=True)
    return dict(np.load(out))


@pytest.mark.parametrize("batch_size", [6, 13, 3])
def test_ranks_compute_what_one_process_does(tmp_path, data, batch_size):
    """100 iterations with clipping, dropout and buckets.

    The last minibatch has 4 captions, or 1, so that most shares are empty; 3 captions are never enough for 4.
    """
    alone = solve(tmp_path, data, "float64", 0, batch_size)
    assert len(alone["losses"]) == 100
    assert alone["losses"][-20:].mean() < 0.8 * alone["losses"][:20].mean()
    for ranks in (1, 2, 4):
        together = solve(tmp_path, data, "float64", ranks, batch_size)
        np.testing.assert_allclose(together["losses"], alone["losses"], rtol=1e-9)
        for name, array in alone.items():
            np.testing.assert_allclose(together[name], array, rtol=1e-7, atol=1e-9, err_msg=name)


def test_one_gradient_in_float32(tmp_path, data):
    """Adam's first m is a tenth of the gradient."""
    alone = solve(tmp_path, data, "float32", 0, iterations=2)
    for ranks in (1, 2, 4):
        together = solve(tmp_path, data, "float32", ranks, iterations=2)
        for name in (name for name in alone if name.startswith("grad.")):
            error = np.linalg.norm(together[name] - alone[name]) / np.linalg.norm(alone[name])
            assert error < 1e-5, (ranks, name, error)


def test_one_seed_one_run(tmp_path, data):
    runs = [solve(tmp_path, data, "float32", 2, iterations=30) for _ in range(2)]
    for name, array in runs[0].items():
        assert runs[1][name].tobytes() == array.tobytes()


EVALUATE = """
import json, sys
import fastrnn
from fastrnn import evaluation
from fastrnn.distributed import connect

directory, path, distributed = json.loads(sys.argv[1])
evaluation.BATCH = 7
ranks = connect() if distributed else None
fastrnn.set_num_threads(1)
data, model = fastrnn.open_data(directory), fastrnn.CaptioningRNN.load(path)
loss = evaluation.mean_loss(model, data.val, ranks)
captions = evaluation.captions_of(model, data.val.features, data.idx_to_word, ranks)
stopped = evaluation.mean_loss(model, data.val, ranks, lambda: ranks is not None and ranks.rank == 1)
if not ranks or ranks.rank == 0:
    print(json.dumps([loss, captions, stopped]))
"""


def test_validation_is_shared(tmp_path, data):
    """Loss to the last bit and captions are those of one process; where one rank is stopped, all are."""
    opened = fastrnn.open_data(data)
    np.random.seed(0)
    model = fastrnn.CaptioningRNN(opened.word_to_idx, opened.input_dim, 7, 11, "lstm")
    model.save(tmp_path / "model")

    def evaluate(ranks):
        arguments = json.dumps([str(data), str(tmp_path / "model"), ranks > 1])
        if ranks == 1:
            return json.loads(alone(EVALUATE, arguments).stdout)
        return json.loads(run(ranks, "-c", EVALUATE, arguments)[0])

    loss, captions, stopped = evaluate(1)
    assert stopped == loss
    assert len({" ".join(caption) for caption in captions}) > 3
    for ranks in (2, 3):
        assert evaluate(ranks) == [loss, captions, None]


def test_one_after_the_other(tmp_path):
    """As kernels are compiled: what the first rank leaves behind is there for the second."""
    code = f"""
import pathlib, time
from fastrnn.distributed import connect
ranks, path = connect(), pathlib.Path({str(tmp_path / "order")!r})
with ranks.one_after_the_other_on_each_machine():
    time.sleep(0 if ranks.rank else 0.5)
    with path.open("a") as file:
        file.write(str(min(ranks.rank, 1)))
"""
    assert run(3, "-c", code)[2] == 0
    assert (tmp_path / "order").read_text() == "011"


# ---------------------------------------------------------------------------------------------------
# The command


def command(data, out, *options):
    small = ("--hidden", "12", "--wordvec", "6", "--batch-size", "6", "--epochs", "6", "--backend", "numpy")
    return ("-m", "fastrnn", "train", "--data", data, "--out", out, *small, *options)


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_near(a, b, rtol):
    for name in ("loss", "train_loss", "val_loss", "iteration", "epoch"):
        values, others = ([line[name] for line in metrics(each) if name in line] for each in (a, b))
        np.testing.assert_allclose(values, others, rtol=rtol, err_msg=name)


def test_the_command(tmp_path, data):
    """The same run as without ranks; rank 0 alone writes; others need no directory."""
    subprocess.run(
        [sys.executable, *map(str, command(data, tmp_path / "alone"))], check=True, capture_output=True
    )
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    ranks = (*command(data, "run"), "--score", "bleu")
    first, second = (
        ("-n", "1", "-wdir", tmp_path / name, sys.executable, *ranks) for name in ("here", "there")
    )
    result = subprocess.run(
        [MPIEXEC, *map(str, (*first, ":", *second))], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("best val BLEU-4") == 1
    assert result.stderr.count("epoch 1:") <= 1
    assert list((tmp_path / "there").iterdir()) == []
    assert_near(tmp_path / "here" / "run", tmp_path / "alone", rtol=1e-4)
    last, both = (metrics(tmp_path / name)[-1] for name in ("alone", "here/run"))
    for line in (last, both):
        line["tokens"] = line["tokens_per_second"] * line["seconds"]
    np.testing.assert_allclose(both["tokens"], last["tokens"], rtol=0.05)


def begin(ranks, data, out, *options):
    """A run of several ranks that has begun to train; the processes of the ranks."""
    process = start(ranks, *command(data, out, "--epochs", "3000", *options))
    while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").read_text().count("\n") < 60:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    found = subprocess.run(
        ["pgrep", "-f", f"^{sys.executable}.*{out}"], capture_output=True, text=True, check=True
    )
    return process, [int(pid) for pid in found.stdout.split()]


def test_a_rank_that_dies(tmp_path, data):
    """The others end within seconds, with a word; another number of ranks goes on."""
    out = tmp_path / "run"
    process, pids = begin(4, data, out, "--checkpoint-every", "10")
    assert len(pids) == 4
    killed_at = time.monotonic()
    os.kill(pids[2], signal.SIGKILL)
    said = "".join(process.communicate(timeout=10))
    assert time.monotonic() - killed_at < 10
    assert process.returncode != 0
    assert "KILLED BY SIGNAL: 9" in said or "killed" in said.lower()
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()

    newest = checkpoints(out / "checkpoints")[0]
    (_, state), _ = load_checkpoint(newest)
    epochs = state["epoch"] + 2
    whole = tmp_path / "whole"
    go_on = ("-m", "fastrnn", "train", "--out", out, "--resume", "--epochs", epochs)
    said, error, code = run(2, *go_on)
    assert code == 0, error
    assert run(4, *command(data, whole, "--epochs", epochs))[2] == 0
    assert_near(out, whole, rtol=1e-3)
    assert metrics(out)[-1]["epoch"] == epochs


def test_a_signal_to_one_rank(tmp_path, data):
    """All finish the same iteration and leave; the checkpoint is there."""
    out = tmp_path / "run"
    process, pids = begin(2, data, out)
    os.kill(pids[1], signal.SIGTERM)
    said = "".join(process.communicate(timeout=20))
    assert process.returncode != 0
    assert "stopped by SIGTERM after iteration" in said
    iteration = [line["iteration"] for line in metrics(out)][-1]
    (_, state), _ = load_checkpoint(checkpoints(out / "checkpoints")[0])
    assert state["iteration"] == iteration


BROKEN = """
import sys
from fastrnn import cli, training
from mpi4py import MPI
loss = training.CaptioningRNN.loss
def fails(model, *batch, **options):
    if {condition}:
        raise OSError("no more of it")
    return loss(model, *batch, **options)
training.CaptioningRNN.loss = fails
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("condition", "who"), [("MPI.COMM_WORLD.rank == 1", 1), ("True", 0)])
def test_a_rank_that_raises(tmp_path, data, condition, who):
    """It is named, everybody ends, and what all ranks raise is said once."""
    started = time.monotonic()
    out, error, code = run(3, "-c", BROKEN.format(condition=condition), *command(data, tmp_path / "run")[2:])
    assert code != 0
    assert time.monotonic() - started < 15
    assert (out + error).count("no more of it") == 1
    assert f"fastrnn: rank {who} of 3: no more of it" in out + error


def test_a_rank_that_is_ended_before_it_trains(tmp_path, data):
    """SIGTERM while the data are opened on one rank: the others, which would wait for it, end too."""
    code = """
import os, signal, sys, time
from fastrnn import cli, training
from mpi4py import MPI
prepare = training._data
def slowly(settings):
    if MPI.COMM_WORLD.rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    return prepare(settings)
training._data = slowly
sys.argv[0] = "fastrnn"
sys.exit(cli.main())
"""
    started = time.monotonic()
    _, _, code = run(2, "-c", code, *command(data, tmp_path / "run")[2:])
    assert code != 0
    assert time.monotonic() - started < 10


def test_mistakes_end_it_with_one_line(tmp_path, data):
    _, error, code = run(2, *command(data, tmp_path / "run", "--hidden", "0"))
    assert code != 0
    out, error, code = run(2, *command(tmp_path / "nowhere", tmp_path / "run"))
    assert code != 0
    assert (out + error).count("nowhere: no such directory") == 1


def test_ranks_with_other_kernels_or_data(tmp_path, data):
    """Told before anything is written; else one would wait for the other, or they would add up nonsense."""
    other = tmp_path / "other"
    prepare_data(other, **write_coco(tmp_path / "coco", images=20, seed=3), min_count=1)
    relink = (
        "import sys; from mpi4py import MPI; from fastrnn import cli, training\n"
        "prepare = training.open_data\n"
        f"training.open_data = lambda path: prepare({str(other)!r} if MPI.COMM_WORLD.rank else path)\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    out, error, code = run(2, "-c", relink, *command(data, tmp_path / "run")[2:])
    assert code != 0
    assert (out + error).count("(a checksum): rank 0 has") == 1
    arguments = [str(a) for a in command(data, tmp_path / "run") if a not in ("--backend", "numpy")]
    ranks = [
        ["-n", "1", "-env", "FASTRNN_BACKEND", name, sys.executable, *arguments]
        for name in ("numpy", "numba")
    ]
    result = subprocess.run(
        [MPIEXEC, *ranks[0], ":", *ranks[1]], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode != 0
    assert "kernels: rank 0 has numpy for that of NumPy, rank 1 has numba" in result.stdout + result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_before_it_trains(tmp_path, data, rank):
    """It takes part in the first iteration, and all leave together."""
    code = f"""
import os, signal, sys
from fastrnn import cli, training
from mpi4py import MPI
train = training._Record.train
def signalled(record):
    if MPI.COMM_WORLD.rank == {rank}:
        os.kill(os.getpid(), signal.SIGTERM)
    train(record)
training._Record.train = signalled
sys.exit(cli.main(sys.argv[1:]))
"""
    out, error, exit_code = run(2, "-c", code, *command(data, tmp_path / "run")[2:])
    assert exit_code != 0
    assert "stopped by SIGTERM after iteration 1" in out + error
    (_, state), _ = load_checkpoint(checkpoints(tmp_path / "run" / "checkpoints")[0])
    assert state["iteration"] == 1


def test_tokens_count_once(tmp_path, data):
    """On one rank, gone on with on three."""
    out = tmp_path / "run"
    assert run(1, *command(data, out, "--epochs", "2"))[2] == 0
    assert run(3, "-m", "fastrnn", "train", "--out", out, "--resume", "--epochs", "4")[2] == 0
    _, notes = load_checkpoint(checkpoints(out / "checkpoints")[0])
    train = fastrnn.open_data(data).train
    assert notes["record"]["tokens"] == 4 * np.count_nonzero(train.captions[:, 1:])


def test_ranks_whose_parameters_differ(tmp_path, data):
    spoil = """
from fastrnn import solver
from mpi4py import MPI
update = solver.CaptioningSolver._update
def differs(self, name, grad):
    update(self, name, grad)
    if MPI.COMM_WORLD.rank == 1 and self.iteration == 5:
        self.model.params[name].flat[0] += 1e-6
solver.CaptioningSolver._update = differs
"""
    out, error, code = run(
        2,
        "-c",
        spoil + BROKEN.format(condition=False),
        *command(data, tmp_path / "run", "--epochs", "100")[2:],
    )
    assert code != 0
    assert (out + error).count(
        "the ranks' parameters differ at iteration 100: go on from the last checkpoint"
    ) == 1


# ---------------------------------------------------------------------------------------------------
# Launchers


def alone(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_mpi_is_not_imported_without_a_launcher(tmp_path, data):
    code = """
import sys
from fastrnn import cli
assert cli.main({}) == 0
print([name for name in sys.modules if name.startswith("mpi4py")])
"""
    environments = ({}, {"PMI_RANK": "0", "PMI_SIZE": "1"}, {"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "1"})
    for i, environment in enumerate(environments):  # nor by one for a single process
        arguments = [str(a) for a in command(data, tmp_path / str(i))[2:]]
        assert alone(code.format(arguments), **environment).stdout.splitlines()[-1] == "[]"


def test_wrong_launchers(tmp_path, data):
    """Every process would believe to be rank 0 of 1, and all would write to one directory."""
    arguments = [str(a) for a in command(data, tmp_path / "run")[2:]]
    code = "import sys; from fastrnn import cli; sys.exit(cli.main({}))"
    of_open_mpi = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4", "PMIX_RANK": "0"}
    for environment, message in (
        (of_open_mpi, "this process was started by Open MPI, and its MPI library is MPICH"),
        ({"PMI_RANK": "0", "PMI_SIZE": "4"}, "started 4 processes, but MPICH"),
    ):
        result = alone(code.format(arguments), **environment)
        assert result.returncode == 2, result.stderr
        (line,) = result.stderr.splitlines()
        assert line.startswith("fastrnn: ")
        assert message in line
        assert "srun --mpi=pmix" in line
    result = alone(code.format([*arguments, "--distributed"]))
    assert result.returncode == 2
    assert "no MPI launcher started this process" in result.stderr
    assert "start with the mpiexec of that library (mpiexec -n RANKS)" in result.stderr
    assert not (tmp_path / "run").exists()


def test_without_mpi4py(tmp_path, data):
    code = "import sys; sys.modules['mpi4py'] = None; from fastrnn import cli; sys.exit(cli.main({}))"
    result = alone(code.format([*map(str, command(data, tmp_path / "run")[2:]), "--distributed"]))
    assert result.returncode == 2
    assert "pip install 'fastrnn[mpi]' mpich" in result.stderr


class _Comm:
    """One of several ranks, as far as sharing goes."""

    def __init__(self, rank, size):
        self.Get_rank, self.Get_size = (lambda: rank), (lambda: size)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares(size):
    """Every item once, in order, and as evenly as can be."""
    for count in (0, 1, 5, 7, 100):
        shares = [Ranks(None, _Comm(rank, size)).share(count) for rank in range(size)]
        assert [i for share in shares for i in range(count)[share]] == list(range(count))
        lengths = [share.stop - share.start for share in shares]
        assert max(lengths) - min(lengths) <= 1


def test_threads_of_ranks_on_one_machine(tmp_path):
    """The cores by the ranks; a rank that is bound to some of them has those."""
    code = """
import os, sys
cpus = sorted(os.sched_getaffinity(0))
from fastrnn.distributed import connect
ranks = connect()
if sys.argv[1] == "bound":
    os.sched_setaffinity(0, {cpus[ranks.rank % len(cpus)]})
print(ranks.threads_each())
"""
    cores = fastrnn.backend.physical_cores()
    for n in (1, 2, 4):
        out, error, _ = run(n, "-c", code, "free")
        assert out.replace("\n", "") == str(max(cores // n, 1)) * n, error
    out, _, _ = run(2, "-c", code, "bound")
    assert out.replace("\n", "") == "11"

"""A user's mistake gives one sentence and exit code 2, without a traceback. Our own bugs raise exceptions."""

import os
import pickle
import re
import runpy
import signal
import sys

import pytest

import trainer.cli
from tests.programs import ROOT, run, run_forked
from trainer.cli import run_command
from trainer.experiments import EXPERIMENTS


def told(capsys, *arguments):
    """Run a command that must fail because of a user's mistake, and return its only line on stderr."""
    assert run_command(list(arguments)) == 2
    shown = capsys.readouterr()
    lines = shown.err.strip().splitlines()
    assert len(lines) == 1, shown
    assert "Traceback" not in shown.out + shown.err
    return lines[0]


def test_wrong_experiment(capsys):
    assert told(capsys, "--exp", "dmo") == "error: there is no experiment 'dmo'; did you mean demo?"
    assert "the experiments are ma52, " in told(capsys, "--exp", "zzzz")
    assert "--exp is missing" in told(capsys)


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("optim.lrr=1", "OptimConfig has no field lrr; did you mean optim.lr?"),
        ("lr=1", "Experiment has no field lr; did you mean optim.lr?"),
        ("blocks=(1,1)", "Experiment has no field blocks; did you mean model.rgb.blocks?"),
        ("nonsense=1", "Experiment has no field nonsense; its fields are name, data, clip, "),
        ("optim.lr=fast", "'fast' is not a number"),
        ("optim.num_epochs=2.5", "'2.5' is not a whole number"),
        ("optim.schedule=linear", "'linear' is not one of constant, cosine, cosine_per_step, multistep"),
        ("optim.lr.x=1", "lr is a single value and has no field x"),
        ("optim.lr", "write it as --set optim.lr=0.004"),
    ],
)
def test_wrong_set(capsys, assignment, sentence):
    assert sentence in told(capsys, "--exp", "demo", "--set", assignment)


def test_wrong_command(capsys):
    assert told(capsys, "evl", "--exp", "demo") == "error: there is no command 'evl'; did you mean eval?"
    assert told(capsys, "zzzz").startswith("error: there is no command 'zzzz'; the commands are compare, config, ")
    assert told(capsys, "train", "--exp", "demo").endswith(
        "'train'; leave this word out, because `python -m trainer --exp NAME` trains"
    )
    for word in ("test", "val"):
        assert told(capsys, word).endswith(f"no command '{word}'; `python -m trainer eval` scores a checkpoint")


def test_wrong_flag(capsys):
    with pytest.raises(SystemExit) as ended:
        run_command(["--exp", "demo", "--resum"])
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert "--resum" in shown
    assert "Perhaps you meant" in shown
    assert "--resume, --no-resume" in shown


def test_ctrl_c_leaves_one_line(capsys, monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.cli, "dispatch", interrupted)
    assert run_command(["--exp", "demo"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


HELP = (
    "trainer",
    *(f"trainer {command}" for command in trainer.cli.COMMANDS),
    *("pipelines.annotate", "pipelines.demo", "pipelines.prepare", "pipelines.verify", "pipelines.prepare --check x"),
    *("models.weights", "models.weights inspect", "models.weights convert", "models.weights merge"),
    *("benchmarks", "benchmarks gpu", "benchmarks data", "benchmarks headspace", "benchmarks step"),
    *("benchmarks kernels", "benchmarks snapshot", "benchmarks estimator", "benchmarks compare", "benchmarks table"),
)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("command", HELP)
def test_help_fits_a_screen_and_shows_an_example(command, capsys, monkeypatch):
    module, *words = command.split()
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", [module, *words, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    shown = capsys.readouterr().out
    assert ended.value.code in (None, 0)
    assert len(shown.splitlines()) <= 40
    assert shown.startswith(f"usage: python -m {module}")
    assert f"python -m {module} " in re.sub(r"usage: .*\n", "", shown)


def test_help_in_a_terminal_of_five_columns():
    """Runs in a process that is limited to 8 GiB, because plain tyro uses up all memory in such a narrow terminal."""
    limit = "import resource, runpy; resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30)); "
    code = limit + "runpy.run_module('trainer', run_name='__main__')"
    done = run("-c", code, "--help", environment={**os.environ, "COLUMNS": "5"}, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) < 200


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        run_command(["--help"])
    shown = capsys.readouterr().out
    assert all(re.search(rf"^  .*\b{command}  ", shown, re.MULTILINE) for command in trainer.cli.COMMANDS)


def test_outside_the_checkout(tmp_path):
    """Runs in a new interpreter, because the import path of the tests begins with their checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for words in (["--exp", "demo"], ["--exp", "demo", "--resume"], ["prepare", "--exp", "demo"]):
        done = run_forked("-m", "trainer", *words, environment=environment, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: there is no folder data in {tmp_path}, which is not the checkout: start again ")
        assert f"cd {ROOT}, or make this folder" in line
        assert not list(tmp_path.iterdir())


def test_missing_data(capsys, tmp_path):
    line = told(capsys, "--exp", "ntu60_x3d", "--work-dir", str(tmp_path / "run"), "--device", "cpu")
    assert "data/skeleton/ntu60_xsub.pkl" in line
    assert "set data.annotations" in line


def test_own_annotations_in_the_demos_experiment(capsys, tmp_path):
    mine = tmp_path / "mine.pkl"
    mine.write_bytes(b"mine")
    line = told(capsys, "--exp", "demo", "--set", f"data.annotations={mine}", "--work-dir", str(tmp_path / "run"))
    assert "demo makes its own data" in line
    assert "--exp custom" in line
    assert not (tmp_path / "videos").exists()


def test_missing_videos(capsys, tmp_path, tiny):
    line = told(capsys, *tiny, "--work-dir", str(tmp_path / "run"), "--set", f"data.videos={tmp_path}/none",
                "--set", f"data.packs={tmp_path}/packs", "--set", "data.demo=None")  # fmt: skip
    assert f"there is no folder {tmp_path}/none; name the folder of the videos (data.videos" in line


class Foreign:
    def __reduce__(self):
        return (os.system, ("touch hacked",))


def test_a_pickle_with_a_foreign_global(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "foreign.pkl").write_bytes(pickle.dumps([Foreign()]))
    line = told(capsys, "--exp", "ntu60_x3d", "--work-dir", "run", "--set", "data.annotations=foreign.pkl",
                "--set", "data.cache=cache", "--device", "cpu")  # fmt: skip
    assert "foreign.pkl cannot be read: the pickle asks for posix.system" in line
    assert not (tmp_path / "hacked").exists()


def test_unwritable_work_dir(capsys, tmp_path):
    (tmp_path / "file").touch()
    line = told(capsys, "--exp", "demo", "--work-dir", str(tmp_path / "file" / "run"))
    assert line.endswith("choose another --work-dir")


def test_wrong_starting_weights(capsys, tmp_path):
    (tmp_path / "weights.pth").write_text("no weights")
    line = told(capsys, "--exp", "ntu60", "--init", str(tmp_path / "weights.pth"), "--work-dir", str(tmp_path / "run"))
    assert "weights.pth" in line
    assert not (tmp_path / "run").exists()


def test_batch_that_does_not_divide(capsys, tmp_path):
    line = told(capsys, "--exp", "demo", "--ranks", "3", "--work-dir", str(tmp_path), "--device", "cpu")
    assert "optim.batch_size=16 cannot be divided equally among 3 ranks" in line


def test_foreign_data(capsys, tmp_path, tiny):
    more = ("--set", "data.num_classes=5", "--set", "data.coarse_map=(0,0,1,1,2)", "--set", "data.class_names=()",
            "--set", "data.demo=None", "--work-dir", str(tmp_path / "run"))  # fmt: skip
    assert "has labels 0 to 11, but experiment demo has classes 0 to 4; set data.num_classes" in told(
        capsys, *tiny, *more
    )
    # the refused run has not saved its settings
    assert "contains no run to resume" in told(capsys, "--resume", *more[-2:])
    assert not (tmp_path / "run").exists()


def test_wrong_coarse_map(capsys, tmp_path):
    assert "cannot read a coarse map from nonsense" in told(capsys, "--exp", "ntu60", "--coarse-map", "nonsense")
    assert "52 entries for 60 classes: choose --coarse-map semantic8 or" in told(
        capsys, "--exp", "ntu60", "--coarse-map", "ma52"
    )
    (tmp_path / "map.txt").write_text("0 1 1\n0,0,3, 1 1 1 1 1 1\n")
    line = told(capsys, "--exp", "demo", "--coarse-map", str(tmp_path / "map.txt"))
    problem = "map.txt: the coarse map assigns no class to coarse class 2"
    assert line.endswith(f"{problem}: number coarse classes from 0, with no gap")


def test_a_bug_of_ours_raises(monkeypatch):
    ours = {"__name__": "trainer.somewhere"}
    exec("def broken(arguments): int('ours')", ours)
    monkeypatch.setattr(trainer.cli, "dispatch", ours["broken"])
    with pytest.raises(ValueError, match="invalid literal"):
        run_command([])


# a thread that never ends, like a thread in which torch waits for other ranks
NEVER = "import threading; threading.Thread(target=threading.Event().wait).start()"
SNAPSHOT = """import time
threading.Thread(target=lambda: (time.sleep(2), print('written', flush=True)), name='snapshot').start()"""


@pytest.mark.parametrize(
    ("failure", "code", "last"),
    [
        ("sys.argv[1:] = ['--exp', 'nothing']", 2, "error: "),
        ("import trainer.cli as commands; commands.dispatch = None", 1, "TypeError: 'NoneType' object"),
    ],
)
def test_a_rank_that_fails_waits_for_no_other_but_for_its_snapshot(failure, code, last):
    done = failing_rank(f"{NEVER}\n{SNAPSHOT}\n{failure}")
    assert done.returncode == code, done.stderr
    assert done.stdout == "written\n"
    assert done.stderr.splitlines()[-1].startswith(last)


TOLD_WHILE_WRITING = """import os, signal, threading, time
def write():
    while signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.5)
    print('written', flush=True)
threading.Thread(target=write, name='snapshot').start()
sys.argv[1:] = ['--exp', 'nothing']"""


def test_the_launcher_ends_a_rank_when_its_snapshot_is_written():
    done = failing_rank(TOLD_WHILE_WRITING)
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert done.stdout == "written\n"


def failing_rank(script):
    code = f"import sys\nfrom trainer import cli\n{script}\ncli.main()"
    return run_forked("-c", code, environment={**os.environ, "TORCHELASTIC_RUN_ID": "1", "LOCAL_RANK": "0"}, timeout=60)


def test_list_shows_every_experiment_in_100_columns(capsys):
    assert run_command(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if line.split() and line.split()[0] in EXPERIMENTS}
    assert set(rows) == set(EXPERIMENTS)
    published = {"ma52": "39.1 M", "ntu60": "39.2 M", "ntu60_x3d": "2.8 M", "ntu60_rgbpose": "36.1 M"}
    for name, num_parameters in published.items():
        assert num_parameters in rows[name]
    assert " 58.0 " in rows["ntu60_rgbpose"]  # GMAC (billions of multiply-adds), as counted for the published network
    assert max(map(len, lines)) <= 100

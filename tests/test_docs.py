"""The programs accept every command in the README files and in docs/. Both README files contain the same commands."""

import functools
import importlib
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import tyro

from benchmarks import cli as benchmarks
from benchmarks.table import BEGIN, END
from models.weights import cli as weights
from pipelines.demo.classes import VAL, DemoConfig, clip_ids
from trainer.cli import COMMANDS
from trainer.commands.train import Options, steps_of
from trainer.settings import experiment_of

ROOT = Path(__file__).resolve().parents[1]
CHINESE = {  # maps each page to its Chinese translation, if there is one
    ROOT / "README.md": ROOT / "README.zh-CN.md",
    **{ROOT / "docs" / page.name: page for page in sorted((ROOT / "docs" / "zh-CN").glob("*.md"))},
}
PAGES = [*CHINESE.values(), ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / "kernels" / "blocks" / "README.md", ROOT / "docs" / "after_demo.txt"]
TRAINER = {word: place[:2] for word, place in COMMANDS.items()}
# Beginnings of indented lines that are not commands. Such lines are comments, paths, "files -> ...", or options.
NO_COMMAND = re.compile(r"#|data/|files$|labels.csv|-")
# Programs that are not part of Duet. The tests do not check the arguments of these programs.
FOREIGN = {".", "conda", "export", "git", "nohup", "pip", "srun", "tail", "tensorboard", "test", "grep"}


def blocks(page: Path) -> list[str]:
    """Return the indented blocks of a page, but not those between ``` lines, which are not commands."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """Return the words of each command on a page, from indented blocks and from inline code in texts and tables."""
    lines = [line.strip() for block in blocks(page) for line in block.splitlines()]
    lines += re.findall(r"`((?:python -m|nohup python|CUDA_VISIBLE_DEVICES=\d python|make) [^`]+)`", page.read_text())
    words = [shlex.split(line.replace("--exp X", "--exp demo"), comments=True) for line in lines]
    return [line for line in words if line and "/" not in line[0][-1:] and not NO_COMMAND.match(line[0])]


def parse(words: list[str]) -> None:
    """Check that the named program accepts the words. If not, raise an exception or SystemExit."""
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]) or words[0] in ("nohup", "cd"):
        words = words[1:]
    if words[0] == "srun":
        words = words[words.index("python") :]
    if words[:2] == ["apptainer", "exec"]:
        words = words[4:]
    words = words[: words.index(">")] if ">" in words else words
    if words[0] == "torchrun":
        words = ["python", *words[words.index("-m") :]]
    program, *rest = words
    if program == "make":
        names = [rf"{word.partition('=')[0]} [:?]?=" if "=" in word else f"{word}:" for word in rest]
        assert all(re.search(rf"^{name}", (ROOT / "Makefile").read_text(), re.MULTILINE) for name in names), names
    elif program in ("sh", "apptainer"):
        assert (ROOT / rest[-1 if program == "apptainer" else 0]).exists()
    elif program.endswith("python") and rest[0] == "-m":
        parse_module(rest[1], rest[2:])
    elif program.endswith("python"):
        assert (ROOT / rest[0]).exists()
    else:
        assert program in FOREIGN, f"{program}: this is neither a command of Duet nor a program in FOREIGN"


def parse_module(module: str, arguments: list[str]) -> None:
    if module == "pytest":
        return
    if module == "trainer":
        parse_trainer(arguments)
    elif module == "benchmarks":
        name, *rest = arguments
        parse_call(getattr(benchmarks, name), rest)
    elif module == "models.weights":
        name, *rest = arguments
        parse_call(getattr(weights, {"merge": "merge_streams"}.get(name, name)), rest)
    elif "--exp" in arguments:
        parse_trainer([module.rpartition(".")[2], *arguments])
    else:
        cli = importlib.import_module(f"{module}.cli")
        parse_call(cli.form_of(arguments) if hasattr(cli, "form_of") else cli.main, arguments)


def parse_call(function: Callable, arguments: list[str]) -> None:
    """Parse the arguments of a command without running the command."""
    tyro.cli(functools.wraps(function)(lambda *args, **kwargs: None), args=arguments)


def parse_trainer(arguments: list[str]) -> None:
    options = Options
    if arguments[0] in TRAINER:
        module, name = TRAINER[arguments[0]]
        options, arguments = getattr(importlib.import_module(module), name), arguments[1:]
    parsed = tyro.cli(options, args=arguments)
    if getattr(parsed, "profile", None):
        steps_of(parsed.profile)
    # test_own_experiments.py tests experiments that are in files
    if getattr(parsed, "exp", None) and ".py:" not in parsed.exp:
        experiment_of(parsed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_one(page):
    for words in commands(page):
        try:
            parse(words)
        except SystemExit as error:
            pytest.fail(f"{page.name}: {shlex.join(words)} ends with exit code {error.code}")


def test_the_video_to_predict_after_the_demo_is_a_validation_clip_of_the_demo():
    (name,) = re.findall(r"videos/(\w+)\.mp4", (ROOT / "docs" / "after_demo.txt").read_text())
    assert name in [clip.name for clip in clip_ids(DemoConfig()) if clip.split == VAL]


def test_the_pages_have_commands():
    assert sum(len(commands(page)) for page in PAGES) > 60


def test_a_stale_command_is_found():
    for stale in (
        "python -m trainer --exp ntu6",
        "python -m trainer --exp ntu60 --set optim.lrr=1",
        "python -m trainer eval --exp ntu60 --ckpt x",
        "python -m pipelines.verify a.pkl --video x",
        "python -m benchmarks gpus",
        "python -m benchmarks kernels --count bites",
        "make demos",
        "make TORCH_MIRROR=x demo",
        "sh benchmarks/nsis.sh x",
        "frobnicate",
    ):
        with pytest.raises((AssertionError, AttributeError, ValueError, SystemExit)):
            parse(shlex.split(stale))


def test_every_page_for_users_is_translated():
    """A page is for users if README links to it from the line of a task that needs no programming."""
    text = (ROOT / "README.md").read_text().partition("| if you want to |")[2].partition("| use parts of Duet")[0]
    linked = {ROOT / page for page in re.findall(r"\((docs/\w+\.md)\)", text)}
    assert len(linked) >= 7
    assert linked | {ROOT / "README.md"} == CHINESE.keys()


def without_comments(block: str) -> list[str]:
    """Return the lines of a block of commands or of a list of files, without comments and descriptions."""
    return [re.split(r"\s+# |(?<=\S)\s{2,}(?=\S)", line.rstrip())[0] for line in block.splitlines()]


@pytest.mark.parametrize("page", CHINESE, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_chinese_page_has_the_same_commands_and_headings(page):
    english, chinese = ([without_comments(block) for block in blocks(each)] for each in (page, CHINESE[page]))
    assert english == chinese
    fenced = [re.findall(r"^```.*?^```$", each.read_text(), re.MULTILINE | re.DOTALL) for each in (page, CHINESE[page])]
    assert fenced[0] == fenced[1]
    levels = [re.findall(r"^#+(?= )", each.read_text(), re.MULTILINE) for each in (page, CHINESE[page])]
    assert levels[0] == levels[1]


def test_a_changed_command_or_comment_in_a_translation():
    english = "    make demo     # makes .venv\n    data/videos/   sub-folders too\n"
    assert without_comments(english) == without_comments("    make demo  # 安装\n    data/videos/   也查找子文件夹\n")
    assert without_comments(english) != without_comments("    make test  # 安装\n    data/videos/   也查找子文件夹\n")


def test_the_readme_is_short():
    before, _, rest = (ROOT / "README.md").read_text().partition(BEGIN)
    # the tables are not counted, because they grow with the records
    assert len((before + rest.partition(END)[2]).splitlines()) < 130


def test_the_recipe_of_apptainer():
    """Checks the form of docs/duet.def, the shell syntax of its %post section, and that gcc and Python.h are in it."""
    text = (ROOT / "docs" / "duet.def").read_text()
    header, *sections = re.split(r"^%(?=\w)", text, flags=re.MULTILINE)
    assert re.fullmatch(r"Bootstrap: docker\nFrom: [\w.-]+:[\w.-]+\n\n", header)
    bodies = dict(section.split("\n", 1) for section in sections)
    assert bodies.keys() <= {"post", "environment", "runscript", "labels", "help", "files", "test"}
    subprocess.run(["sh", "-n"], input=bodies["post"], text=True, check=True)
    (packages,) = re.findall(r"apt-get install -y --no-install-recommends (.+)", bodies["post"])
    assert {"gcc", "g++", "make", "git", "python3", "python3-dev", "python3-venv"} <= set(packages.split())


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"

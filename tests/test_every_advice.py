"""For every sentence with advice in the five packages, a test follows the advice, or this file says why no test does.

A sentence gives advice if an imperative follows a comma, a colon, a semicolon, `or`, `and` or `then`, as in `; set
data.split=xsub`. A row of tests/trainer/test_advice*.py follows the advice if the row's expression and the sentence
have ENOUGH consecutive characters in common.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.trainer import test_advice, test_advice_files

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("kernels", "pipelines", "models", "trainer", "benchmarks")
VERBS = (
    "add|ask|build|bring|change|check|choose|continue|copy|correct|delete|download|evaluate|export|forget|free|get|give|"
    "install|keep|leave|list|look|lower|make|mark|merge|mount|move|name|number|pass|pick|predict|put|raise|remove|rename|"
    "repair|run|save|see|set|start|store|train|try|turn|update|use|wait|write|zip"
)
ADVICE = re.compile(rf"(?:[;:,]|\bor|\band|\bthen)\s+(?:or |so |then |first |not )*(?:{VERBS})\b")
ENOUGH = 12  # a row counts for a sentence if its expression and the sentence share this many consecutive characters
GAP = "\0"  # stands for each value that a program fills in

# Sentences whose advice no test can follow, grouped by what a test would need. A few words identify each sentence.
NOT_HERE = {
    "a GPU, its driver, or another version of torch": (
        *("start the container with", "or run make CUDA=cpu", "run make CUDA=cu12", "make CUDA=cu13 replaces them"),
        *("or leave CUDA out", "install 2.11 or later", "then uses fp16", "run on a GPU machine", "use a larger GPU"),
    ),
    "a network, an account or another user": (
        *("put end2end.onnx of each into", "unpack end2end.onnx from there"),
        *("run `wandb login`", "ask its owner to run this command", "can reach a package index"),
        *("to reinstall it", "in the checkout, which installs it", "start it (ip link set lo up)"),
    ),
    "a file system without locks": ("use this pack only in runs with --shard",),
    "the program ffmpeg": ("write an upright copy with ffmpeg",),
    "hours": ("wait until the run has logged some steps", "there is no such part", "--again measures it again"),
    "a fault of our own code": ("try another --format", "zip only that file", "see parity_"),
    "code that uses our classes without the command line": (
        *(
            "name each joint",
            "set four weights, for rgb",
            "heatmaps per RGB frame, each",
            "larger batch or larger images",
        ),
    ),
    "files of 130 MB": ("merge two of the same kind",),
    "nothing, because these sentences only say where to read more": (
        *("see `python -m models.weights inspect", "; see README", "see docs/weights.md", "about 35 GB"),
        "see what python -m trainer doctor says",
    ),
}
# ELSEWHERE maps a few words of a sentence to the test that follows its advice, outside tests/trainer/test_advice*.py.
SPOILED = "tests/trainer/test_checks.py::test_a_spoiled_data_set_is_named_by_verify_and_by_training"
TUNE = "tests/trainer/test_tune.py::test_mistakes_are_told_in_one_sentence"
CONTRADICTING = "tests/pipelines/test_pose_formats.py::test_files_that_contradict_each_other_are_refused"
REFUSED = "tests/pipelines/test_pose_formats.py::test_other_content_is_refused_with_the_reason"
BEHIND_A_LINK = "tests/pipelines/test_foreign_packs.py::test_what_lies_behind_a_link_is_not_removed"
THROUGH_A_LINK = "tests/trainer/test_odd_state.py::test_a_run_writes_through_no_link"
BEGUN = "tests/trainer/test_recipe.py::test_a_folder_that_was_begun_with_other_settings_is_refused"
ELSEWHERE = {
    **dict.fromkeys(("give the same settings as before, or choose", "options: give the same ones as before"), BEGUN),
    "cannot be read as settings: remove it": "tests/trainer/test_recipe.py::"
    "test_a_stage_whose_results_were_removed_is_not_done",
    "was made from an earlier": "tests/trainer/test_recipe.py::test_only_what_is_missing_or_outdated_is_made_again",
    "start it without torchrun": "tests/trainer/test_recipe.py::test_torchrun_does_not_start_a_recipe",
    "wrong clips are not shown: run": "tests/trainer/test_report_page.py::"
    "test_a_run_without_scores_says_how_to_get_them",
    "where files would be written: remove this": THROUGH_A_LINK,
    **dict.fromkeys(("check the pack that it is in", "put the folder that it points to"), BEHIND_A_LINK),
    **dict.fromkeys(("write pose_landmarks", "write the 2-D poses (pose_keypoints_2d)", "use --model_pose"), REFUSED),
    **dict.fromkeys(("write the poses of all videos in the same way", "keep the files of one"), CONTRADICTING),
    **dict.fromkeys(("a frame; download it again", "so these are labels of a detector"), REFUSED),
    "trust the video and set the environment variable": "tests/pipelines/test_hostile_videos.py::"
    "test_a_rare_codec_is_refused_by_name_until_it_is_allowed",
    "write 1 or more, and leave --index": "tests/pipelines/test_view.py::test_the_worst_skeletons_are_drawn",
    "trust the source and set the environment variable": "tests/trainer/test_predict_live.py::"
    "test_an_address_is_opened_only_if_its_protocols_are_allowed",
    "check whether the estimator fills in joints": SPOILED,
    "have names that mean the same video; leave one": SPOILED,
    "leave this setting out, or use a new process": "tests/trainer/test_tune.py::"
    "test_threads_for_operators_can_only_be_set_in_time",
    **dict.fromkeys(
        ("optim.accumulate=2, or lower", "set the environment variable XDG_CACHE_HOME", "start it without"), TUNE
    ),
    "leave the column `split` out": "tests/pipelines/test_copies.py::"
    "test_a_given_split_with_copies_on_both_sides_is_told",
    "if that is wrong, set data.rotation=stored": "tests/pipelines/test_turned_videos.py::"
    "test_the_setting_decides_for_files_of_others_and_makes_other_clips",
    "run the same command again": "tests/pipelines/test_prepare.py::test_killed_runs_go_on_to_the_same_bytes",
    "try again when no run uses this pack": "tests/pipelines/test_pack_users.py::"
    "test_nothing_is_dropped_while_clips_are_made",
    "from its folder to try again": "tests/trainer/test_as_before.py::"
    "test_a_resumed_run_does_not_try_again_what_failed",
    " to submit its scores as they are": "tests/trainer/test_submit.py::"
    "test_scores_in_a_run_of_other_settings_or_another_snapshot_are_refused",
}


def sentences() -> Iterator[tuple[str, str]]:
    """Yield the place and the text of each sentence with advice. GAP stands for each value that is filled in."""
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(file.read_text())
            texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp)]
            parts = {id(part) for node in texts for part in ast.walk(node) if part is not node}
            parts |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
            for node in texts:
                text = "" if id(node) in parts else text_of(node)
                if ADVICE.search(text):
                    yield f"{file.relative_to(ROOT)}:{node.lineno}", text


def text_of(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr():
            return "".join(text_of(part) if isinstance(part, ast.Constant) else GAP for part in node.values)
        case ast.BinOp(left=left, right=right):
            return text_of(left) + text_of(right)
        case ast.IfExp(body=body):
            return text_of(body)
    return GAP


def runs_of(text: str) -> set[str]:
    """Return all substrings of ENOUGH characters, except those that contain GAP."""
    runs = {text[at : at + ENOUGH] for at in range(len(text) - ENOUGH + 1)}
    return {run for run in runs if GAP not in run}


def runs_of_rows() -> set[str]:
    rows = [*test_advice.SETTINGS, *test_advice.DATA, *test_advice.RUNS]
    expressions = [step[0] for row in rows for step in row[1:]] + [row[3] for row in test_advice_files.ROWS]
    expressions += [row[1] for row in test_advice_files.COMMANDS]
    runs: set[str] = set()
    for expression in expressions:
        plain = re.sub(r"\\([wSd]\+?)|\[[^\]]*\]\+?|\.\*|\.\+", GAP, expression)
        runs |= runs_of(re.sub(r"(?<!\\)[()$^]", "", plain).replace("\\", ""))
    return runs


def test_every_advice_is_followed():
    rows, listed = runs_of_rows(), [*ELSEWHERE, *(words for group in NOT_HERE.values() for words in group)]
    left = []
    for at, text in sentences():
        advice = ADVICE.search(text)
        assert advice
        if not runs_of(text[max(0, advice.start() - ENOUGH) :]) & rows and not any(words in text for words in listed):
            left.append(f"{at}: {text.replace(GAP, '{}')}")
    assert not left, "add a row to tests/trainer/test_advice.py or test_advice_files.py for:\n" + "\n".join(left)


def test_the_lists_name_sentences_that_exist_and_tests_that_exist():
    texts = [text for _, text in sentences()]
    for words in [*ELSEWHERE, *(words for group in NOT_HERE.values() for words in group)]:
        assert any(words in text for text in texts), words
    for place in ELSEWHERE.values():
        file, _, name = place.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(), place

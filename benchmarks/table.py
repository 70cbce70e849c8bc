"""The table of measured speeds in README.md and README.zh-CN.md.

It is made from the committed records, so that no number is typed by hand.
"""

# ruff: noqa: RUF001 (the Chinese texts have Chinese punctuation)

from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.records import RecordError, read_record

BEGIN, END = "<!-- measured: python -m benchmarks table -->", "<!-- end -->"
ENGLISH, CHINESE = 0, 1  # index of each language in the pairs of texts below

HEAD = (
    "| what was measured | median (quartiles; n repetitions) | machine | commit |",
    "| 测量了什么 | 中位数（四分位数；重复 n 次） | 机器 | 提交 |",
)
RANGE = ("({low} to {high}; n {n})", "（{low} 到 {high}；n {n}）")
RATE, RATE_OF_CORE = ("clips a second", "个片段每秒"), ("clips a second on one core", "个片段每秒（一个核）")
FACTOR, SHARE, SECONDS = ("times as fast", "倍"), ("%", "%"), ("seconds", "秒")
NOTHING = ("Nothing has been measured yet.", "还没有测量结果。")


class Row(NamedTuple):
    """A line of the table, with its texts in both languages.

    part: the benchmark that writes the number. path: the keys of the number in the benchmark's results, joined by dots.
    what: what was measured. unit: the unit of the number.
    """

    part: str
    path: str
    what: tuple[str, str]
    unit: tuple[str, str]


ROWS = (
    *(
        row
        for name in ("demo", "ntu60_x3d", "ntu60", "ma52")
        for row in (
            Row(
                f"headspace_{name}",
                "headspace.loader_clips_per_s",
                (f"training `{name}`, reading included", f"训练 `{name}`，包括读取数据"),
                RATE,
            ),
            Row(
                f"headspace_{name}",
                "headspace.share",
                (
                    f"training `{name}`: the speed with reading as a share of the speed without",
                    f"训练 `{name}`：上面的速度占不读取数据时速度的比例",
                ),
                SHARE,
            ),
        )
    ),
    Row(
        "data",
        "ours_8_32.clips_per_cpu_s",
        ("reading clips of 8 frames and 32 heatmaps", "读取 8 帧加 32 张热图的片段"),
        RATE_OF_CORE,
    ),
    *(
        Row(
            "data",
            f"ratio_cpu_time_{rgb}_{pose}",
            (
                f"reading clips of {rgb} frames and {pose} heatmaps, compared with MMAction2",
                f"读取 {rgb} 帧加 {pose} 张热图的片段，与 MMAction2 相比",
            ),
            FACTOR,
        )
        for rgb, pose in ((8, 32), (16, 48))
    ),
    Row(
        "data",
        "heatmap_8_32",
        ("drawing 32 heatmaps, compared with MMAction2", "绘制 32 张热图，与 MMAction2 相比"),
        FACTOR,
    ),
    *(
        Row(
            f"data_{title.lower()}",
            f"ratio_cpu_time_{case}",
            (
                f"reading clips of {count} frames, compared with {title}, which does not crop and draws no heatmaps",
                f"读取 {count} 帧的片段，与不裁剪也不画热图的 {title} 相比",
            ),
            FACTOR,
        )
        for title in ("TorchCodec", "SPDL")
        for case, count in {"8_32": 8, "16_48": 16}.items()
    ),
    *(
        Row(
            "step",
            f"{name}.{key}",
            (
                f"a training step of `{name}`{how[ENGLISH]}, compared with the published code's 3-D layers",
                f"`{name}` 的一个训练步{how[CHINESE]}，与公开代码的三维层相比",
            ),
            FACTOR,
        )
        for name in ("ntu60_x3d", "ma52")
        for key, how in {"speedup": (", compiled", "（编译后）"), "speedup_of_folding": ("", "")}.items()
    ),
    Row(
        "snapshot",
        "snapshot.share_lost",
        (
            "training time that is lost while a snapshot is written, as a share of the time of writing",
            "写快照时损失的训练时间，占写入时间的比例",
        ),
        SHARE,
    ),
    Row(
        "resume",
        "resume.more_s",
        (
            "extra time until the first batch if a run resumes late in an epoch, compared with a fresh start",
            "在一轮的后期恢复时，到第一个批次为止比重新开始多用的时间",
        ),
        SECONDS,
    ),
)


def results_table(records: Path, language: int = ENGLISH) -> str:
    """A Markdown table of the numbers in ROWS, with a line for each machine. language: ENGLISH or CHINESE."""
    lines = []
    for row in ROWS:
        for file in sorted(records.glob(f"{row.part}_*.json")):
            record = read_record(file)
            value = _value_at(record["results"], row.path)
            if value is None or record.get("toy") or record.get("part") != row.part:
                continue
            where = record["provenance"]
            machine = ", ".join([where["device"], *record.get("set", ())])
            cell = _cell(value, row.unit, language)
            lines.append(f"| {row.what[language]} | {cell} | {machine} | {where['commit']} |")
    return "\n".join([HEAD[language], "|---|---|---|---|", *lines] if lines else [NOTHING[language]]) + "\n"


def _value_at(results: dict[str, Any], path: str) -> Any:
    """The value at a dotted path of one or two keys, or None. The second key may contain dots and slashes."""
    key, _, rest = path.partition(".")
    value = results.get(key)
    return value if not rest or value is None else value.get(rest)


def _cell(value: Any, unit: tuple[str, str], language: int) -> str:
    """A number with its unit and, if it is a median, the quartiles and the number of repetitions."""
    factor, named = (100 if unit is SHARE else 1), unit[language]
    if not isinstance(value, dict):
        return f"{factor * value:.3g} {named}"
    low, high = (f"{factor * value[name]:.3g}" for name in ("p25", "p75"))
    shown = RANGE[language].format(low=low, high=high, n=value["n"])
    return f"{factor * value['median']:.3g} {named}{'' if language == CHINESE else ' '}{shown}"


def renew_table(readme: Path, records: Path) -> bool:
    """Put the table between the two marks of a page, and return whether that changed the page.

    In a page named *.zh-CN.md the table is Chinese. Raises RecordError if the page has no such marks.
    """
    text = readme.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise RecordError(f"{readme} has no marks for the table: add the lines '{BEGIN}' and '{END}'")
    renewed = f"{head}{BEGIN}\n{results_table(records, language_of(readme))}{END}{tail}"
    if renewed != text:
        readme.write_text(renewed, encoding="utf-8")
    return renewed != text


def language_of(readme: Path) -> int:
    return CHINESE if readme.name.endswith(".zh-CN.md") else ENGLISH

"""The table in kernels/blocks/README.md shows the numbers of the committed records."""

from benchmarks.kernels.table import blocks_table
from benchmarks.records import RECORDS, ROOT


def test_the_table_is_in_the_readme():
    table = blocks_table(RECORDS)
    assert table in (ROOT / "kernels" / "blocks" / "README.md").read_text(), f"put this into the README:\n{table}"


def test_a_table_names_every_kernel():
    lines = blocks_table(RECORDS).splitlines()
    kernels = {path.name.removesuffix("_reference.py") for path in (ROOT / "kernels" / "blocks").glob("*_reference.py")}
    assert {line.split("`")[1] for line in lines[2:-1]} == kernels

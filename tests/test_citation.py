"""CITATION.cff is complete and names the papers of all networks and data sets. Licence and version match setup.py."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAPERS = {
    "2104.13586": "RGBPoseConv3D",
    "1812.03982": "SlowOnly",
    "2004.04730": "X3D",
    "1811.08383": "shift",
    "2412.14719": "PCAN",
    "2408.05421": "attention",
    "2403.05234": "MA-52",
    "1604.02808": "NTU-60",
    "1905.04757": "NTU-120",
    "2007.07314": "logit_adjustment",
}


@pytest.fixture(scope="module")
def citation() -> dict:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed, so CITATION.cff is not parsed")
    return yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_it_is_a_citation_file(citation):
    """The file has the keys that Citation File Format 1.2.0 requires. Each reference has what a bibliography needs."""
    assert citation["cff-version"] == "1.2.0"
    assert all(citation[key] for key in ("message", "title", "authors"))
    for paper in citation["references"]:
        assert paper["type"] in ("article", "conference-paper")
        assert all({"family-names", "given-names"} == set(author) for author in paper["authors"])
        assert 2015 < paper["year"] < 2030
        assert paper.get("journal") or paper["conference"]["name"]


def test_it_names_the_papers(citation):
    noted = {paper["doi"].removeprefix("10.48550/arXiv."): paper["notes"] for paper in citation["references"]}
    assert set(noted) == set(PAPERS)
    assert all(word in noted[number] for number, word in PAPERS.items())


def test_licence_and_version_agree(citation):
    setup = (ROOT / "setup.py").read_text()
    assert f'license="{citation["license"]}"' in setup
    assert f'version="{citation["version"]}"' in setup
    licence = (ROOT / "LICENSE").read_text()
    assert re.match(r"\s+Apache License\s+Version 2\.0, January 2004\s", licence)
    assert licence.count("\n") == 201

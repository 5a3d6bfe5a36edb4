"""`sciopt data list | fetch | verify`."""

import pytest
from click.testing import CliRunner

from sciopt.data import entry
from sciopt.data.commands import data
from tests.data_helpers import require_data

NAME = "proteins/ddg/pdbs.csv"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCIOPT_DATA_DIR", str(tmp_path / "cache"))


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A mirror of one small file."""
    content = require_data(NAME).read_bytes()
    (tmp_path / "cache" / NAME).unlink()
    path = tmp_path / "mirror" / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    monkeypatch.setenv("SCIOPT_DATA_MIRROR", str(tmp_path / "mirror"))
    return tmp_path / "mirror"


def call(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(data, args)
    return result.exit_code, result.output


def test_list_shows_all():
    code, output = call("list")
    assert code == 0
    assert "molecules/chembl_1k.smi" in output
    assert "211 files" in output


def test_list_selects_by_pattern_and_tells_details():
    code, output = call("list", "--long", "molecules/fast*")
    assert code == 0
    assert "1 files" in output
    assert entry("molecules/fastsmcg_dev.sdf").sha256 in output
    assert "url: none, converted from https://" in output


def test_unknown_name_is_a_usage_error_with_a_suggestion():
    code, output = call("fetch", "molecules/chembl_2k.smi")
    assert code == 2
    assert "molecules/chembl_1k.smi" in output


def test_fetch_wants_names():
    code, output = call("fetch")
    assert code == 2
    assert "expected NAMES or --all" in output


def test_fetch_then_verify(mirror, tmp_path):
    code, output = call("fetch", NAME)
    assert (code, output.strip()) == (0, str(tmp_path / "cache" / NAME))
    code, output = call("verify")
    assert code == 0
    assert "1 ok, 210 missing, 0 corrupt" in output
    (tmp_path / "cache" / NAME).write_text("spoilt")
    code, output = call("verify")
    assert code == 1
    assert f"corrupt  {NAME}" in output


def test_verify_looks_into_a_folder(mirror):
    code, output = call("verify", "--folder", str(mirror), NAME)
    assert code == 0
    assert f"ok       {NAME}" in output


def test_verify_fails_on_a_missing_file_that_was_named():
    code, output = call("verify", NAME)
    assert code == 1
    assert f"missing  {NAME}" in output


def test_fetch_goes_on_after_a_failure(mirror, tmp_path, monkeypatch):
    """The converted file is not in the mirror and has no address; the other one still arrives."""
    code, output = call("fetch", "molecules/fastsmcg_dev.sdf", NAME)
    assert code == 1
    assert "has no public address of its own" in output
    assert (tmp_path / "cache" / NAME).is_file()

"""The registry is complete, well-formed, and agrees with the files themselves."""

import re
from dataclasses import FrozenInstanceError

import pytest

from sciopt.data import entry, registry
from tests.data_helpers import require_data

ENTRIES = list(registry().values())


def test_every_entry_is_well_formed():
    assert len(ENTRIES) == 211
    assert len({item.sha256 for item in ENTRIES}) == 211
    for item in ENTRIES:
        assert re.fullmatch(r"[0-9a-f]{64}", item.sha256), item
        assert re.fullmatch(r"(molecules|proteins|offline)(/[A-Za-z0-9_-]+)*/[A-Za-z0-9._-]+", item.name), item
        assert item.size > 0, item
        assert item.licence and item.units and item.description, item


def test_public_addresses_are_pinned_to_a_commit_and_name_one_file_each():
    urls = [item.url for item in ENTRIES if item.url is not None]
    assert len(set(urls)) == len(urls)
    for url in urls:
        assert re.fullmatch(r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}/[^{}<>` ]+", url), url


def test_only_the_converted_file_has_no_address():
    (item,) = [item for item in ENTRIES if item.url is None]
    assert item.name == "molecules/fastsmcg_dev.sdf"
    assert item.source_url.endswith("dataset-1_with-index.pkl")
    assert "Converted" in item.description


def test_address_of_a_file_in_a_group():
    assert entry("proteins/ddg/pdbs/1LVE.pdb").url == (
        "https://raw.githubusercontent.com/Kortemme-Lab/ddg/37d405af2dac41477c689e6e63d5f5c2b9f5a665/input/pdbs/1LVE.pdb"
    )


def test_address_of_a_renamed_file():
    url = entry("molecules/geom_qm9_test_smiles.csv").url
    assert url is not None and url.endswith("/data/QM9/test_smiles_corrected.csv")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("molecules/chembl1k.smi", "molecules/chembl_1k.smi"),
        ("chembl_1k.smi", "molecules/chembl_1k.smi"),
        ("proteins/formats/1AKI.pdb", "proteins/formats/1aki.pdb"),
    ],
)
def test_unknown_name_suggests_the_meant_one(given, meant):
    with pytest.raises(ValueError, match=f"got '{given}'. Did you mean .*`{re.escape(meant)}`.*sciopt data list"):
        entry(given)


def test_unknown_name_without_relatives_suggests_nothing():
    with pytest.raises(ValueError, match="got 'qqqqqqqq'. `sciopt data list`"):
        entry("qqqqqqqq")


def test_registry_and_entries_are_read_only():
    with pytest.raises(TypeError):
        registry()["new"] = ENTRIES[0]  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        ENTRIES[0].size = 1  # type: ignore[misc]


@pytest.mark.parametrize("folder", sorted({item.name.rsplit("/", 1)[0] for item in ENTRIES}))
def test_files_have_the_size_and_checksum_of_the_registry(folder):
    for item in ENTRIES:
        if item.name.rsplit("/", 1)[0] == folder:
            assert require_data(item.name).stat().st_size == item.size


def test_descriptions_agree_with_the_files():
    """Counts that the descriptions state, counted."""
    lines = require_data("molecules/chembl_1k.smi").read_text().splitlines()
    assert (len(lines), sum(line.startswith("# ") for line in lines)) == (1000, 1)
    assert len(require_data("offline/tf_binding/SIX6_REF_R1_8mers.txt").read_text().splitlines()) == 1 + 32896
    sdf = require_data("molecules/fastsmcg_dev.sdf").read_text()
    assert sdf.count("$$$$") == 1000
    assert sdf.count("<amr_torsional_diffusion_50>") == 995

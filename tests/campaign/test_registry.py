import subprocess
import sys

import pytest

from sciopt.campaign import SpecError
from sciopt.campaign.registry import ENVIRONMENT, domains, find, kinds


def test_finds_what_the_environment_names():
    assert find("fake.square").version == "1"
    assert list(kinds("fake")) == ["fake.square"]
    assert "topology" in domains()


@pytest.mark.parametrize(
    ("setting", "name", "message"),
    [
        ("fake", "fake.square", "expected `name=module:attribute`"),
        ("fake=nowhere:problems", "fake.square", "got ModuleNotFoundError"),
        ("fake=sciopt_fake:missing", "fake.square", "got AttributeError"),
        ("other=sciopt_fake:problems", "other.square", "expected ProblemKinds `other.<problem>`, got fake.square"),
        ("fake=sciopt_fake:problems", "fake.squar", "Did you mean `fake.square`"),
        ("fake=sciopt_fake:problems", "fke.square", "Did you mean `fake`"),
    ],
)
def test_refusals(monkeypatch, setting, name, message):
    monkeypatch.setenv(ENVIRONMENT, setting)
    with pytest.raises(SpecError, match=message):
        find(name)


def test_looking_up_imports_no_domain():
    code = (
        "import sys; from sciopt.campaign.registry import domains; domains(); "
        "sys.exit(any(name.startswith('sciopt.domains.') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

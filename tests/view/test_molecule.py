"""The offline 3D view: the page holds all it needs, shows a picture without scripts, and draws in a real browser."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.resources import files

import matplotlib.image
import numpy as np
import pytest

from sciopt.view import MoleculeScene, MoleculeView

CARBON_DIOXIDE = MoleculeScene(
    elements=("O", "C", "O"),
    bonds=((0, 1, 2.0), (1, 2, 2.0)),
    positions=(((-1.2, 0, 0), (0, 0, 0), (1.2, 0, 0)), ((-1.2, 0, 0), (0, 0, 0), (0.8, 0.9, 0))),
    labels=("0.00 kcal/mol", "9.00 kcal/mol"),
    title='</script><img src="x" onerror="alert(1)">',
)


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_page_loads_nothing_and_forbids_loading():
    page = Page(MoleculeView(scene=CARBON_DIOXIDE).page())
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'") and "http" not in policy
    sources = [a.get("src") for tag, a in page.tags if "src" in a]
    assert len(sources) == 1 and str(sources[0]).startswith("data:image/png;base64,")
    assert not [tag for tag, a in page.tags if tag == "link" or "href" in a]
    assert [tag for tag, _ in page.tags].count("script") == 3  # the title has not become one


def test_page_holds_the_scene_and_the_viewer():
    text = MoleculeView(scene=CARBON_DIOXIDE, overlay=True, hydrogens=False).page()
    scene = json.loads(re.search(r"window\.scene=(\{.*?\});</script>", text).group(1))  # pyright: ignore
    assert scene["elements"] == ["O", "C", "O"] and scene["bonds"] == [[0, 1, 2.0], [1, 2, 2.0]]
    assert scene["positions"][1][2] == [0.8, 0.9, 0.0] and scene["labels"][1] == "9.00 kcal/mol"
    assert files("sciopt.view").joinpath("3Dmol-min.js").read_text(encoding="utf-8") in text
    assert 'id="overlay" type="checkbox" checked' in text and 'id="hydrogens" type="checkbox">' in text
    licence = files("sciopt.view").joinpath("3Dmol-LICENSE.txt").read_text(encoding="utf-8")
    assert "University of Pittsburgh" in licence and "BSD-3-Clause" in licence and "pako" in licence


def test_notebook_gets_a_sandboxed_frame_a_picture_and_text():
    bundle = MoleculeView(scene=CARBON_DIOXIDE)._repr_mimebundle_()
    ((tag, attributes),) = Page(bundle["text/html"]).tags
    assert (tag, attributes["sandbox"]) == ("iframe", "allow-scripts")
    assert attributes["srcdoc"] == MoleculeView(scene=CARBON_DIOXIDE).page()
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert bundle["text/plain"].startswith("MoleculeView(3 atoms, 2 geometries; save(")


def reds(png: bytes) -> np.ndarray:
    """Where a picture is clearly red: oxygen."""
    image = matplotlib.image.imread(io.BytesIO(png))
    return (image[..., 0] > 0.6) & (image[..., 1] < 0.35) & (image[..., 2] < 0.35)


def test_static_picture_shows_the_atoms_where_they_are():
    png = MoleculeView(scene=CARBON_DIOXIDE, width=400, height=200).picture()
    red = reds(png)
    assert red.shape == (200, 400)
    rows, columns = np.nonzero(red)
    assert 90 < rows.mean() < 110 and 190 < columns.mean() < 210  # symmetric about the carbon in the middle
    assert columns.min() < 130 and columns.max() > 270 and not red[:, 180:220].any()


def test_saving(tmp_path):
    view = MoleculeView(scene=CARBON_DIOXIDE)
    assert view.save(tmp_path / "v.html").read_text(encoding="utf-8") == view.page()
    assert view.save(str(tmp_path / "v.png")).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="html or .png"):
        view.save(tmp_path / "v.gif")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v.html", "v.png"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"elements": ()}, "Embed"),
        ({"positions": ()}, "Embed"),
        ({"positions": (((0, 0, 0),),)}, "3 points"),
        ({"positions": (((0, 0, 0), (0, 0, float("nan")), (1, 1, 1)),), "labels": ()}, "NaN"),
        ({"bonds": ((0, 3, 1.0),)}, "index outside"),
        ({"labels": ("one",)}, "one of `labels` per geometry"),
    ],
)
def test_scenes_that_do_not_fit_are_refused(change, message):
    given = {name: getattr(CARBON_DIOXIDE, name) for name in ("elements", "bonds", "positions", "labels", "title")}
    with pytest.raises(ValueError, match=message):
        MoleculeScene(**{**given, **change})
    with pytest.raises(ValueError, match="pixels"):
        MoleculeView(scene=CARBON_DIOXIDE, width=10)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-quic --no-first-run --disable-background-networking --disable-component-update "
)
FLAGS += "--disable-sync --hide-scrollbars --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader "
FLAGS += "--window-size=400,300"


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian package `chromium`)")
@pytest.mark.parametrize("state", ["webgl", "no-webgl", "no-scripts"])
def test_browser_draws_the_molecule_without_network(tmp_path, state):
    """In a notebook's frame, where names resolve to nothing; the still picture is taken out where WebGL is to draw."""
    html = MoleculeView(scene=CARBON_DIOXIDE, width=400, height=300)._repr_mimebundle_()["text/html"]
    if state == "webgl":
        html = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "data:,", html)
    if state == "no-webgl":
        refusal = "HTMLCanvasElement.prototype.getContext = () =&gt; null; window.scene="
        assert html.count("window.scene=") == 1
        html = html.replace("window.scene=", refusal)
    if state == "no-scripts":
        html = html.replace('sandbox="allow-scripts"', 'sandbox=""')
    (tmp_path / "cell.html").write_text(f"<!doctype html><body style='margin:0'>{html}</body>", encoding="utf-8")
    command = [str(CHROMIUM), *FLAGS.split(), "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += [f"--user-data-dir={tmp_path / 'u'}", f"--screenshot={tmp_path / 'shot.png'}"]
    page = (tmp_path / "cell.html").as_uri()
    for budget in (4000, 20_000):  # milliseconds; WebGL in software on a busy machine may take the longer one
        wait = f"--virtual-time-budget={budget}"
        subprocess.run([*command, wait, page], capture_output=True, timeout=60, check=True)
        red = reds((tmp_path / "shot.png").read_bytes())
        if red.any():
            break
    columns = np.nonzero(red)[1]
    assert red.sum() > 100 and columns.min() < 190 and columns.max() > 210 and not red[:, 198:202].any()
    # The still picture fills the frame; 3Dmol.js draws so small a molecule smaller.
    assert (columns.max() - columns.min() > 120) == (state != "webgl")

"""What is installed: its name, the files of its wheel, and its versions.

The name `llmux` on the package index belongs to another project, a chat program that even reads `./llmux.yaml`.
No document, message or comment may send a reader there.
"""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
import tomllib
from email.message import Message
from email.parser import Parser
from functools import cache
from pathlib import Path
from zipfile import ZipFile

import pytest

from docs import generate
from llmux import __version__
from llmux.api.page import CONTENT_TYPES
from llmux.cli.examples import EXAMPLES
from llmux.config.schema import SCHEMA_FILE

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME = "llmux-proxy"

_FOREIGN = r"(?<![\w./:@=-])['\"]?llmux(?![\w/-]|\.\w)"
"""`llmux` as the name of a distribution: not a path, not `llmux-proxy`, not `llmux.app`."""

_INSTALLER = (
    r"\b(?:pip3?|pipx|uv|conda|mamba|poetry|pdm|rye|easy_install)\b[^\n`#;&|()]*?"
    r"\b(?:install|add|download|upgrade|inject|run)\b"
)

FOREIGN = re.compile(
    rf"{_INSTALLER}(?:[^\n`#;&|()]*?[ =,])?{_FOREIGN}"
    r"|\bllmux\[\w"  # an extra
    r"|\bllmux *(?:[=~!<>]=|===?) *\d"  # a requirement
    r"|\b(?:uvx|pipx run) +llmux\b(?!-)"
    r"|/(?:project|simple|pypi)/llmux\b(?!-)"
    r"|(?:version|metadata|distribution)\(['\"]llmux['\"]\)"  # importlib.metadata
)


@pytest.mark.parametrize(
    "text",
    [
        "pip install llmux",
        "pip install 'llmux[otel]'",
        "python -m pip install -U llmux==0.2",
        "pip install --upgrade trio llmux",
        "pipx install llmux",
        "pipx run llmux --version",
        "uv tool install llmux",
        "uv pip install --system llmux",
        "uvx llmux",
        "uv add llmux",
        'needs OpenTelemetry: pip install "llmux"',
        "(needs llmux[plot])",
        "llmux>=0.2",
        "poetry add llmux",
        "importlib.metadata.version('llmux')",
        "https://index.example/project/llmux/",
    ],
)
def test_an_install_of_the_foreign_distribution_is_noticed(text: str) -> None:
    assert FOREIGN.search(text)


@pytest.mark.parametrize(
    "text",
    [
        "pip install llmux-proxy",
        "pip install 'llmux-proxy[otel]'",
        "pipx install llmux-proxy && llmux demo",
        "uv tool install llmux-proxy; llmux demo",
        "uvx --from llmux-proxy llmux",
        "pip install ./llmux-main",
        "pip install -e . # then run llmux",
        "/opt/build/bin/pip --python /opt/llmux/bin/python install x",
        "podman run -v ./conf:/etc/llmux:ro llmux",
        "PYTHON -m pip install -r requirements.txt",
        "serve llmux.yaml",
    ],
)
def test_what_installs_no_foreign_distribution_passes(text: str) -> None:
    assert not FOREIGN.search(text)


def sources() -> list[Path]:
    """All text files of the repository but this one, and what tools recorded."""
    listed = subprocess.check_output(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True
    )
    paths = (ROOT / name for name in listed.splitlines())
    binary = {".png", ".ico", ".woff2", ".gz"}
    return [
        path
        for path in paths
        if path.is_file() and path.suffix not in binary and path != Path(__file__)
    ]


def lines_of(path: Path) -> list[str]:
    """Its lines; a command that goes on behind a backslash is one."""
    return path.read_text(errors="replace").replace("\\\n", " ").splitlines()


def test_no_text_installs_the_foreign_distribution() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path in sources()
        for number, line in enumerate(lines_of(path), 1)
        if "llmux" in line and FOREIGN.search(line)
    ]
    assert found == []


def test_its_name_is_said_where_a_reader_installs() -> None:
    assert PROJECT["name"] == NAME
    for page in ("README.md", "docs/quick-start.md"):
        assert re.search(rf"(pipx|uv tool|pip) install {NAME}\b", (ROOT / page).read_text()), page


def test_extras_that_name_the_project_name_it_right() -> None:
    own = [
        requirement
        for extra in PROJECT["optional-dependencies"].values()
        for requirement in extra
        if requirement.startswith("llmux")
    ]
    assert own == [f"{NAME}[fleet,otel]"]


def test_the_changelog_begins_with_this_version() -> None:
    first = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None
    assert first[1] == __version__


def test_the_schema_in_the_package_is_up_to_date() -> None:
    assert SCHEMA_FILE.read_text() == generate.schema_text(), "run: python -m docs.generate"


# ---- The wheel ----


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


def build_wheel(project: Path, folder: Path) -> Path:
    builder = pytest.importorskip("hatchling.builders.wheel", reason="needs hatchling")
    (built,) = builder.WheelBuilder(str(project)).build(
        directory=str(folder), versions=["standard"]
    )
    return Path(built)


@cache
def names_in(wheel: Path) -> frozenset[str]:
    with ZipFile(wheel) as archive:
        return frozenset(archive.namelist())


def metadata_of(wheel: Path) -> Message:
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_the_wheel_has_the_name_the_version_and_the_licence(wheel: Path) -> None:
    assert wheel.name == f"llmux_proxy-{__version__}-py3-none-any.whl"
    metadata = metadata_of(wheel)
    assert (metadata["Name"], metadata["Version"]) == (NAME, __version__)
    assert metadata["License-Expression"] == "MIT"
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names_in(wheel))
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "llmux = llmux.__main__:main" in archive.read(name).decode()


def test_the_wheel_has_everything_that_llmux_reads(wheel: Path) -> None:
    tracked = subprocess.check_output(["git", "ls-files", "llmux"], cwd=ROOT, text=True)
    names = names_in(wheel)
    assert set(tracked.split()) - names == set()
    assert {"llmux/py.typed", "llmux/ui/index.html", "llmux/config/llmux.schema.json"} <= names
    assert any(name.startswith("llmux/ui/") and name.endswith(".js") for name in names)
    assert all(f"llmux/ui/{entry}" in names for entry in page_files())


def page_files() -> list[str]:
    folder = ROOT / "llmux" / "ui"
    return [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix in CONTENT_TYPES
    ]


def test_the_wheel_has_the_examples_that_llmux_prints(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        for name, (source, _) in EXAMPLES.items():
            assert archive.read(f"llmux/examples/{name}") == (ROOT / source).read_bytes()


def test_the_wheel_has_nothing_else(wheel: Path) -> None:
    tops = {name.partition("/")[0] for name in names_in(wheel)}
    assert tops == {"llmux", f"llmux_proxy-{__version__}.dist-info"}
    assert not [name for name in names_in(wheel) if "__pycache__" in name or name.endswith(".pyc")]


def test_a_wheel_of_the_source_distribution_is_the_same(wheel: Path, tmp_path: Path) -> None:
    sdist = pytest.importorskip("hatchling.builders.sdist", reason="needs hatchling")
    (packed,) = sdist.SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(packed) as archive:
        if hasattr(tarfile, "data_filter"):  # Python 3.11.0 to 3.11.3 have none
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(tmp_path)
    again = build_wheel(tmp_path / f"llmux_proxy-{__version__}", tmp_path)
    assert names_in(again) == names_in(wheel)


def test_the_schema_of_the_wheel_is_json(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        schema = json.loads(archive.read("llmux/config/llmux.schema.json"))
    assert schema["$schema"].startswith("https://json-schema.org/")

"""Which interpreter runs engine processes: of a frozen app, one that embeds Python, with PYTHONHOME; or a named one."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from chroma_manager import ChromaDBManager, InstanceOpenError, ManagerConfigurationError
from chroma_manager.options import ENGINES
from conftest import engine_of, new_collection

pytestmark = pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system")

# It takes its options from its argument, and notes each start.
APP = """
import os, sys
with open(os.environ["STARTS"], "a") as starts:
    starts.write(".")
"""

# The app is frozen without the libraries, which would take minutes: it finds them, and what of the standard library is
# left out with them, where they are installed.
PATHS = """
import importlib
packages = os.environ["PACKAGES"].split(os.pathsep)
sys.path += packages
for name in os.listdir(packages[0]):
    is_package = os.path.exists(os.path.join(packages[0], name, "__init__.py"))
    if is_package and name not in ("idlelib", "lib2to3", "test", "tkinter", "turtledemo"):
        importlib.import_module(name)
for name, module in list(sys.modules.items()):
    if hasattr(module, "__path__"):
        module.__path__ = [*module.__path__, os.path.join(packages[0], *name.split("."))]
"""

USE = """
from chroma_manager import ChromaDBManager
for options in eval(sys.argv[1]):
    manager = ChromaDBManager(base_path=os.environ["BASE"], **options)
    try:
        collection = manager.get_collection("doc", "azure", "rag_collection")
        collection.upsert(ids=["1"], embeddings=[[1.0, 2.0]])
        print(collection.get()["ids"], manager.verify("doc", "azure").ok)
    except Exception as error:
        print(type(error).__name__, error)
    manager.shutdown()
"""

PACKAGES = [sysconfig.get_path("stdlib"), sysconfig.get_config_var("DESTSHARED"), sysconfig.get_path("purelib")]

# A program that embeds Python, and does the same whatever its arguments are.
EMBEDDING = """
#include <Python.h>
int main(int count, char **words) {
    PyConfig config;
    PyConfig_InitPythonConfig(&config);
    PyConfig_SetBytesString(&config, &config.program_name, words[0]);
    Py_InitializeFromConfig(&config);
    return PyRun_SimpleFile(fopen("app.py", "r"), "app.py") || Py_FinalizeEx();
}
"""


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An app that PyInstaller has frozen."""
    home = tmp_path_factory.mktemp("frozen")
    (home / "app.py").write_text(APP + PATHS + USE)
    command = [sys.executable, "-m", "PyInstaller", "--onedir", "--log-level", "ERROR"]
    for left_out in ("chroma_manager", "pip", "setuptools", "numpy"):
        command += ["--exclude-module", left_out]
    subprocess.run([*command, "app.py"], cwd=home, check=True, capture_output=True, timeout=100)
    return home / "dist" / "app" / "app"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    told = {"BASE": tmp_path / "db", "STARTS": tmp_path / "starts", "PACKAGES": os.pathsep.join(PACKAGES)}
    return {**os.environ, **{name: str(value) for name, value in told.items()}}


def run(command: list[str | Path], environment: dict[str, str]) -> list[str]:
    """What an app says, which is started once."""
    ended = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=100
    )
    assert ended.returncode == 0, ended.stderr
    assert Path(environment["STARTS"]).read_text() == "."
    return ended.stdout.splitlines()


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="PyInstaller is installed on Linux")
def test_a_frozen_app_is_never_started_again_and_can_name_an_interpreter(frozen: Path, environment) -> None:
    options = [{}, {"python": str(frozen)}, {"engine": "embedded"}, {"python": sys.executable}]
    none, itself, embedded, named = run([frozen, repr(options)], environment)
    for said in (none, itself):
        assert said.startswith("InstanceOpenError cannot open doc/azure")
        assert "no Python interpreter for engine processes" in said
        assert "python=..." in said
    assert f"this app is frozen (sys.frozen), and none is beside {frozen}" in none
    assert f"{frozen.parent}/_internal/bin/python3" in none, "a place that was tried"
    assert f"{frozen} (it is not named as an interpreter is, so it was not started)" in itself
    assert "verify() of the database in" in embedded
    assert "no Python interpreter is found" in embedded
    assert named == "['1'] True"


def test_a_program_that_embeds_python_runs_engines_on_the_interpreter_of_its_prefix(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "app.c").write_text(EMBEDDING)
    library, version = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LDVERSION")
    command = [
        "cc",
        "app.c",
        "-o",
        "app",
        f"-I{sysconfig.get_path('include')}",
        f"-L{library}",
        f"-Wl,-rpath,{library}",
    ]
    linked = [f"-lpython{version}", *sysconfig.get_config_var("LIBS").split(), "-lm"]
    subprocess.run([*command, *linked], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.py").write_text(f"import sys; sys.path += {PACKAGES[2:]}; sys.argv = ['', '[{{}}]']\n{APP}{USE}")
    assert run([tmp_path / "app"], environment) == ["['1'] True"]


@pytest.mark.parametrize("executable", [None, "", "/nowhere/python3", "/usr/bin/true", "link to true"])
def test_an_app_whose_sys_executable_is_no_interpreter_finds_its_own(tmp_path, monkeypatch, executable) -> None:
    if executable == "link to true":
        executable = str(tmp_path / "python3")
        os.symlink("/usr/bin/true", executable)
    own = sys.executable
    monkeypatch.setattr(sys, "executable", executable)
    manager = ChromaDBManager(base_path=tmp_path / "db", engine="isolated")
    assert new_collection(manager).get()["ids"] == ["1"]
    assert os.path.samefile(engine_of(manager).exe(), own)


def test_an_interpreter_that_cannot_be_used_is_an_error_that_names_it(tmp_path: Path) -> None:
    for path in (tmp_path / "python3", tmp_path, 7):
        with pytest.raises(ManagerConfigurationError, match=r"^python="):
            ChromaDBManager(base_path=tmp_path / "db", python=path)
    false = tmp_path / "python3"
    false.symlink_to("/usr/bin/false")
    manager = ChromaDBManager(base_path=tmp_path / "db", python=false)
    with pytest.raises(
        InstanceOpenError, match=f"python='{false}' cannot be used.* Tried: {false} \\(exit status 1"
    ) as caught:
        manager.get_client("doc", "azure")
    assert isinstance(caught.value.__cause__, ManagerConfigurationError)
    assert not (tmp_path / "db").exists()
    false.unlink()
    # It was mended: one that has nothing installed finds what the app has.
    false.symlink_to(os.path.realpath(sys.executable))
    assert new_collection(manager).get()["ids"] == ["1"]
    with pytest.raises(ManagerConfigurationError, match="python="):
        ChromaDBManager(python=sys.executable)


# The interpreter finds its standard library only with PYTHONHOME.
MOVED = """
cp "$(readlink -f {python})" {place}/python3 && mkdir {place}/home && mount --bind {prefix} {place}/home &&
mount -t tmpfs none {prefix} && export PYTHONHOME={place}/home LD_LIBRARY_PATH={place}/home/lib && exec "$@"
"""


def test_pythonhome_counts_for_engine_processes_too(tmp_path: Path, environment: dict[str, str]) -> None:
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("only root can make namespaces here")
    prefix = sys.base_prefix
    if Path(sys.prefix).is_relative_to(prefix):
        pytest.skip("what is installed lies in what is to be moved")
    moved = MOVED.format(python=sys.executable, place=tmp_path, prefix=prefix)
    code = "import sys; sys.path += " + repr(PACKAGES[2:]) + "\n" + APP + USE
    command = ["unshare", "--mount", "sh", "-c", moved, "sh", tmp_path / "python3", "-c", code, "[{}]"]
    # A module of that name is the app's, and no engine process's.
    (tmp_path / "sqlite3.py").write_text("raise ImportError('of the app')")
    assert run(command, {**environment, "PYTHONPATH": "", "PYTHONWARNINGS": "ignore"}) == ["['1'] True"]

"""What a fresh interpreter has imported, and how long it took, when muco has answered."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

HEAVY = {
    "torch",
    "torchvision",
    "transformers",
    "open_clip",
    "timm",
    "accelerate",
    "tensorboard",
    "numpy",
    "PIL",
    "webdataset",
}

ANSWER = """
import sys
from muco.commands.main import main, run_main
sys.argv = sys.argv[1:]
try:
    run_main() if sys.argv[0] == "muco-run" else main()
finally:
    print("modules", *sys.modules)
"""


def modules_after(code: str, *arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def cpu_seconds(code: str, *arguments: str) -> float:
    """Return what an interpreter takes of the processor: others may be busy."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@pytest.mark.process
@pytest.mark.parametrize("module", ["muco", "muco.core", "muco.plugins.hooks", "muco.commands.main"])
def test_importing_a_face_imports_nothing_heavy(module):
    assert not modules_after(f"import sys, {module}; print('modules', *sys.modules)") & HEAVY


@pytest.mark.process
@pytest.mark.parametrize(
    "arguments",
    [("muco", "list"), ("muco", "list", "packer"), ("muco", "--help"), ("muco-run", "--help")],
    ids=" ".join,
)
def test_listing_and_help_import_nothing_heavy(arguments):
    assert not modules_after(ANSWER, *arguments) & HEAVY


@pytest.mark.process
@pytest.mark.parametrize(
    "arguments", [("muco", "list"), ("muco", "--help"), ("muco-run", "--help")], ids=" ".join
)
def test_listing_and_help_answer_within_half_a_second(arguments):
    assert any(cpu_seconds(ANSWER, *arguments) < 0.5 for _ in range(3))


@pytest.mark.process
def test_checking_a_recipe_imports_no_model_class():
    modules = modules_after(ANSWER, "muco-run", "quickstart", "--check")
    assert not [name for name in modules if name.startswith("transformers")]


@pytest.mark.process
def test_checking_a_recipe_takes_less_than_a_second_beside_the_import_of_torch():
    """Torch alone takes two on a laptop, and more where the caches are shared."""
    assert any(
        cpu_seconds(ANSWER, "muco-run", "quickstart", "--check") < cpu_seconds("import torch") + 1
        for _ in range(3)
    )


@pytest.mark.parametrize(
    "first", ["from muco import run", "import muco.commands.run", "from muco.commands import run as _"]
)
def test_muco_run_is_the_function_whatever_was_imported_first(first):
    code = f"{first}\nimport muco\nfrom muco import run\nassert muco.run is run\nassert callable(run)\n"
    subprocess.run([sys.executable, "-c", code], check=True)

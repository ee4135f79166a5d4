"""What a release rests on says the same everywhere: versions, extras, workflows, the image."""

import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import fedjax_sim

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted(FOLDER.glob("*.yml"))
}
JOBS = {
    f"{workflow}/{name}": job
    for workflow, content in WORKFLOWS.items()
    for name, job in content["jobs"].items()
}


def pythons() -> list[str]:
    """The versions of Python that the package says it is for."""
    named = (re.fullmatch(r".* :: Python :: (3\.\d+)", each) for each in PROJECT["classifiers"])
    return [each[1] for each in named if each]


def steps(job: str, kind: str) -> list[str]:
    return [step[kind] for step in JOBS[job]["steps"] if kind in step]


def test_every_python_is_tested_with_the_oldest_and_the_newest_jax() -> None:
    matrix = WORKFLOWS["tests"]["jobs"]["versions"]["strategy"]["matrix"]
    assert matrix["python"] == pythons()
    assert PROJECT["requires-python"] == f">={pythons()[0]}"
    (lower,) = [each for each in PROJECT["dependencies"] if each.startswith("jax>=")]
    oldest = lower.removeprefix("jax>=")
    assert matrix["jax"] == [f"=={oldest}.*", f">={oldest}"]
    assert f"jaxlib>={oldest}" in PROJECT["dependencies"]


def test_the_version_is_one() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == fedjax_sim.__version__
    assert (citation["license"], citation["cff-version"]) == (PROJECT["license"], "1.2.0")
    assert citation["authors"] == PROJECT["authors"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert fedjax_sim.__version__ in changes


@pytest.mark.parametrize("job", JOBS)
def test_what_a_job_runs_is_there(job: str) -> None:
    commands = "\n".join(steps(job, "run"))
    for script in re.findall(r"\./(scripts/\S+)", commands):
        assert os.access(ROOT / script, os.X_OK), script
    for path in re.findall(r"\btests/\S+", commands):
        assert (ROOT / path).exists(), path
    for extras in re.findall(r"'\.\[(.+?)\]'|EXTRAS=(\S+)", commands):
        assert {*"".join(extras).split(",")} <= {*PROJECT["optional-dependencies"]}


def test_the_scripts_that_check_are_run() -> None:
    assert "./scripts/test" in steps("tests/pinned", "run")
    assert "./scripts/wheel" in steps("tests/wheel", "run")
    assert "./scripts/wheel" in steps("release/build", "run")
    assert "mkdocs build --strict" in steps("docs/build", "run")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_only_read(name: str) -> None:
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    assert "group" in WORKFLOWS[name]["concurrency"]
    for job in WORKFLOWS[name]["jobs"].values():
        assert job["timeout-minutes"] <= 90
        assert job["runs-on"]


def test_only_publishing_is_trusted() -> None:
    trusted = {name: job["permissions"] for name, job in JOBS.items() if "permissions" in job}
    assert trusted == {"release/publish": {"id-token": "write"}}
    assert JOBS["release/publish"]["needs"] == "build"
    # YAML takes the word "on" for True.
    assert WORKFLOWS["release"][True] == {"push": {"tags": ["v*"]}}


@pytest.mark.parametrize("job", JOBS)
def test_actions_are_pinned_to_a_major_version(job: str) -> None:
    for action in steps(job, "uses"):
        assert re.fullmatch(r"actions/[\w-]+@v\d+|pypa/gh-action-pypi-publish@release/v\d+", action)


def test_extras_that_are_named_are_there() -> None:
    sources = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "Dockerfile"]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    named = re.findall(r"(?:fedjax-sim|'\.)\[([\w,]+)\]|EXTRAS=([\w,]+)", text)
    extras = {extra for each in named for extra in "".join(each).split(",")}
    assert {"cuda", "docs", "trackers", "tensorboard"} <= extras
    assert extras <= {*PROJECT["optional-dependencies"]}


def test_the_image_holds_what_the_package_is_built_from() -> None:
    image = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (python,) = re.findall(r"^FROM python:(3\.\d+)-slim$", image, re.MULTILINE)
    assert python in pythons()
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    assert kept == {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], "fedjax_sim"}
    users = re.findall(r"^USER (\d+)$", image, re.MULTILINE)
    assert users and "0" not in users


def test_what_does_not_exist_for_windows_is_not_pinned_there() -> None:
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    for name in ("uvloop", "array-record"):
        assert re.search(rf'^{name}==\S+ ; sys_platform != "win32"$', pins, re.MULTILINE)

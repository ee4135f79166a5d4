"""`fedjax-sim parts`: what it shows is what the code says."""

import pytest

from fedjax_sim.cli import main
from fedjax_sim.cli import parts as command
from fedjax_sim.parts import signatures


def shown(capsys: pytest.CaptureFixture[str], *names: str, status: int = 0) -> str:
    with pytest.raises(SystemExit) as stopped:
        main.main(["parts", *names])
    assert stopped.value.code == status
    out, err = capsys.readouterr()
    return " ".join((out + err).split())


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")


def test_all_kinds_and_names_are_shown(capsys):
    text = shown(capsys)
    for kind, of in command.kinds().items():
        assert f"{kind} " in text
        assert ", ".join(signatures.among(of)) in text


@pytest.mark.parametrize("kind", ["aggregator", "client-rule", "optimizer", "schedule", "loss"])
def test_the_parts_of_a_kind_are_shown_with_what_they_take(capsys, kind):
    text = shown(capsys, kind)
    for name in signatures.among(command.kinds()[kind]):
        assert f" {name} " in text
    if kind == "aggregator":
        assert "multi_krum" in text and "num_byzantine, num_selected=None" in text


def test_a_part_is_shown_with_its_options(capsys):
    text = shown(capsys, "attack", "little_is_enough")
    assert "little_is_enough(z=None, side='below', knows='honest')" in text
    part = signatures.lookup("little_is_enough")
    assert part is not None
    for name in part.parameters:
        assert f"{name} " in text and signatures.help_of(part, name).split("[")[0][:60] in text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("agregator",), "unknown KIND 'agregator'. Did you mean 'aggregator'?"),
        (("aggregator", "krumm"), "unknown NAME 'krumm'. Did you mean 'krum'?"),
        (("--all",), "usage: fedjax-sim parts"),
        (("a", "b", "c"), "usage: fedjax-sim parts"),
    ],
)
def test_mistakes_are_told(capsys, names, message):
    assert message in shown(capsys, *names, status=2)


def test_help(capsys):
    assert "usage: fedjax-sim parts [KIND [NAME]]" in shown(capsys, "--help")

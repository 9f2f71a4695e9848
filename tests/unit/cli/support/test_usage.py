"""What is typed and what stands in configurations: text stays text, YAML is strict, mistakes are told in one line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from jsonargparse import ActionConfigFile, Namespace

from lightning_action.cli.support.mistakes import UsageError
from lightning_action.cli.support.usage import RunParser
from lightning_action.cli.support.usage_messages import shipped_configurations
from lightning_action.configuration.strict_yaml import read_yaml


class Part:
    def __init__(self, size: int = 1, name: str = "part", scales: dict[str, list[float]] | None = None) -> None:
        if size < 0:
            raise ValueError(f"size must not be negative, got {size}")
        self.size = size


class Data:
    def __init__(
        self,
        prompt: str,
        image: str | None = None,
        size: int = 3,
        sizes: list[int] | None = None,
        part: Part | None = None,
    ) -> None:
        self.prompt = prompt


@dataclass
class Settings:
    kind: str = "a"
    rate: float = 1.0


def new_parser() -> RunParser:
    parser = RunParser(prog="run")
    parser.add_argument("--root", type=str | None)
    parser.add_argument("--weighting", type=str)
    parser.add_subclass_arguments(Data, "data")
    parser.add_argument("--parts", type=list[Part] | None)
    parser.add_argument("--settings", type=Settings | None)
    parser.add_argument("--linked", type=str | None)
    parser.link_arguments("root", "linked")
    parser.add_argument("--config", action=ActionConfigFile)
    return parser


def parse(*args: str) -> Namespace:
    return new_parser().parse_args([f"--data={__name__}.Data", *args])


# What YAML reads as something else, or not at all.
TEXTS = [
    *("style: red", "a: b: c", "key:", "#1 disc", "a #b", "yes", "no", "on", "true", "1e3", "0x10", "1_000", "007"),
    *("[a]", "{a}", "{a: b}", "[", "- x", "? x", "*x", "&a", "!x", "!!python/name:os.system", "%", "%x", "@x", "`x`"),
    *("|", "> x", "'q'", '"q"', "\"'", " lead", "trail ", "  ", "2024-01-01", "2024-01-01 10:00:00", "12:30", "a\nb"),
    *(
        "a\n\nb: c",
        "ü 😀",
        "~",
        "Null",
        "...",
        "a=b",
        "--x y",
        "${x}",
        "a\tb",
        "\\n",
        ".inf",
        ".nan",
        "=",
        "<<",
        "a, b",
    ),
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("apart", [False, True])
def test_text_stays_text(text: str, apart: bool) -> None:
    keys = ("root", "weighting", "data.init_args.prompt", "data.image", "data.part.init_args.name")
    options = [[f"--{key}", text] if apart else [f"--{key}={text}"] for key in keys]
    found = parse(f"--data.part={__name__}.Part", *[word for option in options for word in option])
    data = found.data.init_args
    told = [found.root, found.weighting, data.prompt, data.image, data.part.init_args.name]
    assert told == [text] * 5 and {type(each) for each in told} == {str}
    saved = yaml.safe_load(new_parser().dump(found)) if text != "1e3" else read_yaml(new_parser().dump(found))
    assert saved["data"]["init_args"]["prompt"] == saved["root"] == text, "as it is saved"


def test_null_unsets_where_nothing_is_possible_and_is_text_elsewhere() -> None:
    found = parse("--root=null", "--weighting=null", "--data.prompt=null", "--data.image=null")
    assert (found.root, found.weighting) == (None, "null")
    assert (found.data.init_args.prompt, found.data.init_args.image) == ("null", None)


def test_other_types_are_read_as_before() -> None:
    more = ["--data.sizes=[1, 2]", "--data.sizes+=3", f"--data.part={__name__}.Part", "--data.part.size", "4"]
    found = parse(
        "--data.prompt=x", "--data.size", "-5", *more, "--data.part.scales={a: [1, 2.5]}", "--settings.rate=1e-3"
    )
    data = found.data.init_args
    assert (data.size, data.sizes, data.part.init_args.size, found.settings.rate) == (-5, [1, 2, 3], 4, 1e-3)
    assert data.part.init_args.scales == {"a": [1.0, 2.5]}
    inline = parse("--data.prompt=x", "--data.part={class_path: " + f"{__name__}.Part, init_args: {{size: 6}}}}")
    assert inline.data.init_args.part.init_args.size == 6


class Other(Part):
    pass


def test_arguments_of_a_class_in_a_list() -> None:
    first, second = ({"class_path": f"{__name__}.{name}", "init_args": {"size": 2}} for name in ("Part", "Other"))
    given = ["--data.prompt=x", f"--parts={[first, second]}"]
    found = parse(
        *given, "--parts.Part.size=7", "--parts.Other.init_args.name", "#1: x", "--parts.Part.scales={a: [1]}"
    )
    arguments = [part.init_args for part in found.parts]
    assert [(each.size, each.name) for each in arguments] == [(7, "part"), (2, "#1: x")]
    assert arguments[0].scales == {"a": [1.0]} and arguments[1].scales is None
    for wrong, message in (
        ("--parts.Paart.size=1", "needs one Paart in the list, there are 0 in Part, Other"),
        ("--parts.Part.siz=1", "there is no argument 'siz': did you mean 'size'"),
        ("--parts.Part.size=x", "expected int, got 'x'"),
    ):
        with pytest.raises(UsageError, match=message):
            parse(*given, wrong)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--weightng=x"], "there is no option --weightng: did you mean '--weighting'"),
        (["--data.init_args.sise=3"], "data: .*there is no argument 'sise': did you mean 'size'"),
        (["--data.size=big"], "data.size: .*expected int, got 'big'"),
        (["--settings.rate=x"], "settings.rate: .*expected float, got 'x'"),
        (["--data", f"{__name__}.Dta"], "has no attribute 'Dta': did you mean 'Data'"),
        (["--config=nowhere.yaml"], "no configuration at '.*nowhere.yaml'"),
        (["--config=configs/demo.yml"], "no configuration at .*: did you mean '.*demo.yaml'"),
        (["--linked=x"], "linked follows from root and cannot be set itself: set --root"),
        (["--root"], "argument --root: expected one argument"),
        (["stray by"], "expected an option, got stray by "),
        (["its/a.yaml"], "expected --config before its/a.yaml"),
    ],
)
def test_messages(args: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse("--data.prompt=x", *args)
    assert str(caught.value).endswith("(run --help lists what there is)") and "\n" not in str(caught.value)


def test_a_constructor_refuses_in_its_own_words() -> None:
    part = f"{{class_path: {__name__}.Part, init_args: {{size: -7}}}}"
    with pytest.raises(ValueError, match="^size must not be negative, got -7$"):
        new_parser().instantiate(parse("--data.prompt=x", f"--data.part={part}"))


BOMB = "a0: &a0 [1, 1]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(20))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("root: a\nweighting: b\nroot: c\n", "line 3: the key 'root' stands there already, in line 1"),
        ("data: &a\n  x: *a\n", "line 1: .*an alias"),
        (BOMB, "its aliases stand for more than"),
        ("root:\n\tx\n", "line 2"),
        ("# nothing\n", "expected a mapping of settings"),
        ("- a\n", "expected a mapping of settings"),
        ("", "expected a mapping of settings"),
        ("rot: a\n", "there is no argument 'rot': did you mean '--root'"),
        ("data: {init_args: {prompt: yes}}\n", "data.prompt: .*expected str, got 'True' .*put it into quotes"),
        ("root: 3\n", "root: expected str, got '3' .*put it into quotes"),
        ("linked: x\n", "linked follows from root"),
        ("root: \xff", "no text in UTF-8"),
    ],
)  # fmt: skip
def test_configurations(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=message) as caught:
        parse("--data.prompt=x", f"--config={path}")
    assert "\n" not in str(caught.value)


def test_shipped_configurations_are_found() -> None:
    shipped = shipped_configurations() / "demo.yaml"
    assert shipped.is_file()
    with pytest.raises(UsageError, match="the shipped one is '.*demo.yaml'"):
        parse("--config=elsewhere/demo.yaml")

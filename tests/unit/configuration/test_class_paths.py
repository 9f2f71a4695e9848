"""A configuration names classes of this package, torch and lightning, and of modules that its user names."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fsspec
import lightning.pytorch.cli  # noqa: F401 (it lets jsonargparse read configurations from anywhere)
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser, _common, _optionals

import lightning_action
from lightning_action.configuration.class_paths import (
    brought_up_to_date,
    import_named,
    only_importing,
    require_classes,
    split_allowed,
)
from lightning_action.run import build_module
from tests.support.written_run import CONFIG, write_run

PARTS = ("generator", "text_encoder", "vae", "action_projection", "action_module")
OUTSIDE = "names '{}', which is neither of lightning_action, torch or lightning nor allowed"


def built(folder: Path, part: str, value: Any, allow: Sequence[str] = ()) -> Any:
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "model": {**CONFIG["model"], part: value}}))
    return build_module(folder / "config.yaml", allow)


def called(name: str, /, **arguments: Any) -> dict[str, Any]:
    return {"class_path": name, "init_args": arguments}


@pytest.mark.parametrize("part", PARTS)
def test_no_form_of_a_command_runs(tmp_path: Path, part: str) -> None:
    marker = tmp_path / "marker"
    command = f"touch {marker}"
    forms: dict[str, tuple[Any, str]] = {
        "called": (called("os.system", command=command), OUTSIDE.format("os.system")),
        "by keywords": ({"class_path": "os.system", "dict_kwargs": {"command": command}}, "os.system"),
        "by its name": ("os.system", OUTSIDE.format("os.system")),
        "a class": (called("subprocess.Popen", args=["touch", str(marker)]), "subprocess.Popen"),
        "through a module of ours": (called("lightning_action.atomic.os.system", command=command), "posix.system"),
        "through torch": (called("torch.os.system", command=command), "posix.system"),
        "wrapped": (called("functools.partial", func="os.system"), "functools.partial"),
        "included": ("included.yaml", r"os\.system|loop"),
        "a function of torch": (
            called("torch.hub.load", repo_or_dir="x", model="y"),
            "is a function, expected a class",
        ),
        "one that unpickles": (called("torch.load", f="x", weights_only=False), "is a function, expected a class"),
        "one of ours": (
            called("lightning_action.atomic.remove", path=str(tmp_path)),
            "is a function, expected a class",
        ),
        "a method": (
            called("lightning.pytorch.LightningModule.load_from_checkpoint", checkpoint_path="x"),
            "expected a class",
        ),
        "a function by its name": ("lightning_action.atomic.remove", "describes no model"),
        "a class of another kind": (called("lightning_action.BlockCausality"), "describes no model"),
        "a list": ([called("os.system", command=command)], "describes no model"),
    }
    (tmp_path / "included.yaml").write_text(yaml.safe_dump(forms["called"][0]))
    for form, (value, message) in forms.items():
        with pytest.raises(ValueError, match=message) as refused:
            built(tmp_path, part, value)
        assert "\n" not in str(refused.value), form
        assert not marker.exists(), form
    subprocess.run(command, shell=True, check=True)
    assert marker.exists(), "the control: the command does it"


def test_nested_arguments_run_nothing(tmp_path: Path) -> None:
    command = called("os.system", command=f"touch {tmp_path / 'marker'}")
    encoder = CONFIG["model"]["text_encoder"]
    for arguments in (
        {**encoder, "init_args": {**encoder["init_args"], "text_dim": command}},
        {**encoder, "dict_kwargs": {"more": command}},
        {**encoder, "dict_kwargs": {"more": [command]}},
    ):
        with pytest.raises(ValueError, match=r"HashingTextEncoder|text_encoder|os\.system"):
            built(tmp_path, "text_encoder", arguments).configure_model()
    for section, value in (("schema", command), ("lora", command), ("sampling", {"seed": command})):
        with pytest.raises(ValueError, match=rf"describes no model: .*{section}|names 'os\.system'"):
            built(tmp_path, section, value)
    assert not (tmp_path / "marker").exists()


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module in the path of imports that tells when it is imported."""
    (tmp_path / "module_beside.py").write_text(
        "from pathlib import Path\nfrom lightning_action import HashingTextEncoder\n"
        "(Path(__file__).parent / 'imported').touch()\nclass Mine(HashingTextEncoder):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "module_beside", raising=False)
    return tmp_path


def test_other_modules_are_imported_only_if_they_are_named(beside: Path) -> None:
    mine = called("module_beside.Mine", text_dim=6, text_len=4)
    for value in (mine, "module_beside.Mine"):
        with pytest.raises(ValueError, match=r"'module_beside\.Mine', .* --allow module_beside .*\['module_beside'\]"):
            built(beside, "text_encoder", value)
    assert not (beside / "imported").exists() and "module_beside" not in sys.modules
    for allow in (("module_beside",), "module_beside"):
        module = built(beside, "text_encoder", mine, allow)
        assert type(module.frozen.text_encoder).__name__ == "Mine" and (beside / "imported").exists()


@pytest.mark.parametrize(
    "path", ["lightning_action.tests.support.malice.Touches", "lightning_action.configs.x.Y", "lightning_action.main.X"]
)
def test_a_folder_that_a_checkout_adds_to_the_package_is_no_part_of_it(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match=f"names '{path}', which is no part of lightning_action"):
        built(tmp_path, "vae", called(path))
    assert path.rpartition(".")[0] not in sys.modules


@pytest.mark.parametrize("name", ["", "a b", "a.", "*", "os;x"])
def test_what_is_allowed_is_a_module(name: str) -> None:
    with pytest.raises(ValueError, match="expected the name of a module to allow"), only_importing([name]):
        pass


def test_the_settings_of_other_parsers_come_back() -> None:
    before = (dict(_common.parsing_settings), _optionals._config_read_mode)
    assert "s" in before[1], "the control: Lightning reads configurations from anywhere"
    with pytest.raises(RuntimeError), only_importing(["some_module"]):
        assert _common.parsing_settings != before[0] and _optionals._config_read_mode == "fr"
        raise RuntimeError
    assert (_common.parsing_settings, _optionals._config_read_mode) == before


def test_nothing_is_included_from_an_address(tmp_path: Path) -> None:
    part = yaml.safe_dump(CONFIG["model"]["vae"])
    (tmp_path / "included.yaml").write_text(part)
    fsspec.filesystem("memory").pipe("/included.yaml", part.encode())
    assert fsspec.open("memory://included.yaml").open().read() == part.encode(), "the control: it can be read"
    assert type(built(tmp_path, "vae", "included.yaml").frozen.vae).__name__ == "LinearVideoCodec"
    with pytest.raises(ValueError, match=r"describes no model: .*model\.vae"):
        built(tmp_path, "vae", "memory://included.yaml")


class Holds:
    """Takes what a foreign class may take."""

    def __init__(self, anything: Any = None, table: dict | None = None, call: Callable | None = None) -> None:
        self.value = (anything, table, call)


def parsed(name: str, value: Any) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Holds, "x", fail_untyped=False)
    with only_importing(["tests"]):
        found = parser.parse_object({"x": called("tests.unit.configuration.test_class_paths.Holds", **{name: value})})
        require_classes(found)
        return parser.instantiate(found).x.value


def test_where_anything_is_taken_a_class_path_stays_a_value() -> None:
    linear = called("torch.nn.Linear", in_features=2, out_features=3)
    assert "Linear(" not in repr([parsed("anything", linear), parsed("table", linear)])
    assert parsed("call", "torch.nn.functional.relu")[2] is torch.nn.functional.relu


def test_functions_are_refused_where_any_callable_is_taken() -> None:
    with pytest.raises(ValueError, match=r"'torch\.hub\.load' is a function, expected a class"):
        parsed("call", called("torch.hub.load", repo_or_dir="x", model="y"))


@pytest.mark.parametrize(
    ("args", "allowed"),
    [
        ([], []),
        (["--allow", "mine", "--allow=other.part"], ["mine", "other.part"]),
        (["--data", "my_videos.MyVideos"], ["my_videos"]),
        (["--data=package.inside.MyVideos"], ["package"]),
        (["--data.class_path=a.B", "--data.init_args.world.class_path", "c.D"], ["a", "c"]),
        (["--model.vae=a.B", "--trainer.callbacks+=c.D", "--trainer.callbacks+", "e.F"], ["a", "c", "e"]),
        (["--data", "{class_path: a.B, init_args: {world: {class_path: c.D}}}"], ["a", "c"]),
        (["--trainer.callbacks", "[{class_path: a.B}, {class_path: c.D}]", "--data={not: [yaml"], ["a", "c"]),
        (["--trainer.callbacks=[a.B, c.D, 3]", "--data={world: a.B}"], ["a", "c"]),
        (["--data=lightning_action.tests.X"], ["lightning_action.tests"]),
        (["--config", "demo.yaml", "--ckpt_path=last.ckpt", "--data.init_args.actions", "my.csv"], []),
        (["--data.init_args.prompt", "os.system", "--trainer.default_root_dir=runs.v2", "--data", "Mine"], []),
    ],
)
def test_a_class_path_that_is_typed_names_its_package(args: list[str], allowed: list[str]) -> None:
    rest, found = split_allowed(["fit", *args])
    assert found == allowed
    assert rest == ["fit", *(arg for arg in args if "allow" not in arg and arg != "mine")]


def test_an_empty_command_line_allows_nothing() -> None:
    assert split_allowed([]) == ([], [])


def test_allow_needs_a_name() -> None:
    with pytest.raises(ValueError, match="--allow takes the name of a module"):
        split_allowed(["fit", "--allow"])


def test_a_file_that_is_typed_names_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert split_allowed(["--data", "my.yaml"])[1] == ["my"], "the control"
    (tmp_path / "my.yaml").touch()
    assert split_allowed(["--data", "my.yaml"])[1] == []


def test_all_that_is_exported_may_be_named() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--x", type=type)
    with only_importing():
        for name in lightning_action.__all__:
            if name[0].isupper():
                assert parser.parse_object({"x": f"lightning_action.{name}"}).x is getattr(lightning_action, name)


def test_only_the_setting_that_is_gone_is_left_out() -> None:
    saved = {"model": {"sampling": {"seed": 1, "stream_video": True}}, "data": {"init_args": {"stream_video": True}}}
    assert brought_up_to_date(saved) == {**saved, "model": {"sampling": {"seed": 1}}}


def test_a_name_is_imported_where_its_module_is_allowed() -> None:
    assert import_named("tests.support.written_run:write_run") is write_run
    with only_importing(["tests"]):
        assert import_named("tests.support.written_run:write_run") is write_run
        for path in ("math:pi", "tests.support.malice:os"):
            module = path.replace("tests.support.malice:os", "os").partition(":")[0]
            with pytest.raises(ImportError, match=f"Importing '{module}"):
                import_named(path)
    with pytest.raises(ValueError, match=OUTSIDE.format("math.pi")), only_importing():
        import_named("math:pi")


@pytest.mark.parametrize("path", ["torch.hub:load", "lightning.pytorch:Trainer", "lightning_action.run:load_run"])
def test_what_may_be_named_as_a_class_is_not_called_with_anything(path: str) -> None:
    assert import_named(path)
    with pytest.raises(ValueError, match="expected something in a module of yours"), only_importing(["tests"]):
        import_named(path)


@pytest.mark.parametrize("path", ["math", "math:", ":pi", "math:pi.real", "ma th:pi", "math:no_such", "math.pi"])
def test_names_are_written_with_a_colon(path: str) -> None:
    with pytest.raises(ValueError, match="expected module:name|has no attribute 'no_such'"):
        import_named(path)

"""The installed components, and the errors of plugin packages that cannot be used."""

from __future__ import annotations

from importlib.metadata import EntryPoint, version
from types import ModuleType

import pytest

from muco.core import CONTRACT, Component, ComponentConfig, Loss, PluginError, hookimpl
from muco.core import registry as registry_module
from muco.core.component import KINDS
from muco.core.hookspecs import HOOKS
from muco.core.registry import Registry

PROVIDER = "muco-shapes 0.3.1"


def plugin(
    contract: int | None = CONTRACT, *, name: str = "muco_shapes.hooks", **declared: dict[str, str]
) -> ModuleType:
    """Return a plugin module with these hooks: `plugin(muco_losses={"mine": "package.module:Class"})`."""
    module = ModuleType(name)
    if contract is not None:
        module.muco_contract = contract
    for hook, components in declared.items():

        def declare(components: dict[str, str] = components) -> dict[str, str]:
            return components

        declare.__name__ = hook
        setattr(module, hook, hookimpl(declare))
    return module


def registry_of(*plugins: ModuleType) -> Registry:
    registry = Registry()
    for each in plugins:
        registry.add(each, provider=PROVIDER)
    return registry


def refusal(*plugins: ModuleType) -> str:
    with pytest.raises(PluginError) as caught:
        registry_of(*plugins)
    return str(caught.value)


def refusal_of(target: str) -> str:
    """Return the error message of a loss `mine` with this target."""
    registry = registry_of(plugin(muco_losses={"mine": target}))
    with pytest.raises(PluginError) as caught:
        registry.component("loss", "mine")
    message = str(caught.value)
    assert PROVIDER in message
    assert "muco_losses" in message
    assert target in message
    return message


class Unkind(Component):
    """Derives from no interface."""

    Config = ComponentConfig


def test_our_own_components_are_listed_by_kind_and_name(registry):
    listed = {(entry.kind, entry.name) for entry in registry if entry.provider.startswith("muco ")}
    assert listed >= {
        ("source", "scenes"),
        ("sampler", "mined"),
        ("sampler", "mixture"),
        ("sampler", "task_homogeneous"),
        ("packer", "multi_turn"),
        ("packer", "reconstruction"),
        ("packer", "single_turn"),
        ("backbone", "qwen_vl"),
        ("pooler", "last_token"),
        ("pooler", "mean"),
        ("pooler", "turn_token"),
        ("loss", "hardness_weighted"),
        ("loss", "infonce"),
        ("loss", "matryoshka"),
        ("loss", "multiturn_infonce"),
        ("loss", "siglip"),
        ("suite", "scenes"),
    }
    assert {entry.provider for entry in registry} >= {f"muco {version('muco')}"}
    order = [(KINDS.index(entry.kind), entry.name) for entry in registry]
    assert order == sorted(order)


def test_every_declared_component_can_be_imported(registry):
    for entry in registry:
        cls = registry.component(entry.kind, entry.name)
        assert cls.kind == entry.kind
        assert cls.__doc__
        assert cls.__name__.lower().startswith(entry.name.replace("_", ""))


def test_declaring_a_component_does_not_import_it():
    registry = registry_of(plugin(muco_losses={"mine": "no.such.module:Loss"}))
    assert [entry.target for entry in registry.entries("loss")] == ["no.such.module:Loss"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_its_hook(kind):
    registry = registry_of(plugin(**{HOOKS[kind]: {"mine": "somewhere:Mine"}}))
    entry = registry.find(kind, "mine")
    assert (entry.kind, entry.name, entry.provider) == (kind, "mine", PROVIDER)


def test_the_error_of_an_unknown_name_lists_the_known_ones(registry):
    with pytest.raises(LookupError) as caught:
        registry.find("loss", "multi_turn_infonce")
    message = caught.value.args[0]
    assert "no loss named 'multi_turn_infonce'. Did you mean 'multiturn_infonce'?" in message
    assert f"infonce (muco {version('muco')})" in message


def test_a_misspelt_hook_is_refused():
    message = refusal(plugin(muco_loses={"mine": "muco_shapes.loss:Mine"}))
    assert "muco_shapes.hooks" in message
    assert PROVIDER in message
    assert "no hook named 'muco_loses'. Did you mean 'muco_losses'?" in message


def test_a_hook_with_arguments_of_its_own_is_refused():
    module = plugin()
    module.muco_losses = hookimpl(lambda recipe: {"mine": "muco_shapes.loss:Mine"})
    message = refusal(module)
    assert "muco_shapes.hooks" in message
    assert PROVIDER in message
    assert "muco_losses" in message


def test_a_module_that_is_declared_twice_is_refused():
    module = plugin(muco_losses={"mine": "muco_shapes.loss:Mine"})
    message = refusal(module, module)
    assert "muco_shapes.hooks" in message
    assert PROVIDER in message


def test_a_name_that_is_taken_is_refused():
    other = plugin(name="other.hooks", muco_losses={"mine": "other.loss:Mine"})
    message = refusal(plugin(muco_losses={"mine": "muco_shapes.loss:Mine"}), other)
    assert "two loss components are named 'mine'" in message
    assert "muco_shapes.loss:Mine" in message
    assert "other.loss:Mine" in message
    assert PROVIDER in message
    assert "muco_losses" in message


@pytest.mark.parametrize("name", ["../mine", "a/b", "", ".hidden", "a b", "x" * 129])
def test_a_name_that_is_no_file_name_is_refused(name):
    message = refusal(plugin(muco_suites={name: "package.module:Class"}))
    assert f"suite {name!r} (muco-shapes 0.3.1, hook muco_suites): use at most 128 letters" in message


def test_one_name_may_serve_two_kinds():
    both = plugin(muco_losses={"mine": "shapes:Loss"}, muco_suites={"mine": "shapes:Suite"})
    assert len(list(registry_of(both))) == 2


@pytest.mark.parametrize(
    ("contract", "expected"),
    [(None, "declares no `muco_contract`"), (CONTRACT + 1, f"contract {CONTRACT + 1}")],
)
def test_another_contract_or_none_is_refused(contract, expected):
    message = refusal(plugin(contract, muco_losses={"mine": "shapes:Loss"}))
    assert "muco_shapes.hooks" in message
    assert PROVIDER in message
    assert expected in message
    assert "hooks: muco_losses" in message
    assert f"this muco needs contract {CONTRACT}" in message


def test_the_error_for_a_plugin_of_contract_1_says_what_to_change():
    declared = {"muco_backbones": {"mine": "shapes:Mine"}, "muco_poolers": {"mine": "shapes:Mine"}}
    message = refusal(plugin(1, **declared))
    assert "then set `muco_contract = 2`:\n  muco_backbones: `Processor.count` is gone" in message
    for name in ("Processor.render", "cost", "Processor.collate", "Backbone.about", "startup_summary"):
        assert name in message
    assert "\n  muco_poolers: `TurnPlaces` is now `TurnSpans`, and `.places` is `.spans`." in message


def test_a_plugin_of_contract_1_with_unchanged_kinds_only_sets_the_number():
    message = refusal(plugin(1, muco_losses={"mine": "shapes:Loss"}))
    assert message.endswith("Set `muco_contract = 2` in it; its kinds of component did not change.")


@pytest.mark.parametrize("target", ["muco_shapes.loss:Mine", "muco.core.loss:Mine", "muco.core.loss"])
def test_a_target_that_cannot_be_imported_is_refused(target):
    assert "cannot be imported" in refusal_of(target)


@pytest.mark.parametrize(
    "target",
    [
        "muco.plugins.poolers.mean:Mean",
        "muco.core.loss:positive_pairs",
        "muco.core.component:ComponentConfig",
        f"{__name__}:Unkind",
    ],
)
def test_a_class_of_another_kind_is_refused(target):
    assert "it must derive from muco.core.Loss" in refusal_of(target)


def test_a_class_without_settings_is_refused():
    assert "has no `Config` that derives from muco.core.ComponentConfig" in refusal_of("muco.core.loss:Loss")


class Unresolved(Loss):
    class Config(ComponentConfig):
        size: Sizes  # noqa: F821  # pyright: ignore[reportUndefinedVariable]

    def per_turn(self, query, target):
        raise NotImplementedError


def test_settings_of_a_type_that_is_not_defined_are_refused():
    message = refusal_of(f"{__name__}:Unresolved")
    assert "has a `Config` with a type that is not defined: name 'Sizes' is not defined" in message


class HalfDone(Loss):
    """A loss without `per_turn`."""

    Config = ComponentConfig


def test_a_class_that_leaves_a_method_unwritten_is_refused():
    message = refusal_of(f"{__name__}:HalfDone")
    assert "does not implement per_turn; the interface requires it" in message


@pytest.mark.parametrize("declared", [None, ["mine"], {"mine": 3}, {"mine": Unkind}])
def test_a_hook_that_declares_no_names_and_targets_is_refused(declared):
    message = refusal(plugin(muco_losses=declared))
    assert f"plugin muco_shapes.hooks ({PROVIDER}, hook muco_losses)" in message
    assert "declares" in message


def test_a_hook_that_raises_is_named():
    module = plugin()

    def muco_losses():
        raise RuntimeError("no licence")

    module.muco_losses = hookimpl(muco_losses)
    message = refusal(module)
    assert f"plugin muco_shapes.hooks ({PROVIDER}, hook muco_losses)" in message
    assert "no licence" in message


@pytest.fixture
def one_entry_point(monkeypatch):
    """Replace the installed packages by one with the given entry point."""
    find = registry_module.default_registry.__wrapped__

    def registry(target: str) -> Registry:
        points = [EntryPoint("shapes", target, "muco")]
        monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: points)
        return find()

    return registry


def test_a_package_whose_hooks_cannot_be_imported_is_named(one_entry_point, tmp_path, monkeypatch):
    (tmp_path / "muco_shapes_hooks.py").write_text("raise RuntimeError('no licence')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match=r"muco_shapes_hooks.* cannot be imported: .*no licence"):
        one_entry_point("muco_shapes_hooks")


def test_an_installed_package_is_found_by_its_entry_point(one_entry_point, tmp_path, monkeypatch):
    (tmp_path / "muco_more_shapes.py").write_text(
        "from muco.core import hookimpl\n"
        f"muco_contract = {CONTRACT}\n"
        "@hookimpl\n"
        "def muco_losses():\n"
        "    return {'mine': 'muco.plugins.losses.infonce:InfoNCE'}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    registry = one_entry_point("muco_more_shapes")
    assert registry.component("loss", "mine").__name__ == "InfoNCE"

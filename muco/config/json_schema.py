"""The JSON Schema of recipes, with which editors complete and check YAML."""

from __future__ import annotations

from typing import Any, cast

from pydantic.errors import PydanticInvalidForJsonSchema

from muco.config.recipe import Recipe
from muco.core.component import KINDS, ComponentConfig, Kind
from muco.core.component_ref import is_mapping
from muco.core.errors import PluginError
from muco.core.ids import NAME_PATTERN
from muco.core.registry import Registry


def recipe_schema(registry: Registry) -> dict[str, Any]:
    """Return the schema of recipes made of the registered components; imports all of them."""
    schema = Recipe.model_json_schema()
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    for kind in KINDS:
        names = [entry.name for entry in registry.entries(kind)]
        options = [{"$ref": f"#/$defs/{kind}.{name}"} for name in names]
        for name in names:
            try:
                definitions |= _definitions(kind, name, registry.component(kind, name).Config)
            except PydanticInvalidForJsonSchema as error:
                provider = registry.find(kind, name).provider
                problem = f"its `Config` has a field without a JSON Schema: {error.message}"
                raise PluginError(f"{kind} {name!r} ({provider}): {problem}") from None
        # A name stands for a mapping without settings.
        short = [name for name in names if definitions[f"{kind}.{name}"]["required"] == ["name"]]
        definitions[kind] = {"oneOf": [{"enum": short}, *options]}
    return _with_refs(schema)


def _definitions(kind: Kind, name: str, config: type[ComponentConfig]) -> dict[str, Any]:
    """Return the schemas of one component's mapping and of the models that its settings use, by name."""
    option = config.model_json_schema(ref_template=f"#/$defs/{kind}.{name}.{{model}}")
    models = {f"{kind}.{name}.{model}": value for model, value in option.pop("$defs", {}).items()}
    option["title"] = name
    label = {"label": {"type": "string", "pattern": NAME_PATTERN}} if kind == "suite" else {}
    option["properties"] = {"name": {"const": name}, **label, **option.get("properties", {})}
    option["required"] = ["name", *option.get("required", [])]
    return {f"{kind}.{name}": option, **models}


def _with_refs(schema: Any) -> Any:
    """Return the schema with a `$ref` wherever a `ComponentRef` put `muco_kind`."""
    if isinstance(schema, list):
        return [_with_refs(item) for item in cast(list[Any], schema)]
    if not is_mapping(schema):
        return schema
    if "muco_kind" in schema:
        rest = {key: _with_refs(value) for key, value in schema.items() if key != "muco_kind"}
        return {"$ref": f"#/$defs/{schema['muco_kind']}", **rest}
    return {key: _with_refs(value) for key, value in schema.items()}

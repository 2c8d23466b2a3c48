"""The JSON Schema of recipes: what editors complete and check while one types."""

from __future__ import annotations

from typing import Any, cast

from muco.config.recipe import Recipe
from muco.core.component import KINDS
from muco.core.component_ref import is_mapping
from muco.core.registry import Registry


def recipe_schema(registry: Registry) -> dict[str, Any]:
    """Return the schema of a recipe made of the registered components; imports them all."""
    schema = Recipe.model_json_schema()
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    for kind in KINDS:
        names = [entry.name for entry in registry.entries(kind)]
        definitions[kind] = {"oneOf": [{"$ref": f"#/$defs/{kind}.{name}"} for name in names]}
        for name in names:
            config = registry.component(kind, name).Config
            option = config.model_json_schema(ref_template=f"#/$defs/{kind}.{name}.{{model}}")
            for model, definition in option.pop("$defs", {}).items():
                definitions[f"{kind}.{name}.{model}"] = definition
            option["title"] = name
            option["properties"] = {"name": {"const": name}, **option.get("properties", {})}
            option["required"] = ["name", *option.get("required", [])]
            definitions[f"{kind}.{name}"] = option
    return _refer(schema)


def _refer(schema: Any) -> Any:
    """Return the schema with `$ref` where a `ComponentRef` left its mark."""
    if isinstance(schema, list):
        return [_refer(item) for item in cast(list[Any], schema)]
    if not is_mapping(schema):
        return schema
    if "muco_kind" in schema:
        rest = {key: _refer(value) for key, value in schema.items() if key != "muco_kind"}
        return {"$ref": f"#/$defs/{schema['muco_kind']}", **rest}
    return {key: _refer(value) for key, value in schema.items()}

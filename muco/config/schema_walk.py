"""Follow a path of a recipe through the schema and the components that the recipe names."""

from __future__ import annotations

from collections.abc import Callable
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from muco.config.yaml_lines import KeyPath
from muco.core.component_ref import ComponentRef, is_mapping, kind_of
from muco.core.registry import Registry


def allowed_keys(path: KeyPath, schema: type[BaseModel], values: Any, registry: Registry) -> list[str]:
    """Return the keys that the mapping at `path` may have; none where it may have any."""
    annotation, value = _at(path, schema, values, registry)
    model = _model_of(annotation, value, registry)
    name = ["name"] if _component_member(annotation) is not None else []
    return name + list(model.model_fields) if model else []


def is_component(path: KeyPath, schema: type[BaseModel], values: Any, registry: Registry) -> bool:
    """Return whether the value at `path` picks a component by name."""
    return _component_member(_at(path, schema, values, registry)[0]) is not None


def _at(path: KeyPath, schema: type[BaseModel], values: Any, registry: Registry) -> tuple[Any, Any]:
    """Return the annotation and the value at `path`; None where there is none."""
    annotation: Any = schema
    value: Any = values
    for key in path:
        model = _model_of(annotation, value, registry)
        if model is None:  # a dict or a tuple: the annotation of its values
            mapping = _union_member(annotation, lambda part: get_origin(part) in (dict, tuple))
            arguments = [part for part in get_args(mapping) if part is not Ellipsis]
            annotation = arguments[-1] if arguments else None
        else:
            field = model.model_fields.get(str(key))
            annotation = field.annotation if field else None
        has_key = (is_mapping(value) and key in value) or (isinstance(value, list) and isinstance(key, int))
        value = value[key] if has_key else None  # type: ignore[index]
    return annotation, value


def _model_of(annotation: Any, value: Any, registry: Registry) -> type[BaseModel] | None:
    """Return the model that validates a value of this annotation, if any."""
    ref = _component_member(annotation)
    if ref is None:
        return _union_member(annotation, lambda part: isinstance(part, type) and issubclass(part, BaseModel))
    name = value.get("name") if is_mapping(value) else value
    try:
        return registry.component(kind_of(get_args(ref)[0]), name).Config if isinstance(name, str) else None
    except LookupError:
        return None


def _component_member(annotation: Any) -> Any:
    return _union_member(annotation, lambda part: get_origin(part) is ComponentRef)


def _union_member(annotation: Any, matches: Callable[[Any], bool]) -> Any:
    """Return the annotation, or the first member of a union, that matches; None if none does."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else [annotation]
    return next((member for member in members if matches(member)), None)

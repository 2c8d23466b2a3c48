"""The type of a recipe's keys that pick a component by name."""

from __future__ import annotations

from functools import partial
from typing import Any, Generic, TypeGuard, TypeVar, cast, get_args

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic_core import PydanticCustomError, core_schema

from muco.core.component import Component, ComponentConfig, Kind
from muco.core.ids import check_name
from muco.core.registry import Registry, default_registry

T = TypeVar("T")


class ComponentRef(Generic[T]):
    """A component's name and settings: `ComponentRef[Literal["loss"]]` or `ComponentRef[Loss]`.

    In YAML it is a mapping: `name` picks the component, the other keys are its `Config`. A name without
    a mapping stands for one without other keys.
    """

    def __init__(
        self, kind: Kind, name: str, config: ComponentConfig, cls: type[Any], label: str | None = None
    ) -> None:
        self.kind = kind
        self.name = name
        self.label = label or name
        """Names the results of a suite, so that a recipe can list one suite several times."""
        self.config = config
        self.cls = cls

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ComponentRef) and self.dump() == other.dump()

    def __hash__(self) -> int:
        return hash((self.kind, self.name))

    def __repr__(self) -> str:
        return f"{self.kind}:{self.name}({self.config!r})"

    def make(self, **arguments: Any) -> Any:
        """Build the component from its settings and what else its kind takes: `hidden_dim` for a pooler."""
        return self.cls(self.config, **arguments)

    def dump(self) -> dict[str, Any]:
        """Return the mapping that validates to this reference, with defaults filled in."""
        label = {} if self.label == self.name else {"label": self.label}
        return {"name": self.name, **label, **self.config.model_dump(mode="json")}

    @classmethod
    def _validate(cls, kind: Kind, value: Any, info: ValidationInfo) -> ComponentRef[T]:
        if isinstance(value, ComponentRef):
            return cast(ComponentRef[T], value)
        if isinstance(value, str):
            value = {"name": value}
        if not is_mapping(value) or not isinstance(value.get("name"), str):
            if is_mapping(value) and "name" not in value:
                raise PydanticCustomError("component", f"`name` is missing: which {kind}?")
            raise PydanticCustomError("component", f"must be a mapping with the `name` of a {kind}")
        context: dict[str, Any] = info.context or {}
        registry: Registry = context.get("registry") or default_registry()
        try:
            component = registry.component(kind, value["name"])
        except LookupError as error:
            raise PydanticCustomError("component_name", "{message}", {"message": error.args[0]}) from None
        settings = {key: item for key, item in value.items() if key != "name"}
        label = _checked_label(settings.pop("label", None)) if kind == "suite" else None
        config = component.Config.model_validate(settings, context=info.context)
        return cls(kind, value["name"], config, component, label)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        kind = kind_of(get_args(source)[0])
        return core_schema.with_info_plain_validator_function(
            partial(cls._validate, kind),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda ref: ref.dump()),
            metadata={"muco_kind": kind},
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        # `recipe_schema` replaces this by the schemas of all components of the kind.
        return {"muco_kind": schema["metadata"]["muco_kind"]}  # type: ignore[typeddict-item]


def _checked_label(label: Any) -> str | None:
    try:
        return None if label is None else check_name(label if isinstance(label, str) else "")
    except ValueError as error:
        raise PydanticCustomError("label", "label {message}", {"message": f"{label!r}: {error}"}) from None


def kind_of(argument: Any) -> Kind:
    """Return the kind that a `ComponentRef`'s argument names: an interface of muco.core, or a literal."""
    return cast(type[Component], argument).kind if isinstance(argument, type) else get_args(argument)[0]


def is_mapping(value: Any) -> TypeGuard[dict[Any, Any]]:
    """Say whether a value of a recipe is a mapping."""
    return isinstance(value, dict)

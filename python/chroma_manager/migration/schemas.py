"""What is special about the schema of a collection: most of it follows from the configuration and the records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chromadb.api.types import Schema

# The part of a schema that a configuration has as well.
_VECTORS = "vector_index"


def special(schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a schema has that neither the configuration nor the records say: which values are indexed, and how."""
    settings = _settings(schema or {})
    plain = _settings(Schema().serialize_to_json())
    return {name: value for name, value in settings.items() if value != plain.get(name)}


def _settings(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by key; without those that are as for any other key, which Chroma notes with the first record."""
    defaults = {kind: _indexes(indexes) for kind, indexes in schema.get("defaults", {}).items()}
    settings: dict[str, Any] = {"": defaults}
    for key, kinds in schema.get("keys", {}).items():
        own = {kind: _indexes(indexes) for kind, indexes in kinds.items()}
        others = {kind: indexes for kind, indexes in own.items() if indexes not in ({}, defaults.get(kind))}
        if others:
            settings[key] = others
    return settings


def _indexes(indexes: Mapping[str, Any]) -> dict[str, Any]:
    """What is set of each index, but for that of the vectors; ``None`` for one that is not there."""
    return {
        name: {option: value for option, value in index["config"].items() if value} if index["enabled"] else None
        for name, index in indexes.items()
        if name != _VECTORS
    }

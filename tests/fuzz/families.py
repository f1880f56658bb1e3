"""The families by name; each is imported only where it runs, so that none pays for what another one needs."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from fuzz.case import Family

FAMILIES = {
    "engine bytes": "fuzz.engine_bytes:EngineBytes",
    "engine records": "fuzz.engine_records:EngineRecords",
    "engine manifests": "fuzz.engine_manifests:EngineManifests",
    "engine entries": "fuzz.engine_entries:EngineEntries",
    "engine plans": "fuzz.engine_plans:EnginePlans",
    "engine weights": "fuzz.engine_bytes:EngineWeights",
    "pictures": "fuzz.pictures:Pictures",
    "tokenizer files": "fuzz.tokenizer_files:TokenizerFiles",
    "configs": "fuzz.configs:Configs",
    "safetensors": "fuzz.safetensors_headers:SafetensorsHeaders",
    "torch files": "fuzz.torch_files:TorchFiles",
    "questions": "fuzz.questions:Questions",
}


def make_family(name: str, seeds: Path) -> Family:
    """The family called `name`, or "module:class" itself; its seeds are read from the folder `seeds`."""
    module, _, cls = FAMILIES.get(name, name).partition(":")
    return getattr(import_module(module), cls)(seeds)

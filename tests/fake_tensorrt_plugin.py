"""The part of `tensorrt.plugin` that the mixer's plugin calls, restated by hand, and TensorRT's side of it.

No installable package has that module without a GPU's libraries, so this list was written beside NVIDIA's pages; the
plugin itself was NOT RUN ON A GPU YET. What is not listed does not exist here. Each entry with its place, in
github.com/NVIDIA/TensorRT at a892d22 (TensorRT 11.1), where the docstrings are the API reference:

    register, autotune, aot_impl                    python/packaging/bindings_wheel/tensorrt/plugin/_lib.py
    what their parameters and types must be         .../_validate.py: _parse_register_inputs, _parse_register_return,
                                                    _validate_autotune, _validate_aot_impl
    TensorDesc, ShapeExpr, SymExprs, SymIntExprs,   .../_tensor.py
      KernelLaunchParams
    AutoTuneCombination                             .../_autotune.py
    what is asked when, and what must be returned   .../_plugin_class.py: _TemplatePluginBase, _TemplateAOTPlugin
    inputs, extra arguments, outputs: the order     .../_lib.py: aot_impl, "extra_args"
      of a kernel's parameters
    plugin_namespace, aot: attributes of the node   samples/python/quickly_deployable_plugins/README.md,
                                                    "ONNX model with an AOT plugin"
    first of plugins by name, then of functions     CHANGELOG.md, 10.7 to 10.15, "Parser changes"
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from types import ModuleType
from typing import Any, get_args, get_origin


class DataType(Enum):
    """Members of tensorrt.DataType that a mixer can meet."""

    FLOAT = 0
    HALF = 1
    INT8 = 2
    BF16 = 7


_NAMES = {"FP32": DataType.FLOAT, "FP16": DataType.HALF}  # in combinations; the others go by the name of the member


@dataclass(frozen=True)
class ShapeExpr:
    """One axis: a constant, or the value of an expression at run time."""

    at: Callable[[int], int]  # tokens -> size


@dataclass(frozen=True)
class TensorDesc:
    """An input or output; its sizes are symbols while shapes are inferred, numbers (-1: dynamic) once it is tuned."""

    dtype: DataType
    shape_expr: tuple[ShapeExpr, ...]
    sizes: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        if self.sizes is None:
            raise ValueError("TensorDesc has no shape information available at this stage")
        return self.sizes

    def like(self) -> TensorDesc:
        return replace(self)


class SymExprs:
    """Extra arguments of a kernel."""

    def __init__(self, length: int) -> None:
        self.expressions: list[ShapeExpr | None] = [None] * length


class SymIntExprs(SymExprs):
    """Those of integers."""


class KernelLaunchParams:
    """The launch; every size is a number or an expression of shapes."""

    _SIZES = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")

    def __init__(self) -> None:
        self.__dict__.update(dict.fromkeys(self._SIZES, 1), shared_mem=0)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in self._SIZES:
            raise AttributeError(f"KernelLaunchParams object has no attribute {name!r}")
        if not isinstance(value, int | ShapeExpr):
            raise TypeError(f"{name} is a number or an expression, not {type(value).__name__}")
        self.__dict__[name] = value

    def at(self, tokens: int) -> dict[str, int]:
        sizes = {name: getattr(self, name) for name in self._SIZES}
        return {name: size.at(tokens) if isinstance(size, ShapeExpr) else size for name, size in sizes.items()}


class AutoTuneCombination:
    """Types of inputs and outputs, one column per position; columns vary together ("|"). Layouts: LINEAR."""

    def __init__(self, io_types: str) -> None:
        columns = [column.strip().split("|") for column in io_types.split(",")]
        self.combinations = [
            tuple(_NAMES[name] if name in _NAMES else DataType[name] for name in row)
            for row in zip(*columns, strict=True)
        ]


@dataclass
class Definition:
    """A registered plugin."""

    describe: Callable[..., TensorDesc]
    tensors: list[str]
    autotune: Callable[..., list[AutoTuneCombination]] | None = None
    aot_impl: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Embedded:
    """What TensorRT keeps in a plan.

    arguments: how many the kernel is launched with
    """

    name: str
    ptx: str
    launch: KernelLaunchParams
    arguments: int


@dataclass
class FakeTensorRT:
    """The modules `tensorrt` and `tensorrt.plugin`, and the plugins registered with them."""

    version: str
    definitions: dict[str, Definition] = field(default_factory=dict)

    def modules(self) -> dict[str, ModuleType]:
        """By the names under which they are imported."""
        tensorrt, plugin = ModuleType("tensorrt"), ModuleType("tensorrt.plugin")
        tensorrt.__dict__.update(__version__=self.version, DataType=DataType, plugin=plugin)
        listed = (TensorDesc, SymExprs, SymIntExprs, KernelLaunchParams, AutoTuneCombination)
        plugin.__dict__.update({kind.__name__: kind for kind in listed})
        plugin.__dict__.update(register=self._register, autotune=self._autotune, aot_impl=self._aot_impl)
        return {"tensorrt": tensorrt, "tensorrt.plugin": plugin}

    def embed(self, plugin: str, dtypes: list[DataType], hidden: int) -> Embedded:
        """What a build asks of a plugin with the mixer's inputs, in its order, for any number of tokens.

        dtypes: of the inputs. Raises ValueError when the plugin does not take them.
        """
        definition = self.definitions[plugin]
        assert definition.autotune
        assert definition.aot_impl
        tokens = ShapeExpr(lambda tokens: tokens)
        sizes: list[tuple[int | ShapeExpr, ...]] = [(tokens, hidden), (tokens, hidden), (1, hidden), (1,)]
        inputs = [TensorDesc(dtype, tuple(map(_expression, axes))) for dtype, axes in zip(dtypes, sizes, strict=True)]
        outputs = [definition.describe(*inputs)]
        tuned = [_with_sizes(desc) for desc in [*inputs, *outputs]]
        inputs, outputs = tuned[: len(inputs)], tuned[len(inputs) :]
        offered = [types for one in definition.autotune(*inputs, outputs) for types in one.combinations]
        if tuple(desc.dtype for desc in tuned) not in offered:
            raise ValueError(f"no combination of {plugin} takes {[desc.dtype.name for desc in tuned]}")
        name, ptx, launch, extra = definition.aot_impl(*inputs, outputs, 0)
        kinds = (str | bytes, str | bytes, KernelLaunchParams, SymExprs)
        for returned, kind in zip((name, ptx, launch, extra), kinds, strict=True):
            if not isinstance(returned, kind):
                raise TypeError(f"aot_impl returned {type(returned).__name__}, expected {kind}")
        return Embedded(name, ptx, launch, len(inputs) + len(extra.expressions) + len(outputs))

    def _register(self, plugin: str) -> Callable[[Callable], Callable]:
        namespace, _, name = plugin.partition("::")
        if namespace in {"", "trt", "tensorrt", "std"} or not name or "." in plugin:
            raise ValueError(f"{plugin} is no ID of a plugin")

        def decorator(function: Callable) -> Callable:
            if plugin in self.definitions:
                raise ValueError(f"already has a definition for {name!r}")
            signature = inspect.signature(function)
            for parameter in signature.parameters.values():
                if not issubclass(parameter.annotation, TensorDesc):  # a string is no class: TypeError
                    raise ValueError(f"{parameter.name} is an attribute, and the mixer has none")
            if not issubclass(signature.return_annotation, TensorDesc):
                raise ValueError("the mixer has one output")
            self.definitions[plugin] = Definition(function, list(signature.parameters))
            return function

        return decorator

    def _autotune(self, plugin: str) -> Callable[[Callable], Callable]:
        def decorator(function: Callable) -> Callable:
            definition = self.definitions[plugin]
            returned = _checked(function, [*definition.tensors, "outputs"])
            if get_origin(returned) is not list or not issubclass(get_args(returned)[0], AutoTuneCombination):
                raise ValueError(f"autotune returns {returned}, expected a list of AutoTuneCombination")
            definition.autotune = function
            return function

        return decorator

    def _aot_impl(self, plugin: str) -> Callable[[Callable], Callable]:
        def decorator(function: Callable) -> Callable:
            definition = self.definitions[plugin]
            returned = _checked(function, [*definition.tensors, "outputs", "tactic"])
            kinds = get_args(returned) if get_origin(returned) is tuple else ()
            if len(kinds) != 4 or not {kinds[0], kinds[1]} <= {str, bytes, str | bytes}:
                raise ValueError(f"aot_impl returns {returned}, expected name, PTX, launch parameters, extra arguments")
            if not issubclass(kinds[2], KernelLaunchParams) or not issubclass(kinds[3], SymExprs):
                raise ValueError(f"aot_impl returns {returned}, expected KernelLaunchParams and SymExprs at its end")
            definition.aot_impl = function
            return function

        return decorator


def parameters_of(ptx: str) -> list[str]:
    """Types of a kernel's parameters."""
    entry = re.search(r"\.visible \.entry \w+\(([^)]*)\)", ptx)
    assert entry
    return re.findall(r"\.param \.(\w+)", entry[1])


def _checked(function: Callable, expected: list[str]) -> Any:
    """The type that `function` says it returns; its parameters are compared by name as well as by type."""
    signature = inspect.signature(function)
    if list(signature.parameters) != expected:
        raise ValueError(f"{signature} does not match the expected parameters ({', '.join(expected)})")
    for name, parameter in signature.parameters.items():
        kind: Any = parameter.annotation
        if name == "outputs":
            if get_origin(kind) is not tuple or not all(issubclass(one, TensorDesc) for one in get_args(kind)):
                raise ValueError(f"'outputs' should be of type Tuple[TensorDesc], not {kind}")
        elif not issubclass(kind, int if name == "tactic" else TensorDesc):
            raise ValueError(f"{name!r} should not be of type {kind}")
    return signature.return_annotation


def _expression(size: int | ShapeExpr) -> ShapeExpr:
    return size if isinstance(size, ShapeExpr) else ShapeExpr(lambda _: size)


def _with_sizes(desc: TensorDesc) -> TensorDesc:
    """A size that depends on the number of tokens is dynamic."""
    few, many = (tuple(axis.at(tokens) for axis in desc.shape_expr) for tokens in (2, 3))
    return replace(desc, sizes=tuple(a if a == b else -1 for a, b in zip(few, many, strict=True)))

"""The names that code uses: a cell's text or a function comes in; what it reads, what it binds and what that leads to go out.

Nothing is run here.
"""

from __future__ import annotations

import ast
import contextlib
import functools
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

# -- of a cell's text ------------------------------------------------------------------------------------------------------


def top_level_names(tree: ast.Module) -> tuple[set[str], set[str]]:
    """Names the cell reads, at its top level or in its functions, and those its top level binds before any such read."""
    read: set[str] = set()
    bound: set[str] = set()
    for kind, name in _in_order(tree):
        if name not in read and name not in bound:
            (read if kind == "read" else bound).add(name)
    return read, bound


@functools.singledispatch
def _in_order(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Reads and bindings of names in the order in which they run, near enough."""
    for child in ast.iter_child_nodes(node):
        yield from _in_order(child)


@_in_order.register
def _name(node: ast.Name) -> Iterator[tuple[str, str]]:
    yield ("bind" if isinstance(node.ctx, ast.Store) else "read"), node.id


@_in_order.register
def _values_before_targets(
    node: ast.Assign | ast.AnnAssign | ast.NamedExpr | ast.For | ast.AsyncFor,
) -> Iterator[tuple[str, str]]:
    first = node.iter if isinstance(node, (ast.For, ast.AsyncFor)) else node.value
    for child in sorted(ast.iter_child_nodes(node), key=lambda child: child is not first):
        yield from _in_order(child)


@_in_order.register
def _read_and_bound(node: ast.AugAssign) -> Iterator[tuple[str, str]]:
    if isinstance(node.target, ast.Name):
        yield "read", node.target.id
    yield from _in_order(node.target)
    yield from _in_order(node.value)


@_in_order.register
def _may_stay_unbound(node: ast.If | ast.While | ast.Try | ast.Match) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        yield from (event for event in _in_order(child) if event[0] == "read")


@_in_order.register
def _definition(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> Iterator[tuple[str, str]]:
    yield from (("read", n.id) for n in ast.walk(node) if isinstance(n, ast.Name))
    yield "bind", node.name


@_in_order.register
def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str]]:
    yield from (("bind", (alias.asname or alias.name).partition(".")[0]) for alias in node.names)


def functions_used(tree: ast.Module, namespace: Mapping[str, Any]) -> list[FunctionType]:
    """Functions and methods of the notebook that the cell's names lead to, directly or through one another."""
    found: dict[int, FunctionType] = {}
    names = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name)]
    seen: set[str] = set()
    while names:
        name = names.pop()
        if name in seen or name not in namespace:
            continue
        seen.add(name)
        for function in _functions_in(namespace[name]):
            if function.__globals__ is namespace and id(function) not in found:
                found[id(function)] = function
                names.extend(globals_of(function.__code__))
    return list(found.values())


# -- of what is there ------------------------------------------------------------------------------------------------------


def globals_of(code: CodeType) -> set[str]:
    """Names that a function, or one inside it, may look up among its globals."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= globals_of(constant)
    return names


def enclosed(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Variables of the functions around it that a function uses, as far as they are assigned."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        with contextlib.suppress(ValueError):  # not assigned yet
            yield name, cell.cell_contents


def _functions_in(value: Any) -> Iterator[FunctionType]:
    value = getattr(value, "__wrapped__", value) if isinstance(value, FunctionType) else value
    if isinstance(value, MethodType):
        value = value.__func__
    if isinstance(value, FunctionType):
        yield value
        return
    kind = value if isinstance(value, type) else type(value)
    for base in kind.__mro__:
        if base.__module__ == "__main__":
            yield from (f for member in vars(base).values() for f in _plain_functions(member))


def _plain_functions(member: Any) -> Iterator[FunctionType]:
    for function in (member, getattr(member, "__func__", None), getattr(member, "fget", None)):
        if isinstance(function, FunctionType):
            yield function

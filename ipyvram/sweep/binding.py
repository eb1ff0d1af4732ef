"""Where a cell gets its batch size from: the cell's text, the name and the namespace come in, code for any size goes out.

A value put into the namespace would be overwritten by the cell's own ``batch_size = 32``, so such assignments are
rewritten; without one, the namespace is the place. A name that is no variable may be an argument that calls of the cell are
given by keyword: ``DataLoader(data, batch_size=32)``. Nothing is run here.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any, TypeGuard

from ipyvram.code_names import functions_used, globals_of

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


@dataclass(frozen=True, slots=True)
class Binding:
    """A cell and the place in it that holds the batch size.

    Attributes
    ----------
    name : str
        The variable, or the argument.
    tree : ast.Module
        The cell; never changed.
    own : bool
        Whether the cell gives the name its value itself; if not, the namespace is to hold it during a trial.
    argument : bool
        Whether it does so only by keyword in calls.
    """

    name: str
    tree: ast.Module
    own: bool
    argument: bool = False

    def code(self, size: int, compile_: Callable[[ast.Module], CodeType]) -> CodeType:
        """The cell with its own values of the name replaced by ``size``, compiled."""
        return compile_(self.module(size))

    def module(self, size: int) -> ast.Module:
        """The cell with its own values of the name replaced by ``size``."""
        if not self.own:
            return self.tree
        rewrite = _RewriteArgument if self.argument else _Rewrite
        tree: ast.Module = rewrite(self.name, size).visit(copy.deepcopy(self.tree))
        return ast.fix_missing_locations(tree)

    def namespace(self, size: int) -> dict[str, Any]:
        """What the namespace is to hold besides."""
        return {} if self.own else {self.name: size}

    def value(self, namespace: Mapping[str, Any]) -> int | None:
        """The size that it has by itself; None where only running the cell would tell."""
        found = namespace.get(self.name)
        if self.own:
            given = next((node.value for node in ast.walk(self.tree) if self._gives(node)), None)
            found = given.value if isinstance(given, ast.Constant) else None
        return found if type(found) is int and found > 0 else None

    def _gives(self, node: ast.AST) -> TypeGuard[ast.keyword | ast.Assign | ast.AnnAssign]:
        if self.argument:
            return isinstance(node, ast.keyword) and node.arg == self.name
        return isinstance(node, (ast.Assign, ast.AnnAssign)) and _assigns(node, self.name)


def bind(name: str, source: str, namespace: Mapping[str, Any]) -> Binding:
    """Find where ``source`` gets ``name`` from.

    Parameters
    ----------
    source : str
        The cell as Python: IPython's own syntax already transformed.
    namespace : mapping
        The notebook's variables: functions of earlier cells read their globals there.

    Raises
    ------
    ValueError
        The cell is not Python, awaits at its top level, or does not use the name; the message says what to write.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ValueError(f"the cell cannot be read: {error.msg} (line {error.lineno})") from None
    if any(isinstance(n, (ast.Await, ast.AsyncFor, ast.AsyncWith)) for n in _top_level(tree)):
        raise ValueError("a cell that awaits at its top level cannot be repeated: put its body into a function")
    if any(_assigns(node, name) for node in _top_level(tree)):
        return Binding(name, tree, own=True)
    if _reads(tree, name) or any(name in globals_of(f.__code__) for f in functions_used(tree, namespace)):
        return Binding(name, tree, own=False)
    if any(isinstance(node, ast.keyword) and node.arg == name for node in ast.walk(tree)):
        return Binding(name, tree, own=True, argument=True)
    raise ValueError(f"{name} is used nowhere in this cell{_hint(tree, name)}")


def _top_level(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes that run in the module's own scope."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, _SCOPES):
            yield from _top_level(child)


def _targets(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    if isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
        return [node.target]
    return []


def _assigns(node: ast.AST, name: str) -> bool:
    return any(n.id == name for target in _targets(node) for n in ast.walk(target) if _stores(n))


def _stores(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def _reads(tree: ast.Module, name: str) -> bool:
    """Whether the cell reads the name as a global, at its top level or inside its functions."""
    import symtable

    def in_table(table: symtable.SymbolTable) -> bool:
        try:
            symbol = table.lookup(name)
            if symbol.is_referenced() and (table.get_type() == "module" or symbol.is_global()):
                return True
        except KeyError:
            pass
        return any(in_table(child) for child in table.get_children())

    return in_table(symtable.symtable(ast.unparse(tree), "cell", "exec"))


def _hint(tree: ast.Module, name: str) -> str:
    """What the user may have meant, where the name is there in another role."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            local = [n.id for n in ast.walk(node) if _stores(n)]
            if name in local or any(a.arg == name for a in ast.walk(node) if isinstance(a, ast.arg)):
                return f" outside {node.name}(), where it is local: assign {name} at the cell's top level and use that"
    return (
        " nor in the functions it calls: name the variable, or the argument of a call, that holds the batch size, "
        f"and make the batches (the loader, too) in this cell, by {name}"
    )


class _Rewrite(ast.NodeTransformer):
    """Make every top-level assignment of a name give it another value."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size

    def _skip(self, node: ast.AST) -> ast.AST:
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = visit_Lambda = _skip

    def visit_NamedExpr(self, node: ast.NamedExpr) -> ast.AST:
        if node.target.id == self.name:
            node.value = self._constant(node.value)
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None and _assigns(node, self.name):
            node.value = self._constant(node.value)
        return self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> Any:
        if not _assigns(node, self.name):
            return self.generic_visit(node)
        if any(isinstance(t, ast.Name) and t.id == self.name for t in node.targets):
            node.value = self._constant(node.value)
            return node
        # One of several targets: let the statement run as it is, then put the size in its place.
        after = ast.Assign([ast.Name(self.name, ast.Store())], self._constant(node.value))
        return [self.generic_visit(node), ast.copy_location(after, node)]

    def _constant(self, like: ast.expr) -> ast.Constant:
        return ast.copy_location(ast.Constant(self.size), like)


class _RewriteArgument(ast.NodeTransformer):
    """Make every call that is given an argument of this name be given another value."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        if node.arg != self.name:
            return self.generic_visit(node)
        node.value = ast.copy_location(ast.Constant(self.size), node.value)
        return node

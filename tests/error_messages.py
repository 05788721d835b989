"""The texts of the package's messages, what they name as arguments, and who can give these: read from the source, not run."""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "keras_ranking"
# `name` in backticks, and name=value as a caller writes it; f-strings have {} for their values.
TICKED = re.compile(r"`([a-z_][a-z0-9_]*)`")
GIVEN = re.compile(r"(?<![\w.'\"`-])([a-z_][a-z0-9_]*)=(?=['\"]|True\b|False\b|None\b|\d|\(|\.\.\.)")
CALLED = re.compile(r"([A-Za-z_.]+)\(([^()]*)\)")


@dataclass
class Definition:
    """A function or class: its arguments or fields, the names that it uses, and its texts with their lines."""

    name: str
    arguments: set[str] = field(default_factory=set)
    uses: set[str] = field(default_factory=set)
    texts: list[tuple[str, str]] = field(default_factory=list)


def definitions(root: Path = PACKAGE) -> list[Definition]:
    """Every function, method and class of the package. A method has the fields and arguments of its class too."""
    found: list[Definition] = []
    for path in sorted(root.rglob("*.py")):
        _visit(ast.parse(path.read_text(encoding="utf-8")), Definition(str(path)), found, path)
    return found


def _visit(node: ast.AST, owner: Definition, found: list[Definition], path: Path) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            mine = Definition(getattr(child, "name", "<lambda>"), set(owner.arguments) if not isinstance(node, ast.Module) else set())
            if isinstance(child, ast.ClassDef):
                mine.arguments |= _fields(child)
                mine.uses |= {inner.name for inner in child.body if isinstance(inner, ast.FunctionDef)}
                mine.uses |= {name.id for base in child.bases for name in ast.walk(base) if isinstance(name, ast.Name)}
            else:
                arguments = child.args
                every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
                mine.arguments |= {argument.arg for argument in every} - {"self", "cls"}
            found.append(mine)
            if not isinstance(node, ast.Module):
                owner.uses.add(mine.name)
            _visit(child, mine, found, path)
            continue
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue  # a docstring
        if isinstance(child, ast.Name):
            owner.uses.add(child.id)
        if isinstance(child, ast.Attribute):
            owner.uses.add(child.attr)
        if text := text_of(child):
            owner.texts.append((text, f"{path.relative_to(path.parents[len(path.parents) - 1])}:{child.lineno}"))
            if isinstance(child, ast.JoinedStr):
                for part in child.values:
                    if isinstance(part, ast.FormattedValue):
                        _visit(part, owner, found, path)
                continue
        _visit(child, owner, found, path)


def _fields(node: ast.ClassDef) -> set[str]:
    named = {inner.target.id for inner in node.body if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name)}
    made = [inner for inner in node.body if isinstance(inner, ast.FunctionDef) and inner.name in ("__init__", "__new__")]
    return named | {argument.arg for inner in made for argument in (*inner.args.args, *inner.args.kwonlyargs)}


def text_of(node: ast.AST) -> str:
    """The text of a literal, with {} for each value of an f-string; '' for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return ""


def givers(found: list[Definition]) -> Callable[[str], set[str]]:
    """A function: name of a definition -> the arguments of it and of all definitions that use it, over any number of steps."""
    users: dict[str, set[str]] = defaultdict(set)
    own: dict[str, set[str]] = defaultdict(set)
    for definition in found:
        own[definition.name] |= definition.arguments
        for name in definition.uses:
            users[name].add(definition.name)

    @functools.cache
    def allowed(name: str) -> set[str]:
        seen, left = {name}, [name]
        while left:
            new = users[left.pop()] - seen
            seen |= new
            left += new
        return set().union(*(own[user] for user in seen))

    return allowed


def named_arguments(text: str) -> Iterator[str]:
    """name of each unqualified name=value; those inside a call, `Task(missing='unknown')`, belong to what is called."""
    outside = text
    while (shorter := CALLED.sub(" ", outside)) != outside:
        outside = shorter
    yield from GIVEN.findall(outside)


def called_arguments(text: str) -> Iterator[tuple[str, str]]:
    """(name of what is called, argument) for each name=value inside a call."""
    for called, inside in CALLED.findall(text):
        for name in GIVEN.findall(inside):
            yield called.split(".")[-1], name

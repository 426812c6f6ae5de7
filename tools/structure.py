"""The structure of the package in figures: circles of imports, who takes a session, sizes of files and functions.

    python -m tools.structure

Imports count wherever they stand: at the top, inside functions, and for type hints alone.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
Functions = ast.FunctionDef | ast.AsyncFunctionDef


def modules(folder: Path = ROOT) -> dict[str, ast.Module]:
    """The package's modules, parsed, by name."""
    parsed = {}
    for path in sorted((folder / "prunekit").rglob("*.py")):
        if "assets" not in path.parts:
            name = ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
            parsed[name] = ast.parse(path.read_text())
    return parsed


def imports(parsed: dict[str, ast.Module]) -> dict[str, set[str]]:
    """For each module the modules of the package that it imports; a submodule's package does not count beside it."""
    edges: dict[str, set[str]] = defaultdict(set)
    for name, tree in parsed.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [full if full in parsed else node.module for full in whole]
            elif isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                continue
            edges[name] |= {target for target in targets if target in parsed and target != name}
    return edges


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components with more than one module (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(edges.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            start = stack.index(node)
            component = sorted(stack[start:])
            del stack[start:]
            if len(component) > 1:
                components.append(component)

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return sorted(components)


def functions(tree: ast.AST) -> Iterator[Functions]:
    """All functions of a module, methods and inner ones included."""
    return (node for node in ast.walk(tree) if isinstance(node, Functions))


def takes_first(parsed: dict[str, ast.Module], names: tuple[str, ...], below: str = "prunekit") -> list[str]:
    """Functions whose first argument has one of these names, as module.function."""
    matches = []
    for name, tree in parsed.items():
        for function in functions(tree):
            arguments = function.args.posonlyargs + function.args.args
            if name.startswith(below) and arguments and arguments[0].arg in names:
                matches.append(f"{name}.{function.name}")
    return matches


SEAMS = ("Component", "Scorer", "Fusion", "Schedule", "Selector", "Reducer")


def seams(parsed: dict[str, ast.Module]) -> tuple[int, int]:
    """Class attributes by which components say something, and the functions that one may define."""
    base = parsed["prunekit.components.base"]
    bodies = [node.body for node in base.body if isinstance(node, ast.ClassDef) and node.name in SEAMS]
    flags = {line.target.id for body in bodies for line in body
             if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)}  # fmt: skip
    asked = [f.name for body in bodies for f in body if isinstance(f, Functions) and not f.decorator_list]
    return len(flags - {"registered_name"}), len(asked)


def used_once(parsed: dict[str, ast.Module]) -> int:
    """Private functions of modules whose name stands in one other place alone."""
    count = 0
    for tree in parsed.values():
        names = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name)]
        private = [f.name for f in tree.body if isinstance(f, Functions) and f.name.startswith("_")]
        count += sum(names.count(name) == 1 for name in private)
    return count


def inside_imports(folder: Path = ROOT) -> list[str]:
    """Method files that import anything of the package but ``prunekit`` itself."""
    files = []
    for path in sorted((folder / "methods").glob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)]
        names += [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
        files += [path.name] if any(name.startswith("prunekit.") for name in names) else []
    return files


def untyped(parsed: dict[str, ast.Module], annotations: tuple[str, ...] = ("Any", "[str, Any]")) -> list[str]:
    """Parameters annotated as anything, or as a mapping to anything, as module.function(name)."""
    matches = []
    for name, tree in parsed.items():
        for function in functions(tree):
            for argument in parameters(function):
                written = ast.unparse(argument.annotation) if argument.annotation else ""
                if written.removesuffix(" | None") == annotations[0] or annotations[1] in written:
                    matches.append(f"{name}.{function.name}({argument.arg})")
    return matches


def plain_configs(parsed: dict[str, ast.Module]) -> list[str]:
    """Functions that take a parameter ``config`` which is a plain mapping, as module.function."""
    return [
        f"{name}.{function.name}"
        for name, tree in parsed.items()
        for function in functions(tree)
        for argument in parameters(function)
        if argument.arg == "config" and argument.annotation and "[str, Any]" in ast.unparse(argument.annotation)
    ]


def parameters(function: Functions) -> list[ast.arg]:
    """All parameters of a function, ``*rest`` and ``**options`` included."""
    arguments = function.args
    rest = [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *rest]


def spread(values: list[int]) -> str:
    """Median, 90th percentile and maximum."""
    ordered = sorted(values)
    return f"{median(ordered):g} / {ordered[int(0.9 * (len(ordered) - 1))]} / {ordered[-1]}"


def main() -> None:
    """Print the figures."""
    parsed = modules()
    loops = circles(imports(parsed))
    lines = {name: max((getattr(node, "end_lineno", 0) for node in ast.walk(tree)), default=0)
             for name, tree in parsed.items()}  # fmt: skip
    lengths = [f.end_lineno - f.lineno + 1 for tree in parsed.values() for f in functions(tree) if f.end_lineno]
    engine = [name for name in parsed if name.startswith("prunekit.engine")]
    session = takes_first(parsed, ("session",))
    rows = {
        "modules": len(parsed),
        "circles": f"{len(loops)} (of {', '.join(str(len(circle)) for circle in loops) or 'none'} modules)",
        "functions that take session or pruner first": len(takes_first(parsed, ("session", "pruner"))),
        "of these in the engine": len([name for name in session if name.startswith("prunekit.engine")]),
        "private functions of a module used once": used_once(parsed),
        "flags of the five seams, functions to define": "{}, {}".format(*seams(parsed)),
        "method files that import the package's inside": len(inside_imports()),
        "engine: modules, lines": f"{len(engine)}, {sum(lines[name] for name in engine)}",
        "parameters that are Any or map to Any": len(untyped(parsed)),
        "functions that take config as a plain dict": len(plain_configs(parsed)),
        "lines in all": sum(lines.values()),
        "lines of a module: median / p90 / max": spread(list(lines.values())),
        "lines of a function: median / p90 / max": spread(lengths),
    }
    for label, value in rows.items():
        print(f"{label:46s} {value}")
    for circle in loops:
        print("circle:", " ".join(circle))


if __name__ == "__main__":
    main()

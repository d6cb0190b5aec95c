"""List the commands.

python -m experiments
"""

import ast
import sys
from collections.abc import Sequence
from pathlib import Path


def list_commands(folder: Path = Path(__file__).parent) -> dict[str, str]:
    """Return {module that can be run: first line of its docstring}."""
    commands = {}
    for path in sorted(folder.glob("[!_]*.py")):
        text = path.read_text(encoding="utf-8")
        if '\nif __name__ == "__main__":\n' in text:
            commands[path.stem] = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return commands


def main(arguments: Sequence[str]) -> None:
    """Print the commands; refuse arguments, which belong after the name of a command."""
    commands = list_commands()
    if set(arguments) - {"--help"}:
        sys.exit(
            f"error: {' '.join(arguments)!r}: the form is python -m experiments.COMMAND; "
            f"commands: {', '.join(commands)}"
        )
    width = max(map(len, commands))
    print("Usage: python -m experiments.COMMAND --help\n")
    for name, summary in commands.items():
        print(f"  {name:{width}}  {summary}")


if __name__ == "__main__":
    main(sys.argv[1:])

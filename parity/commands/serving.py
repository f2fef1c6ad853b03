"""`parity mcp`: the commands as tools of the Model Context Protocol, for a coding agent.

Each call is a process of its own that runs `parity ... --brief` in the root, so that an edited port is imported anew, and a crash ends
one call. Paths are confined to the root; nothing is imported or run but what the caller names.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from parity.boundary.text import one_line
from parity.errors import CaseError
from parity.files import check_folder

KEPT = Path(".parity_cache") / "mcp"  # below the root: results of this server's calls
TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
WORD = re.compile(r"[\w./ \[\]=,@-]*")
INSTRUCTIONS = (
    "parity tells whether a port of a model computes what its reference computes, and if not, where it first departs and why. "
    "Start with check (two models by name) or run (a case, see list). Every answer ends with the next step; "
    "explain and zoom take the `result` that an answer names. Fix the line, then call check or run again."
)


def mcp(
    root: Annotated[Path, typer.Option("--root", help="Folder that calls run in; no path leads out of it.")] = Path(
        "."
    ),
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Seconds that one call may take.")] = 600.0,
) -> int:
    """Serve check, run, compare, zoom, explain, diagnose and list to a coding agent (Model Context Protocol, stdio)."""
    try:
        from mcp.server import MCPServer
    except ImportError:
        raise CaseError("parity mcp needs the Model Context Protocol SDK: pip install 'parity[mcp]'") from None
    if not root.is_dir():
        raise CaseError(f"--root {root}: there is no such folder")
    check_folder(root / KEPT)
    server = MCPServer("parity", instructions=INSTRUCTIONS)
    calls = Calls(root.resolve(), timeout)
    server.tool("list")(calls.list_)
    for tool in (calls.check, calls.run, calls.compare, calls.zoom, calls.explain, calls.diagnose):
        server.tool()(tool)
    server.run("stdio")
    return 0


class Calls:
    """The tools. Each builds the arguments of one command, checked, and returns its brief answer.

    root: where commands run; timeout: seconds that one may take.
    """

    def __init__(self, root: Path, timeout: float) -> None:
        self.root, self.timeout = root, timeout
        self._number = itertools.count(1)
        self._made: dict[str, list[str]] = {}  # result -> the command that gave it

    async def list_(self, system: str = "", faults: bool = False) -> str:
        """List the systems and cases of this project (with faults=true the known faults of a system)."""
        return await self._answer(["list", *self._words("system", system), *(["--faults"] if faults else [])])

    async def check(self, reference: str, port: str, inputs: str = "", names: str = "", zoom: str = "") -> str:
        """Compare two models. reference, port, inputs: package.module:callable, called without arguments.

        reference and port return a torch module (or function); inputs returns a tuple or dict of arguments. names: path of a YAML name map.
        """
        words = ["check", *(self._target(n, t) for n, t in (("reference", reference), ("port", port)))]
        words += [f"--inputs={self._target('inputs', inputs)}"] if inputs else []
        words += [f"--map={self._inside(names)}"] if names else []
        return await self._judged(words, zoom)

    async def run(self, case: str, fault: str = "", variation: str = "", dtype: str = "", zoom: str = "") -> str:
        """Run both sides of a case of this project (system or system/case, see list) and judge the port."""
        words = ["run", *self._words("case", case)]
        for name, value in (("fault", fault), ("variation", variation), ("dtype", dtype)):
            words += [f"--{name}={word}" for word in self._words(name, value)]
        return await self._judged(words, zoom)

    async def compare(self, reference: str, port: str, names: str = "") -> str:
        """Compare two recorded traces by their paths. names: path of a YAML name map."""
        words = ["compare", self._inside(reference), self._inside(port)]
        return await self._judged(words + ([f"--map={self._inside(names)}"] if names else []), "")

    async def zoom(self, result: str, site: str = "first") -> str:
        """Run the call again that gave `result`, and list the operations of both sides that lead to a site."""
        made = self._made.get(result)
        if made is None or made[0] == "compare":
            raise ValueError(f"{one_line(result, 80)} is no result of check or run of this session")
        return await self._judged([word for word in made if not word.startswith("--zoom=")], site)

    async def explain(self, result: str) -> str:
        """Say every cause of a result (its path, as an answer names it) with its evidence: class, proof, patch."""
        return await self._answer(["explain", self._inside(result)])

    async def diagnose(self, reference: str, port: str, kind: str = "activation") -> str:
        """Test every hypothesis on two saved tensors: FILE.safetensors[:KEY] or FILE.npy."""
        files = []
        for text in (reference, port):
            path, ending, key = text.partition(".safetensors:")
            files.append(self._inside(f"{path}.safetensors") + f":{key}" if ending else self._inside(text))
        return await self._judged(["diagnose", *files, *(f"--kind={word}" for word in self._words("kind", kind))], "")

    # -- pieces -------------------------------------------------------------------------------------------------------

    async def _judged(self, words: Sequence[str], zoom: str) -> str:
        """Run a command that gives a result, and keep the result under a path that explain and zoom take."""
        kept = (KEPT / f"{next(self._number)}.json").as_posix()
        self._made[kept] = [*words]
        return await self._answer([*words, *(f"--zoom={word}" for word in self._words("zoom", zoom)), f"--json={kept}"])

    async def _answer(self, words: Sequence[str]) -> str:
        import anyio

        command = [sys.executable, "-m", "parity", *words, "--brief"]
        try:
            with anyio.fail_after(self.timeout):
                done = await anyio.run_process(command, cwd=self.root, check=False, stdin=None)
        except TimeoutError:
            raise ValueError(f"parity {words[0]} took longer than {self.timeout:g} s") from None
        said = done.stdout.decode("utf-8", "replace").strip()
        if done.returncode in (0, 1) and said:
            return said
        raise ValueError(done.stderr.decode("utf-8", "replace").strip()[-1000:] or f"status {done.returncode}")

    def _inside(self, text: str) -> str:
        """Return a path below the root, relative to it. Raises ValueError for any other."""
        path = (self.root / text).resolve()
        if not text or not path.is_relative_to(self.root):
            raise ValueError(f"{one_line(text, 80)!r} is no path inside {self.root}")
        return path.relative_to(self.root).as_posix()

    def _target(self, name: str, text: str) -> str:
        if not TARGET.fullmatch(text):
            raise ValueError(f"{name}: {one_line(text, 80)!r} is no package.module:callable")
        return text

    def _words(self, name: str, text: str) -> list[str]:
        """Return a word as an argument, or none. Raises ValueError for what a command could take for an option."""
        if text.startswith("-") or not WORD.fullmatch(text):
            raise ValueError(f"{name}: {one_line(text, 80)!r} is no name")
        return [text] if text else []

"""Reading the scripts of the WebAssembly test suite (.wast): from text to commands.

A script is a sequence of S-expressions. Those of modules are not taken apart: their text is handed to the assembler as it stands.
"""

from __future__ import annotations

import bisect
import functools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wasmtime

_BLANK = re.compile(r"(?:\s++|;;[^\n]*+)*+")
_TOKEN = re.compile(r'[()]|"(?:[^"\\]|\\.)*+"|\$"(?:[^"\\]|\\.)*+"|[^\s()";]++', re.DOTALL)
_BALANCED = re.compile(r'[^()";]++|"(?:[^"\\]|\\.)*+"|;;[^\n]*+|;', re.DOTALL)
_LEAF = re.compile(r'\(([^()";@]++)\)')
"""A list of atoms, as most lists are."""
_BLOCK_COMMENT = re.compile(r"\(;|;\)")
_MODULE = re.compile(
    r'\(\s*module\b\s*(?P<definition>definition\b\s*)?(?P<instance>instance\b\s*)?(?P<id>\$(?:"[^"]*"|[^\s()";]+)\s*)?'
    r"(?P<format>(?:binary|quote)\b)?"
)
_ESCAPE = re.compile(r"\\(?:([0-9a-fA-F]{2})|u\{([0-9a-fA-F_]+)\}|(.))", re.DOTALL)
_ESCAPED = {"n": b"\n", "t": b"\t", "r": b"\r", '"': b'"', "'": b"'", "\\": b"\\"}
_ACTIONS = {"register", "invoke", "get"}
_CONFUSING = re.compile("[\u202a-\u202e\u2066-\u206f]")
"""Characters that the assembler takes for an attempt to mislead a reader, unless they are escaped."""


@dataclass
class ModuleText:
    """A module as the script gives it."""

    line: int
    name: str | None
    text: str
    format: str
    """"text", "binary", "quote", or "instance": an instance of a definition, whose name `text` then is."""
    is_definition: bool
    _assembled: bytes | str | None = field(default=None, repr=False)

    def binary(self) -> bytes:
        """Return the module in the binary format.

        Raises:
            wasmtime.WasmtimeError: Its text is malformed.
        """
        if self._assembled is None:
            try:
                self._assembled = self._assemble()
            except wasmtime.WasmtimeError as failure:
                self._assembled = str(failure)
        if isinstance(self._assembled, str):
            raise wasmtime.WasmtimeError(self._assembled)
        return self._assembled

    def _assemble(self) -> bytes:
        if self.format == "text":
            text = _CONFUSING.sub(lambda found: f"\\u{{{ord(found[0]):x}}}", self.text)
            return bytes(wasmtime.wat2wasm(text))
        content = b"".join(strings_in(self.text))
        if self.format == "binary":
            return content
        try:
            return bytes(wasmtime.wat2wasm(content.decode()))
        except UnicodeDecodeError as failure:
            raise wasmtime.WasmtimeError(str(failure)) from None


@dataclass(frozen=True)
class Command:
    """One command: its line, its keyword, and what follows that, nested as it is in the script.

    Atoms are strings, string literals bytes, lists lists, and modules `ModuleText`.
    """

    line: int
    keyword: str
    arguments: list[Any]


@functools.lru_cache(maxsize=2)
def read_script(path: Path) -> list[Command]:
    """Return the commands of a script."""
    return parse(path.read_text(encoding="utf-8"))


def parse(text: str) -> list[Command]:
    """Return the commands of the script `text`."""
    return _Reader(text).commands()


def strings_in(text: str) -> list[bytes]:
    """Return the string literals that stand in `text`, outside comments."""
    found = []
    position = 0
    while True:
        position = _skip_blank(text, position)
        token = _TOKEN.match(text, position)
        if token is None:
            return found
        if token[0].startswith('"'):
            found.append(_unescaped(token[0]))
        position = token.end()


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._lines = [found.start() for found in re.finditer("\n", text)]
        self._position = 0

    def commands(self) -> list[Command]:
        commands = []
        text = self._text
        while (position := _skip_blank(text, self._position)) < len(text):
            line = bisect.bisect_left(self._lines, position) + 1
            self._position = position
            node = self._node()
            match node:
                case ["module", *_]:  # with a comment or an annotation before its keyword
                    node = ModuleText(line, None, text[position : self._position], "text", is_definition=False)
                case [str() as keyword, *arguments] if keyword.startswith("assert_") or keyword in _ACTIONS:
                    commands.append(Command(line, keyword, arguments))
                    continue
                case list():  # the script is the inside of one module
                    module = ModuleText(line, None, f"(module {text})", "text", is_definition=False)
                    return [Command(line, "module", [module])]
            if node is not None:
                commands.append(Command(line, "module", [node]))
        return commands

    def _node(self) -> Any:
        """Return what stands at the position, which is no blank, and go behind it; None for an annotation."""
        text = self._text
        if text[self._position] == "(":
            if text.startswith("(@", self._position):
                self._position = _behind_list(text, self._position)
                return None
            leaf = _LEAF.match(text, self._position)
            if leaf is not None and not leaf[1].startswith("module"):
                self._position = leaf.end()
                return leaf[1].split()
            module = _MODULE.match(text, self._position)
            if module is not None:
                return self._module(module)
            self._position += 1
            items = []
            while True:
                position = self._position = _skip_blank(text, self._position)
                if text[position] == ")":
                    self._position += 1
                    return items
                item = self._node()
                if item is not None:
                    items.append(item)
        token = _TOKEN.match(text, self._position)
        assert token is not None, f"no token at {text[self._position : self._position + 20]!r}"
        self._position = token.end()
        return _unescaped(token[0]) if token[0].startswith('"') else token[0]

    def _module(self, head: re.Match[str]) -> ModuleText:
        start = self._position
        end = self._position = _behind_list(self._text, start)
        name = head["id"] and head["id"].strip()
        line = bisect.bisect_left(self._lines, start) + 1
        if head["instance"]:
            definition = self._text[head.end() : end - 1].strip()
            return ModuleText(line, name, definition, "instance", is_definition=False)
        text = self._text[start:end]
        if head["definition"]:
            text = "(module " + self._text[head.end("definition") : end]
        return ModuleText(line, name, text, head["format"] or "text", is_definition=bool(head["definition"]))


def _skip_blank(text: str, position: int) -> int:
    while True:
        blank = _BLANK.match(text, position)
        assert blank is not None
        position = blank.end()
        if not text.startswith("(;", position):
            return position
        position = _behind_comment(text, position)


def _behind_comment(text: str, position: int) -> int:
    depth = 0
    while True:
        mark = _BLOCK_COMMENT.search(text, position)
        assert mark is not None, "a comment is not closed"
        depth += 1 if mark[0] == "(;" else -1
        position = mark.end()
        if not depth:
            return position


def _behind_list(text: str, position: int) -> int:
    depth = 0
    while True:
        if text.startswith("(;", position):
            position = _behind_comment(text, position)
        elif text[position] == "(":
            leaf = _LEAF.match(text, position)
            if leaf is None or not depth:
                depth += 1
                position += 1
            else:
                position = leaf.end()
        elif text[position] == ")":
            depth -= 1
            position += 1
            if not depth:
                return position
        else:
            part = _BALANCED.match(text, position)
            assert part is not None, f"no token at {text[position : position + 20]!r}"
            position = part.end()


def _unescaped(literal: str) -> bytes:
    parts = []
    position = 1
    for escape in _ESCAPE.finditer(literal, 1, len(literal) - 1):
        parts.append(literal[position : escape.start()].encode())
        if escape[1]:
            parts.append(bytes.fromhex(escape[1]))
        elif escape[2]:
            parts.append(chr(int(escape[2].replace("_", ""), 16)).encode())
        else:
            parts.append(_ESCAPED[escape[3]])
        position = escape.end()
    parts.append(literal[position:-1].encode())
    return b"".join(parts)

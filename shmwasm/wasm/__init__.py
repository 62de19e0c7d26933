"""The WebAssembly binary format: opcodes, sections, and a scan of the code. Pure: no engine, no I/O.

Theory
------
Nothing here makes an object of an instruction. `decoding.decode` finds where everything lies, in byte ranges of the original;
`scanning.Scan` goes through the code with one regular expression and stops only where something is to be looked at. Whoever
rewrites a module copies ranges, so what is not touched stays as it was to the byte.

What is accepted is a superset of what is valid: the engine validates. But every count, length and index that is used here has
been checked against the bytes that are there.
"""

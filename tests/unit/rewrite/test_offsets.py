from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shmwasm.rewrite.offsets import Edit, OffsetMap, edited, replacement

CONTENT = bytes(range(100))


def test_no_edit_gives_the_very_content():
    content, offsets = edited(CONTENT, [])
    assert content is CONTENT
    assert offsets == OffsetMap()
    assert offsets.original(57) == 57


def test_offsets_lead_back_over_replacements_insertions_and_deletions():
    edits = [replacement(10, 12, b"abcde"), replacement(20, 20, b"new"), replacement(30, 40, b""), Edit(50, 56, b"site", 54)]
    content, offsets = edited(CONTENT, edits)
    assert content == CONTENT[:10] + b"abcde" + CONTENT[12:20] + b"new" + CONTENT[20:30] + CONTENT[40:50] + b"site" + CONTENT[56:]
    known = {0: 0, 9: 9, 10: 10, 14: 10, 15: 12, 22: 19, 23: 20, 25: 20, 26: 20, 35: 29, 36: 40, 45: 49, 46: 54, 49: 54, 50: 56}
    assert {new: offsets.original(new) for new in known} == known
    assert offsets.original(len(content)) == len(CONTENT)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.binary(max_size=9)), max_size=8))
def test_every_byte_that_was_copied_leads_back_to_itself(pieces):
    edits, position = [], 0
    for gap, removed, new in pieces:
        start = position + gap
        position = start + removed
        edits.append(replacement(start, position, new.translate(None, CONTENT) or b"\xff" * len(new)))
    content, offsets = edited(CONTENT, edits)
    for new, byte in enumerate(content):
        if byte in CONTENT:
            assert CONTENT[offsets.original(new)] == byte

"""Has what Prefect stores encrypted be encrypted with another key.

Standard input: the new key, the one of before, then a line for each block, its id and its data;
what is encrypted with the new key already, is so anew. Standard output: the statements for it.
"""

import sys
from uuid import UUID

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

WRONG = """\
  FAIL  block {block}
        expected: one encrypted with PREFECT_SERVER_ENCRYPTION_KEY, as it is in .env
        found:    one encrypted with another key, which nobody can read
        fix:      delete it in the UI, or enter its secrets there again"""
# Both are of letters, digits and - _ = alone.
UPDATE = "UPDATE block_document SET data = to_jsonb('{data}'::text) WHERE id = '{block}';"


def main(lines: list[str]) -> None:
    """Prints the statements; exits where neither key opens a block."""
    keys = MultiFernet([Fernet(key) for key in lines[:2]])
    for line in filter(None, lines[2:]):
        block, data = line.split(" ", 1)
        try:
            print(UPDATE.format(block=UUID(block), data=keys.rotate(data).decode()))
        except InvalidToken:
            sys.exit(WRONG.format(block=block))


if __name__ == "__main__":
    main(sys.stdin.read().splitlines())

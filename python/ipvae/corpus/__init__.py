"""Data sets that do not fit into memory: encoded part by part, by any engine, to the same files."""

from .columns import ColumnEncoder
from .folder import Encoding, encode_corpus, read_codes
from .rows import Rows, open_rows

__all__ = ["ColumnEncoder", "Encoding", "Rows", "encode_corpus", "open_rows", "read_codes"]

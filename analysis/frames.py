"""Names for pandas tables in annotations.

Pandas ships no stubs; what type checkers infer from its source (every column may be a DataFrame, every sum a Series) rejects correct code,
so tables are `Any` to them and named for the reader.
"""

from typing import Any

Frame = Any  # pandas.DataFrame
Column = Any  # pandas.Series

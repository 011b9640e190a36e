"""The operators on NumPy arrays: `score`, `allocate`, `evict`.

from vlkv import ops
score, sparsity = ops.score(query, key, row_position)
"""

from vlkv.ops.arrays import allocate, evict, score

__all__ = ["allocate", "evict", "score"]

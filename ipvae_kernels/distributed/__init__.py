"""Neurons shared by the processes of a group of ``torch.distributed``: ``infer`` and ``elbo`` of all."""

from .decoder import ShardedDecoder
from .sharded import columns, elbo, infer, shard

__all__ = ["ShardedDecoder", "columns", "elbo", "infer", "shard"]

"""Neurons shared by the processes of a group of ``torch.distributed``: ``infer`` and ``elbo`` of all."""

from .sharded import ShardedDecoder, columns, elbo, infer, shard

__all__ = ["ShardedDecoder", "columns", "elbo", "infer", "shard"]

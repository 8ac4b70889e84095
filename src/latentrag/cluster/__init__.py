"""Beyond one machine, on Ray: passages encoded by actors, a memory whose shards are searched by actors.

division    which shard holds which rows
shard       what a shard does, in its actor
calls       calls to actors, with failover
sharded     one version of a divided memory, searched as one
live        the memory of a cluster by its name
health      what a server knows of the shards without asking them
building    passages encoded by actors, committed at once
connection  joining the cluster; what it knows of each memory
"""

from latentrag.cluster.building import Built, add, build
from latentrag.cluster.live import ReplicaStatus, ShardedMemory, names, stop
from latentrag.cluster.sharded import ShardedVersion

__all__ = ["Built", "ReplicaStatus", "ShardedMemory", "ShardedVersion", "add", "build", "names", "stop"]

"""A Ray cluster of two nodes on this machine: prints its address, and ends with its input.

A line of input takes the second node away at once, as a power cut does.
"""

import os
import sys

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# On a busy machine a node needs more than 30. Ray spells its settings in lower case.
os.environ["RAY_raylet_start_wait_time_s"] = "300"  # noqa: SIM112

from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        second = cluster.add_node(**NODE)
        print("ADDRESS", cluster.address, flush=True)
        for _ in sys.stdin:
            cluster.remove_node(second, allow_graceful=False)
            print("REMOVED", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()

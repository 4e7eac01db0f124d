"""A collecting daemon in a process of its own, for tests that kill it.

Run as a script with a store's URL; prints the port it serves on.
"""

from __future__ import annotations

import asyncio
import sys

import grpc

from opsd.daemon.collect.hygiene.contamination import HeldOutIndex
from opsd.daemon.collect.service import CollectionService
from opsd.daemon.config.schema import CollectConfig
from opsd.daemon.store.sql import open_store
from opsd.daemon.verify.pool import VerifierPool
from opsd.v1 import collection_pb2_grpc as pb_grpc


async def main(url: str) -> None:
    store = open_store(url)
    pool = VerifierPool(1, 30.0)
    await pool.start()
    service = CollectionService(store, pool, HeldOutIndex({}), CollectConfig())
    server = grpc.aio.server()
    pb_grpc.add_CollectionServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

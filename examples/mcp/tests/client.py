"""Lists the tools and calls each, with the Python SDK. Prints one JSON object.

Arguments: the URL of the server, and the key.
"""

import asyncio
import json
import sys

import httpx2
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

url, key = sys.argv[1:]


async def main():
    http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"})
    async with http, streamable_http_client(url, http_client=http) as streams:
        async with ClientSession(streams[0], streams[1]) as session:
            await session.initialize()
            names = [tool.name for tool in (await session.list_tools()).tools]
            result = {"tools": sorted(names)}
            for name, arguments in [("list_invoices", {}), ("refund", {"invoice": 7})]:
                try:
                    reply = await session.call_tool(name, arguments)
                    result[name] = reply.content[0].text
                except Exception as error:  # The SDK has no public type for all of them.
                    result[name] = f"error: {type(error).__name__}"
            print(json.dumps(result))


asyncio.run(main())

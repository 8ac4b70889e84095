import asyncio

from mcp import ClientSession, StdioServerParameters, stdio_client

server = StdioServerParameters(command="latentrag", args=["mcp", "-m", "demo", "-i", "notes.lance"])


async def main():
    async with stdio_client(server) as (read, write), ClientSession(read, write) as session:
        await session.initialize()
        print("tools", *(tool.name for tool in (await session.list_tools()).tools))

        result = await session.call_tool("ask", {"question": "Who wrote the opera Fidelio?"})
        print(result.structured_content["answer"])
        for source in result.structured_content["sources"]:
            print("share", source["id"], source["posterior"])


asyncio.run(main())

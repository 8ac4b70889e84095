import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js';

const client = new Client({ name: 'example', version: '1.0.0' });
await client.connect(
  new StdioClientTransport({ command: 'latentrag', args: ['mcp', '-m', 'demo', '-i', 'notes.lance'] }),
);
const { tools } = await client.listTools();
console.log('tools', ...tools.map((tool) => tool.name));

const { structuredContent } = await client.callTool({
  name: 'ask',
  arguments: { question: 'Who wrote the opera Fidelio?' },
});
console.log(structuredContent.answer);
for (const source of structuredContent.sources) console.log('share', source.id, source.posterior);

await client.close();

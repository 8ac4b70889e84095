import { createOpenAI } from '@ai-sdk/openai';
import { generateText, streamText } from 'ai';

const server = createOpenAI({ baseURL: 'http://127.0.0.1:8000/v1', apiKey: '0123456789abcdef' });
const asked = { model: server.chat('demo'), prompt: 'Who wrote the opera Fidelio?' };

const { text, sources, usage, response } = await generateText(asked);
console.log(text);
for (const source of sources) console.log('because of', source.title, source.url);
console.log('tokens', usage.inputTokens, usage.outputTokens);
for (const source of response.body.latentrag.sources) console.log('share', source.id, source.posterior);

const result = streamText({ ...asked, includeRawChunks: true });
let last;
for await (const part of result.fullStream) {
  if (part.type === 'text-delta') process.stdout.write(part.text);
  if (part.type === 'raw' && part.rawValue.choices[0]?.finish_reason) last = part.rawValue;
}
console.log();
for (const source of await result.sources) console.log('because of', source.title, source.url);
console.log('tokens', (await result.usage).inputTokens, (await result.usage).outputTokens);
for (const source of last.latentrag.sources) console.log('share', source.id, source.posterior);

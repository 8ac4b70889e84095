import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, streamText } from 'ai';

const server = createOpenAICompatible({
  name: 'latentrag',
  baseURL: 'http://127.0.0.1:8000/v1',
  apiKey: '0123456789abcdef',
  includeUsage: true,
  metadataExtractor: {
    extractMetadata: async ({ parsedBody }) => ({ latentrag: parsedBody.latentrag }),
    createStreamExtractor: () => {
      let latentrag = {};
      return {
        processChunk: (chunk) => void (latentrag = { ...latentrag, ...chunk.latentrag }),
        buildMetadata: () => ({ latentrag }),
      };
    },
  },
});
const asked = { model: server('demo'), prompt: 'Who wrote the opera Fidelio?' };

const { text, usage, providerMetadata } = await generateText(asked);
console.log(text);
console.log('tokens', usage.inputTokens, usage.outputTokens);
for (const source of providerMetadata.latentrag.sources) console.log('share', source.id, source.posterior);

const result = streamText(asked);
for await (const delta of result.textStream) process.stdout.write(delta);
console.log();
console.log('tokens', (await result.usage).inputTokens, (await result.usage).outputTokens);
for (const source of (await result.providerMetadata).latentrag.sources)
  console.log('share', source.id, source.posterior);

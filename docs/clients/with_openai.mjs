import OpenAI from 'openai';

const client = new OpenAI({ baseURL: 'http://127.0.0.1:8000/v1', apiKey: '0123456789abcdef' });
const messages = [{ role: 'user', content: 'Who wrote the opera Fidelio?' }];

const completion = await client.chat.completions.create({ model: 'demo', messages });
console.log(completion.choices[0].message.content);
for (const { url_citation } of completion.choices[0].message.annotations)
  console.log('because of', url_citation.title, url_citation.url);
console.log('tokens', completion.usage.prompt_tokens, completion.usage.completion_tokens);
for (const source of completion.latentrag.sources) console.log('share', source.id, source.posterior);

const stream = await client.chat.completions.create({
  model: 'demo',
  messages,
  stream: true,
  stream_options: { include_usage: true },
});
let last, usage;
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta?.content ?? '');
  if (chunk.choices[0]?.finish_reason) last = chunk;
  usage = chunk.usage;
}
console.log();
for (const { url_citation } of last.choices[0].delta.annotations)
  console.log('because of', url_citation.title, url_citation.url);
console.log('tokens', usage.prompt_tokens, usage.completion_tokens);
for (const source of last.latentrag.sources) console.log('share', source.id, source.posterior);

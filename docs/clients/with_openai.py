from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="0123456789abcdef")
messages = [{"role": "user", "content": "Who wrote the opera Fidelio?"}]

completion = client.chat.completions.create(model="demo", messages=messages)
print(completion.choices[0].message.content)
for annotation in completion.choices[0].message.annotations:
    print("because of", annotation.url_citation.title, annotation.url_citation.url)
print("tokens", completion.usage.prompt_tokens, completion.usage.completion_tokens)
for source in completion.latentrag["sources"]:
    print("share", source["id"], source["posterior"])

stream = client.chat.completions.create(
    model="demo", messages=messages, stream=True, stream_options={"include_usage": True}
)
for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
        if choice.finish_reason:
            annotations, sources = choice.delta.annotations, chunk.latentrag["sources"]
print()
for annotation in annotations:
    print("because of", annotation["url_citation"]["title"], annotation["url_citation"]["url"])
print("tokens", chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
for source in sources:
    print("share", source["id"], source["posterior"])

from litellm import completion

server = {"api_base": "http://127.0.0.1:8000/v1", "api_key": "0123456789abcdef"}
messages = [{"role": "user", "content": "Who wrote the opera Fidelio?"}]

response = completion(model="openai/demo", messages=messages, **server)
print(response.choices[0].message.content)
for annotation in response.choices[0].message.annotations:
    print("because of", annotation["url_citation"]["title"], annotation["url_citation"]["url"])
print("tokens", response.usage.prompt_tokens, response.usage.completion_tokens)
for source in response.latentrag["sources"]:
    print("share", source["id"], source["posterior"])

stream = completion(
    model="openai/demo", messages=messages, stream=True, stream_options={"include_usage": True}, **server
)
for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
        if "annotations" in choice.delta:
            annotations, sources = choice.delta.annotations, chunk.latentrag["sources"]
print()
for annotation in annotations:
    print("because of", annotation["url_citation"]["title"], annotation["url_citation"]["url"])
print("tokens", chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
for source in sources:
    print("share", source["id"], source["posterior"])

from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.utils import Secret

generator = OpenAIChatGenerator(
    model="demo",
    api_base_url="http://127.0.0.1:8000/v1",
    api_key=Secret.from_token("0123456789abcdef"),
    # Haystack drops fields that OpenAI does not have; these keep the shares.
    generation_kwargs={"logprobs": True},
)
messages = [ChatMessage.from_user("Who wrote the opera Fidelio?")]

reply = generator.run(messages)["replies"][0]
print(reply.text)
print("tokens", reply.meta["usage"]["prompt_tokens"], reply.meta["usage"]["completion_tokens"])
for passage, share in reply.meta["logprobs"]["posterior"].items():
    print("share", passage, share)

reply = generator.run(
    messages,
    streaming_callback=lambda chunk: print(chunk.content, end="", flush=True),
    generation_kwargs={"stream_options": {"include_usage": True}},
)["replies"][0]
print()
print("tokens", reply.meta["usage"]["prompt_tokens"], reply.meta["usage"]["completion_tokens"])
for of_chunk in reply.meta["logprobs"]:
    for token in of_chunk["content"]:
        for passage, share in token["posterior"].items():
            print("share", passage, share)

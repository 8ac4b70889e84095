from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

llm = OpenAILike(
    model="demo",
    api_base="http://127.0.0.1:8000/v1",
    api_key="0123456789abcdef",
    is_chat_model=True,
    temperature=0,  # LlamaIndex sends 0.1 otherwise, which draws an answer at random
)

response = llm.complete("Who wrote the opera Fidelio?")
print(response)
for annotation in response.raw.choices[0].message.annotations:
    print("because of", annotation.url_citation.title, annotation.url_citation.url)
print("tokens", response.raw.usage.prompt_tokens, response.raw.usage.completion_tokens)
for source in response.raw.latentrag["sources"]:
    print("share", source["id"], source["posterior"])

messages = [ChatMessage(role="user", content="Who wrote the opera Fidelio?")]
for chunk in llm.stream_chat(messages, stream_options={"include_usage": True}):
    print(chunk.delta, end="", flush=True)
    if chunk.raw.choices and chunk.raw.choices[0].finish_reason:
        last = chunk.raw
print()
for annotation in last.choices[0].delta.annotations:
    print("because of", annotation["url_citation"]["title"], annotation["url_citation"]["url"])
print("tokens", chunk.raw.usage.prompt_tokens, chunk.raw.usage.completion_tokens)
for source in last.latentrag["sources"]:
    print("share", source["id"], source["posterior"])

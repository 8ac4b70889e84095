from langchain_openai import ChatOpenAI

llm = ChatOpenAI(
    model="demo",
    base_url="http://127.0.0.1:8000/v1",
    api_key="0123456789abcdef",
    stream_usage=True,
    logprobs=True,  # LangChain drops fields that OpenAI does not have; these keep the shares
)

message = llm.invoke("Who wrote the opera Fidelio?")
print(message.content)
print("tokens", message.usage_metadata["input_tokens"], message.usage_metadata["output_tokens"])
for passage, share in message.response_metadata["logprobs"]["posterior"].items():
    print("share", passage, share)

whole = None
for chunk in llm.stream("Who wrote the opera Fidelio?"):
    print(chunk.content, end="", flush=True)
    whole = chunk if whole is None else whole + chunk
print()
print("tokens", whole.usage_metadata["input_tokens"], whole.usage_metadata["output_tokens"])
for token in whole.response_metadata["logprobs"]["content"]:
    for passage, share in token["posterior"].items():
        print("share", passage, share)

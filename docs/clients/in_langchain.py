import latentrag
from latentrag.integrations.langchain import ChatLatentRag, LatentRagRetriever

rag = latentrag.load("demo", memory="notes.lance")

for document in LatentRagRetriever(rag=rag).invoke("Who wrote the opera Fidelio?"):
    print("prior", document.metadata["id"], document.metadata["prior"])

llm = ChatLatentRag(rag=rag, how={"variant": "token"})
message = llm.invoke("Who wrote the opera Fidelio?")
print(message.content)
for source in message.response_metadata["latentrag"]["sources"]:
    print("share", source["id"], source["posterior"])

for chunk in llm.stream("Who wrote the opera Fidelio?"):
    print(chunk.content, end="", flush=True)
print()

import latentrag
from latentrag.integrations.llama_index import LatentRagLLM, LatentRagRetriever

rag = latentrag.load("demo", memory="notes.lance")

for node in LatentRagRetriever(rag).retrieve("Who wrote the opera Fidelio?"):
    print("prior", node.metadata["id"], node.metadata["prior"])

llm = LatentRagLLM(rag=rag, how={"variant": "token"})
response = llm.complete("Who wrote the opera Fidelio?")
print(response)
for source in response.raw["latentrag"]["sources"]:
    print("share", source["id"], source["posterior"])

for part in llm.stream_complete("Who wrote the opera Fidelio?"):
    print(part.delta, end="", flush=True)
print()

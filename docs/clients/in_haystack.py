from haystack.dataclasses import ChatMessage

import latentrag
from latentrag.integrations.haystack import LatentRagChatGenerator, LatentRagRetriever

rag = latentrag.load("demo", memory="notes.lance")

for document in LatentRagRetriever(rag).run(query="Who wrote the opera Fidelio?")["documents"]:
    print("prior", document.id, document.meta["prior"])

generator = LatentRagChatGenerator(rag, generation_kwargs={"variant": "token"})
messages = [ChatMessage.from_user("Who wrote the opera Fidelio?")]
reply = generator.run(messages)["replies"][0]
print(reply.text)
for source in reply.meta["latentrag"]["sources"]:
    print("share", source["id"], source["posterior"])

generator.run(messages, streaming_callback=lambda chunk: print(chunk.content, end="", flush=True))
print()

"""The guide's app with the real FastAPI: `uvicorn rag:app`, with `base` in BASE."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager

from chroma_manager import ChromaDBManager
from fastapi import FastAPI

chroma_manager = ChromaDBManager(base_path=os.environ["BASE"])


class EmbeddingHandler:
    def __init__(self, configs, gcs_handler, chroma_manager):
        self.chroma_manager = chroma_manager

    def embed(self, file_id: str) -> None:
        collection = self.chroma_manager.get_collection(file_id, "azure", f"rag_collection_{file_id}_azure")
        collection.add(ids=["1"], embeddings=[[1.0, 0.0]], documents=[file_id])


class AzureChatbot(EmbeddingHandler):
    def ask(self, file_id: str, user_id: str) -> list[str]:
        collection = self.chroma_manager.get_collection(file_id, "azure", f"rag_collection_{file_id}_azure", user_id)
        return collection.query(query_embeddings=[[1.0, 0.0]], n_results=1)["documents"][0]


@asynccontextmanager
async def lifespan(app: FastAPI):
    yield
    chroma_manager.cleanup_all_instances()


if os.environ["SHUTDOWN"] == "lifespan":
    app = FastAPI(lifespan=lifespan)
else:
    app = FastAPI()
    app.add_event_handler("shutdown", chroma_manager.cleanup_all_instances)

embedding_handler = EmbeddingHandler({}, None, chroma_manager=chroma_manager)
azure_chatbot = AzureChatbot({}, None, chroma_manager=chroma_manager)


@app.post("/files/{file_id}")
def embed(file_id: str) -> None:
    embedding_handler.embed(file_id)


@app.get("/files/{file_id}")
def ask(file_id: str) -> list[str]:
    return azure_chatbot.ask(file_id, "ann")

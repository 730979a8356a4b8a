"""A chat service: FastAPI in front of an inference server with OpenAI's API (llama-server, vLLM, SGLang …), streaming and not.

pip install ".[openai]" fastapi uvicorn openai
OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=none uvicorn --app-dir examples chat_service:app
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from openai import AsyncOpenAI
from pydantic import BaseModel

import otelperf

otelperf.instrument("chat-service")

MODEL = os.environ.get("MODEL", "model")

app = FastAPI()
client = AsyncOpenAI(max_retries=0)


class Question(BaseModel):
    """What a user asks, and how long the answer may be."""

    text: str
    max_tokens: int = 64


@app.post("/chat")
async def chat(question: Question) -> dict[str, str | int | None]:
    """Answer in one piece."""
    answer = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": question.text}], max_tokens=question.max_tokens
    )
    tokens = answer.usage.completion_tokens if answer.usage else None
    return {"answer": answer.choices[0].message.content, "tokens": tokens}


@app.post("/chat/stream")
async def stream(question: Question) -> StreamingResponse:
    """Answer as it comes. The tokens are known only where the server is asked to add them: ``include_usage``."""

    async def chunks() -> AsyncIterator[str]:
        async with await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": question.text}],
            max_tokens=question.max_tokens,
            stream=True,
            stream_options={"include_usage": True},
        ) as answer:
            async for chunk in answer:
                if chunk.choices and chunk.choices[0].delta.content:
                    yield chunk.choices[0].delta.content

    return StreamingResponse(chunks(), media_type="text/plain")

"""The model: Azure OpenAI, or a local one with the same interface.

What is used of it is what ``openai.AzureOpenAI`` has, so one takes the place of the other. Its parts are used in
``embedding_handler`` and ``azure_chatbot`` only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from rag_app.configs import Configs
from rag_app.errors import UpstreamError
from rag_app.local_model import LocalModel

_logger = logging.getLogger(__name__)

Vectors = npt.NDArray[np.float32]


class Model(Protocol):
    """What is used of ``openai.AzureOpenAI``."""

    @property
    def embeddings(self) -> Any:
        """Has ``create(model=, input=)``, whose result has ``data``, each with an ``embedding``."""

    @property
    def chat(self) -> Any:
        """Has ``completions.create(model=, messages=, stream=True)``, which gives chunks of ``choices``."""


def open_model(configs: Configs) -> Model:
    """Opens the model of the configuration."""
    if configs.azure_endpoint is None:
        return LocalModel()
    from openai import AzureOpenAI  # noqa: PLC0415 - the local model does without it

    client = AzureOpenAI(
        azure_endpoint=configs.azure_endpoint,
        api_key=configs.azure_api_key.get_secret_value(),
        api_version=configs.azure_api_version,
        timeout=60,
    )
    return cast("Model", client)


def embed(model: Model, deployment: str, texts: Sequence[str]) -> Vectors:
    """Returns a unit vector for each text, shape (texts, dimensions).

    Raises:
        UpstreamError: The model cannot be reached, or refuses.
    """
    try:
        answer = model.embeddings.create(model=deployment, input=list(texts))
    except Exception as error:
        _logger.exception("the model has not embedded")
        raise UpstreamError(f"The model cannot be reached, or refuses ({type(error).__name__}).") from error
    return np.array([each.embedding for each in answer.data], dtype=np.float32)

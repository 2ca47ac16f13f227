"""An agent that answers with one model call."""

import os

from google.adk.agents import LlmAgent
from google.adk.models.lite_llm import LiteLlm

root_agent = LlmAgent(
    name="chat",
    model=LiteLlm(model="openai/scripted", api_base=os.environ["MODEL_URL"], api_key="none"),
    instruction="You are a helpful assistant.",
)

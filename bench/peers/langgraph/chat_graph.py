"""One node that answers with the whole history; for the LangGraph server and for Aegra."""

import os

from langchain_core.messages import SystemMessage
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph

SYSTEM = SystemMessage("You are a helpful assistant.")
model = ChatOpenAI(
    model="scripted",
    base_url=os.environ["MODEL_URL"],
    api_key="none",
    streaming=True,
    max_retries=0,
)


async def answer(state: MessagesState):
    """Call the model."""
    return {"messages": [await model.ainvoke([SYSTEM, *state["messages"]])]}


builder = StateGraph(MessagesState)
builder.add_node("answer", answer)
builder.add_edge(START, "answer")
graph = builder.compile()

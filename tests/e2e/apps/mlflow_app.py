"""An application with the MLflow SDK, full or light. Everything but ids and times is the same in every run.

Where the traces go is set by the environment alone, as MLflow's production page has it. The last line is JSON:
the ids of the traces and how many spans each has.
"""

import json
import sys

import mlflow
from mlflow.entities import SpanType

rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1
made = {}


def remember(span, spans):
    made[span.trace_id.removeprefix("tr-")] = spans


def question(n):
    """A chain with a retriever, a chat model with token usage, and a tool: every type of attribute, and events."""
    with mlflow.start_span(name=f"answer {n}", span_type=SpanType.CHAIN) as root:
        root.set_inputs({"question": "Wie groß ist der Große Bär? 🐻", "n": n})
        root.set_attributes(
            {
                "app.int": 7,
                "app.zero": 0,
                "app.float": 2.5,
                "app.true": True,
                "app.false": False,
                "app.none": None,
                "app.text": "grüße, 世界",
                "app.empty": "",
                "app.digits": "42",  # a text that looks like a number must stay a text
                "app.truth": "true",
                "app.braces": "{not json",
                "app.list": [1, "zwei", 3.5, None, [True]],
                "app.map": {"a": {"b": [1, 2]}, "ü": None},
                "app.big": 2**53 + 1,
            }
        )
        with mlflow.start_span(name="retrieve", span_type=SpanType.RETRIEVER) as span:
            span.set_inputs("Großer Bär")
            span.add_event(mlflow.entities.SpanEvent("cache.miss", attributes={"key": "bär", "tries": 2, "ratio": 0.5, "hot": False}))
            span.set_outputs([{"page_content": "Ursus arctos", "metadata": {"doc_uri": "a.txt"}, "id": "1"}])
        with mlflow.start_span(name="chat", span_type=SpanType.CHAT_MODEL) as span:
            span.set_inputs({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Wie groß?"}]})
            span.set_attribute("mlflow.llm.model", "gpt-4o-mini")
            span.set_attribute("mlflow.llm.provider", "openai")
            span.set_attribute("mlflow.chat.tokenUsage", {"input_tokens": 100, "output_tokens": 20, "total_tokens": 120})
            span.set_outputs({"choices": [{"message": {"role": "assistant", "content": "Sehr groß."}}]})
        with mlflow.start_span(name="format", span_type=SpanType.TOOL) as span:
            span.set_inputs(None)
            span.set_outputs("Sehr groß.")
        root.set_outputs("Sehr groß.")
    remember(root, 4)


@mlflow.trace(name="broken tool", span_type=SpanType.TOOL)
def broken_tool(value):
    raise ValueError(f"schlecht: {value}")


def failure(n):
    """A trace whose tool raises."""
    seen = []
    try:
        with mlflow.start_span(name=f"failing {n}", span_type=SpanType.AGENT) as root:
            seen.append(root)
            root.set_inputs({"n": n})
            broken_tool(n)
    except ValueError:
        pass
    remember(seen[0], 2)


def completion(n):
    """A trace of a single LLM span."""
    with mlflow.start_span(name=f"completion {n}", span_type=SpanType.LLM) as span:
        span.set_inputs({"prompt": "Say hi", "temperature": 0.0})
        span.set_attribute("mlflow.chat.tokenUsage", {"input_tokens": 3, "output_tokens": 1, "total_tokens": 4})
        span.set_outputs("hi")
    remember(span, 1)


for n in range(rounds):
    question(n)
    failure(n)
    completion(n)

# Spans leave when the process ends; the native exporter also wants to be told.
mlflow.flush_trace_async_logging()
print(json.dumps({"traces": made}))

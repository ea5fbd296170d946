"""An application with the MLflow SDK, full or light, that uses what OTLP has no place for. Everything but ids and times
is the same in every run. The environment says where its traces go.

Arguments: `experiment-id N`, `experiment NAME` or `destination` (from the environment), then the number of rounds, then
the steps: `online` (needs a server that answers), `pause` (waits for a line on standard input before the second half),
`feedback`. The last line is JSON.
"""

import base64
import json
import sys

import mlflow
from mlflow.entities import AssessmentSource, SpanType

how, *rest = sys.argv[1:]
name = None if how == "destination" else rest.pop(0)
rounds, steps = int(rest[0]), set(rest[1:])
made, feedback = {}, {}

if how == "experiment-id":
    mlflow.set_experiment(experiment_id=name)
elif how == "experiment":
    mlflow.set_experiment(name)

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
# Unlike every other: more than the SDK leaves in the span.
IMAGE = base64.b64encode(base64.b64decode(PIXEL) * 40).decode()


@mlflow.trace(name="lookup", span_type=SpanType.TOOL)
def lookup(n):
    return {"n": n, "text": "Größe"}


def answer(n):
    with mlflow.start_span(name=f"answer {n}", span_type=SpanType.CHAIN) as root:
        root.set_inputs({"question": "Wie groß? 🐻", "n": n})
        mlflow.update_current_trace(
            tags={"team": "search", "ü": "grün"},
            metadata={"mlflow.trace.session": "session-42", "mlflow.trace.user": "user-7", "app.build": "b1"},
            client_request_id=f"request-{n}",
        )
        for step in range(6):
            lookup(step)
        with mlflow.start_span(name="chat", span_type=SpanType.CHAT_MODEL) as span:
            span.set_inputs({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Wie groß?"}]})
            span.set_attribute("mlflow.chat.tokenUsage", {"input_tokens": 100, "output_tokens": 20, "total_tokens": 120})
            span.set_outputs({"choices": [{"message": {"role": "assistant", "content": "Sehr groß."}}]})
        root.set_outputs("Sehr groß.")
    made[root.trace_id] = 8
    return root.trace_id


def picture(n):
    with mlflow.start_span(name=f"picture {n}", span_type=SpanType.LLM) as span:
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{IMAGE}"}}
        span.set_inputs({"model": "gpt-4o", "messages": [{"role": "user", "content": [image]}]})
        span.set_outputs({"choices": [{"message": {"role": "assistant", "content": "a dot"}}]})
    made[span.trace_id] = 1


def failure(n):
    seen = []
    try:
        with mlflow.start_span(name=f"failing {n}", span_type=SpanType.AGENT) as root:
            seen.append(root)
            raise ValueError("schlecht")
    except ValueError:
        made[seen[0].trace_id] = 1


def half():
    for n in range(rounds):
        trace = answer(n)
        picture(n)
        failure(n)
        if "feedback" in steps:
            # Tags and assessments go to the server at once, while the trace may still be in the SDK's queue.
            mlflow.flush_trace_async_logging()
            mlflow.set_trace_tag(trace, "reviewed", "no")
            mlflow.set_trace_tag(trace, "reviewed", "yes")
            mlflow.set_trace_tag(trace, "passing", "soon gone")
            mlflow.delete_trace_tag(trace, "passing")
            given = mlflow.log_feedback(
                trace_id=trace,
                name="helpful",
                value=True,
                rationale="because",
                source=AssessmentSource(source_type="HUMAN", source_id="ann"),
                metadata={"page": "3"},
            )
            changed = mlflow.update_assessment(
                trace_id=trace, assessment_id=given.assessment_id, assessment=mlflow.entities.Feedback(name="helpful", value=False)
            )
            assert changed.assessment_id == given.assessment_id and changed.value is False, changed
            wrong = mlflow.log_expectation(
                trace_id=trace, name="expected", value="Ursa", source=AssessmentSource(source_type="HUMAN", source_id="ann")
            )
            mlflow.delete_assessment(trace_id=trace, assessment_id=wrong.assessment_id)
            feedback[trace] = given.assessment_id


found = None
half()
if "pause" in steps:
    mlflow.flush_trace_async_logging()
    print("paused", flush=True)
    sys.stdin.readline()
    half()
if "online" in steps:
    mlflow.flush_trace_async_logging()
    prompt = mlflow.genai.load_prompt("prompts:/greeting/1")
    with mlflow.start_span(name="greet", span_type=SpanType.CHAIN) as root:
        used = mlflow.genai.load_prompt("prompts:/greeting/1")
        root.set_outputs(used.format(name="Ann"))
    made[root.trace_id] = 1
    mlflow.flush_trace_async_logging()
    with mlflow.start_run() as run:
        mlflow.log_metric("accuracy", 0.5)
        mlflow.log_text("hello", "notes/hello.txt")
    got = mlflow.get_run(run.info.run_id).data.metrics["accuracy"]
    text = mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/notes/hello.txt")
    found = {"metric": got, "text": text, "prompt": prompt.template, "traces": len(mlflow.search_traces(return_type="list", include_spans=False))}

mlflow.flush_trace_async_logging()
print(json.dumps({"traces": made, "feedback": feedback, "online": found}))

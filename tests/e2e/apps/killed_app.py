"""Makes traces of one span, one after the other, until it is killed. Says the id of each on a line of its own as soon as
it has ended for the application."""

import sys
import time

import mlflow

pause = float(sys.argv[1])
if len(sys.argv) > 2:
    mlflow.set_experiment(experiment_id=sys.argv[2])
while True:
    with mlflow.start_span(name="step") as span:
        span.set_inputs({"n": 1})
    print(span.trace_id.removeprefix("tr-"), flush=True)
    time.sleep(pause)

//! What becomes of MLflow's trace JSON passes the validator and prost, and can be prepared for MLflow again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use tracespool::otlp::{self, trace_json};

fuzz_target!(|json: &[u8]| {
    // Whatever it is, telling the forms apart does no harm.
    let _ = trace_json::Dialect::of(json);
    let Ok(converted) = trace_json::to_wire(json) else { return };
    otlp::validate(&converted.wire).expect("it passes");
    ExportTraceServiceRequest::decode(&converted.wire[..]).expect("prost takes it");
    let prepared = otlp::mlflow::prepare([&converted.wire[..]].into_iter()).expect("it can be decoded");
    otlp::validate(&prepared).expect("it passes still");
});

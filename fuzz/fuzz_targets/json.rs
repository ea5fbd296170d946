//! What becomes of OTLP JSON passes the validator and prost, and is the same after a way to JSON and back.

#![no_main]

use libfuzzer_sys::fuzz_target;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use tracespool::otlp;

fuzz_target!(|json: &[u8]| {
    let Ok(wire) = otlp::json::to_wire(json) else { return };
    otlp::validate(&wire).expect("it passes");
    ExportTraceServiceRequest::decode(&wire[..]).expect("prost takes it");
    let mut again = Vec::new();
    otlp::json::from_wire(&wire, &mut again);
    let wire_again = otlp::json::to_wire(&again).expect("our own JSON is taken");
    let mut third = Vec::new();
    otlp::json::from_wire(&wire_again, &mut third);
    assert_eq!(String::from_utf8_lossy(&again), String::from_utf8_lossy(&third), "it settles");
});

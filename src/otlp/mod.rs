//! OTLP trace data as bytes: validation in one pass without decoding, and the few transformations that need more.

pub mod json;
pub mod mlflow;
#[cfg(test)]
mod samples;
mod schema;
pub mod split;
mod token;
pub mod trace_json;
pub mod validate;
mod wire;

pub use validate::{Invalid, Summary, validate};

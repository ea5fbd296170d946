//! OTLP trace data as bytes: validation in one pass without decoding, and the few transformations that need more.

pub mod json;
pub mod mlflow;
pub mod split;
pub mod validate;

pub use validate::{Invalid, Summary, validate};

//! Backends against servers that share nothing with this program: Python's own HTTP server, and gRPC's C core.
//!
//! What such servers cannot be made to do (answers that break gRPC) is served by hyper.

mod grpc;
mod http;
mod mlflow;
mod support;

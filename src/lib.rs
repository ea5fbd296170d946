//! A durable, disk-spooled trace shipper.

pub mod backend;
pub mod config;
pub mod intake;
pub mod otlp;
pub mod receive;

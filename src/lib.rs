//! A durable, disk-spooled trace shipper.

pub mod backend;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod exit;
pub mod intake;
pub mod log;
pub mod otlp;
pub mod status;

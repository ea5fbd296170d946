//! A durable, disk-spooled trace shipper.

pub mod accounts;
pub mod admin;
pub mod backend;
pub mod cli;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod deliver;
pub mod exit;
pub mod intake;
pub mod ledger;
pub mod log;
pub mod otlp;
pub mod receive;
pub mod side;
pub mod status;

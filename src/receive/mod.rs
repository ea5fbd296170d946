//! The doors: what listens, what a request must look like, and what is answered.
//!
//! In the order of a request's life: [`listen`] binds and accepts, `connection` speaks HTTP/1.1 and HTTP/2 on what was
//! accepted, `service` tells gRPC from HTTP, `grpc` and `http` know the two protocols and `mlflow` the
//! calls of MLflow's SDK, `body` and `coding` turn what
//! arrives into bytes within the limits, `hand_over` validates them and gives them to the intake, and `refusal` says
//! what the answer is when one of them said no. [`Budget`] bounds the memory of all requests together.
//!
//! Nothing here knows where records go: the doors end at the intake.

mod body;
mod budget;
mod coding;
mod connection;
mod counters;
mod grpc;
mod hand_over;
mod http;
pub mod listen;
mod mlflow;
mod origin;
mod owner;
mod refusal;
mod reply;
mod service;

use std::sync::Arc;

pub use budget::Budget;
pub use counters::{Received, Totals};
pub use listen::{BindError, Doors, UnixDoor};
use tokio::sync::Semaphore;

use crate::accounts::Accounts;
use crate::backend::Relay;
use crate::config;
use crate::intake::{Commands, Intake};

/// What every door needs to take a request.
#[derive(Debug)]
pub struct Reception {
    intake: Intake,
    budget: Budget,
    received: Arc<Received>,
    max_request_bytes: u64,
    /// One permit for each piece of work that would hold up the reactor; bounds threads, and the memory of decoders.
    heavy: Arc<Semaphore>,
    mlflow: mlflow::Mlflow,
    /// The machine's host name, in case it points to a loopback address.
    own_name: String,
}

impl Reception {
    /// `budget` and `received` are shared with the doors that are not served from here, and with `status`.
    pub fn new(config: &config::Receive, intake: Intake, budget: Budget, received: Arc<Received>) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let own_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self {
            intake,
            budget,
            received,
            max_request_bytes: config.max_request_bytes,
            heavy: Arc::new(Semaphore::new(cores.max(2))),
            mlflow: mlflow::Mlflow::new(&config.mlflow, None, None),
            own_name: own_name.trim().to_owned(),
        }
    }

    /// The same with what MLflow's calls need: the server of this backend, where those go that do not belong to a trace,
    /// and the books, where it stands which experiments were promised.
    #[must_use]
    pub fn with_mlflow(
        self,
        config: &config::Receive,
        server: Option<(String, Relay)>,
        books: (Arc<Accounts>, Commands),
    ) -> Self {
        Self { mlflow: mlflow::Mlflow::new(&config.mlflow, server, Some(books)), ..self }
    }
}

/// A length in memory as the limits count it.
fn size(length: usize) -> u64 {
    // No machine has a `usize` wider than 64 bits.
    u64::try_from(length).unwrap_or(u64::MAX)
}

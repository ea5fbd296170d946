//! The doors: what listens, what a request must look like, and what is answered.
//!
//! In the order of a request's life: [`listen`] binds and accepts, or takes what systemd bound (`inherited`);
//! `connection` speaks HTTP/1.1 and HTTP/2 on what was accepted (with what `authority` and `bare` put right), below `tls` where that is set, and `lines` JSON lines
//! on a Unix socket; `service` lets in who may (`origin`, `token`) and tells gRPC from HTTP; `grpc` and `http` know the
//! two protocols, and `mlflow` the calls of MLflow's SDK; `body` and `coding` turn what arrives into bytes within the limits; `hand_over` validates them, with
//! what the headers say (`via`), and gives them to the intake; and `refusal` says what the answer is when one of them
//! said no. [`Budget`] bounds the memory of all requests together.
//!
//! `directory` is the door for files.
//!
//! Nothing here knows where records go: the doors end at the intake.

mod authority;
mod bare;
mod body;
mod budget;
mod coding;
mod connection;
mod counters;
pub mod directory;
mod grpc;
mod hand_over;
mod http;
mod inherited;
mod lines;
pub mod listen;
mod mlflow;
mod origin;
mod owner;
mod refusal;
mod reply;
mod service;
mod tls;
mod token;
mod via;

use std::path::Path;
use std::sync::Arc;

use ::http::HeaderName;
pub use budget::Budget;
pub use counters::{Received, Totals};
pub use inherited::Inherited;
pub use listen::{BindError, Doors, UnixDoor};
use tokio::sync::Semaphore;

use self::refusal::Problem;
use self::service::Signal;
use self::token::Token;
use crate::accounts::Accounts;
use crate::backend::Relay;
use crate::config::{self, OtherSignals};
use crate::intake::{Commands, Intake};

/// What is wrong with the files that the doors need, as far as that can be told without opening them.
pub fn problems(config: &config::Receive) -> Vec<BindError> {
    let tls = config.tls.as_ref().and_then(|tls| tls::config(tls).err());
    tls.into_iter().chain(config.token_file.as_ref().and_then(|path| open_token(path).err())).collect()
}

fn open_token(path: &Path) -> Result<Token, BindError> {
    Token::open(path).map_err(|source| BindError::Token { path: path.to_owned(), source })
}

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
    /// Who comes over TCP must know it.
    token: Option<Token>,
    /// The only users that may write to a Unix socket.
    allow_uids: Option<Vec<u32>>,
    keep_headers: Vec<HeaderName>,
    other_signals: OtherSignals,
    /// This daemon's id, by which it knows what it has sent on before.
    id: String,
    /// The machine's host name, in case it points to a loopback address.
    own_name: String,
}

impl Reception {
    /// `budget` and `received` are shared with the doors that are not served from here, and with `status`.
    ///
    /// # Errors
    /// A token file that is of no use.
    pub fn new(
        config: &config::Receive,
        id: &str,
        intake: Intake,
        budget: Budget,
        received: Arc<Received>,
    ) -> Result<Self, BindError> {
        let token = config.token_file.as_deref().map(open_token).transpose()?;
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let own_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Ok(Self {
            intake,
            budget,
            received,
            max_request_bytes: config.max_request_bytes,
            heavy: Arc::new(Semaphore::new(cores.max(2))),
            mlflow: mlflow::Mlflow::new(&config.mlflow, id, None, None),
            token,
            allow_uids: config.allow_uids.clone(),
            keep_headers: config.keep_headers.iter().filter_map(|name| name.parse().ok()).collect(),
            other_signals: config.other_signals,
            id: id.to_owned(),
            own_name: own_name.trim().to_owned(),
        })
    }

    /// Whether requests of this signal are taken, be it to drop them.
    fn serves(&self, signal: Signal) -> bool {
        signal == Signal::Traces || self.other_signals == OtherSignals::Accept
    }

    /// Refuses who may not write to the spool socket although its mode lets them connect.
    fn admit_user(&self, uid: Option<u32>) -> Result<(), Problem> {
        match &self.allow_uids {
            Some(allowed) if !uid.is_some_and(|uid| allowed.contains(&uid)) => {
                let who = uid.map_or_else(|| "a user that is not known".to_owned(), |uid| format!("user {uid}"));
                Err(Problem::forbidden(format!(
                    "{who} is not among those who may write here (receive.socket.allow_uids)"
                )))
            }
            _ => Ok(()),
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
        let mlflow = mlflow::Mlflow::new(&config.mlflow, &self.id, server, Some(books));
        Self { mlflow, ..self }
    }
}

/// A length in memory as the limits count it.
fn size(length: usize) -> u64 {
    // No machine has a `usize` wider than 64 bits.
    u64::try_from(length).unwrap_or(u64::MAX)
}

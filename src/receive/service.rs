//! One request: who may ask, which protocol it speaks, and an answer in that protocol whatever happens.

use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{AUTHORIZATION, EXPECT, HOST, ORIGIN};
use http::request::Parts;
use http::{HeaderMap, HeaderName, Request, Response};
use http_body::Body;

use super::body::Inbound;
use super::refusal::Problem;
use super::reply::Reply;
use super::{Received, Reception, grpc, http as otlp_http, mlflow, origin};

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// From the network, or this machine, at this address of ours.
    Tcp {
        /// Our end.
        local: SocketAddr,
    },
    /// From a process that may open the spool socket.
    Unix {
        /// Its user, when the kernel says.
        uid: Option<u32>,
    },
}

impl Peer {
    /// The user at the other end, where that is known.
    pub(super) fn uid(&self) -> Option<u32> {
        match self {
            Self::Tcp { .. } => None,
            Self::Unix { uid } => *uid,
        }
    }
}

/// The kinds of telemetry that SDKs send side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// What this daemon is for.
    Traces,
    /// Answered, counted, dropped.
    Metrics,
    /// Answered, counted, dropped.
    Logs,
}

/// Answers one request.
pub(super) async fn answer<B>(reception: &Reception, peer: Peer, request: Request<B>) -> Response<Reply>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
{
    let (head, body) = request.into_parts();
    let mut body = Inbound::new(body);
    let is_call = grpc::is_call(&head);
    let of_mlflow = if is_call { None } else { reception.mlflow.route(&head) };
    let is_of_mlflow = of_mlflow.is_some();
    let outcome = take(reception, peer, &head, &mut body, is_call, of_mlflow).await;
    let response = outcome.unwrap_or_else(|problem| {
        reception.received.refused(problem.counted);
        tracing::debug!(
            status = problem.http.as_u16(),
            path = head.uri.path(),
            ?peer,
            "refused a request: {}",
            problem.message
        );
        if is_call && grpc::refuse_version(&head).is_ok() {
            grpc::refusal(&problem)
        } else if is_of_mlflow {
            mlflow::refusal(&problem)
        } else {
            otlp_http::refusal(&head.headers, &problem)
        }
    });
    body.leave(head.headers.contains_key(EXPECT));
    response
}

async fn take<B>(
    reception: &Reception,
    peer: Peer,
    head: &Parts,
    body: &mut Inbound<B>,
    is_call: bool,
    of_mlflow: Option<mlflow::Route>,
) -> Result<Response<Reply>, Problem>
where
    B: Body<Data = Bytes> + Unpin,
{
    match peer {
        Peer::Tcp { local } => {
            admit(head, local, &reception.own_name)?;
            if let Some(token) = &reception.token {
                token.check(&head.headers)?;
                if let Some(route) = of_mlflow {
                    // The token is this door's, and no server's.
                    let mut head = head.clone();
                    head.headers.remove(AUTHORIZATION);
                    return mlflow::handle(reception, &peer, &head, body, route).await;
                }
            }
        }
        Peer::Unix { uid } => reception.admit_user(uid)?,
    }
    if is_call {
        grpc::refuse_version(head)?;
        grpc::handle(reception, &peer, head, body).await
    } else if let Some(route) = of_mlflow {
        mlflow::handle(reception, &peer, head, body, route).await
    } else {
        otlp_http::handle(reception, &peer, head, body).await
    }
}

/// Refuses what a web page sent, or led here.
fn admit(head: &Parts, local: SocketAddr, own_name: &str) -> Result<(), Problem> {
    // A value that is not text is no name of ours, and a space is in none.
    let values = |headers: &HeaderMap, name: HeaderName| -> Vec<String> {
        headers.get_all(name).iter().map(|value| value.to_str().unwrap_or(" ").to_owned()).collect()
    };
    let mut hosts = values(&head.headers, HOST);
    hosts.extend(head.uri.authority().map(|authority| authority.as_str().to_owned()));
    let origins = values(&head.headers, ORIGIN);
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    origin::check(local.ip(), own_name, &hosts, origins.iter().map(String::as_str))
        .map_err(|foreign| Problem::forbidden(foreign.to_string()))
}

/// Counts a request whose signal is not kept, and says so once.
pub(super) fn count_dropped(received: &Received, signal: Signal) {
    let (name, dropped) = match signal {
        Signal::Metrics => ("metrics", received.metrics()),
        Signal::Logs => ("logs", received.logs()),
        Signal::Traces => return,
    };
    if dropped.count() {
        tracing::info!("an app sends {name} beside its traces; they are answered with success, counted and dropped");
    }
}

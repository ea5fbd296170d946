//! From a refusal to the two status codes of its answer.

use http::StatusCode;

use crate::intake::Refusal;

/// The gRPC status codes that a door answers with, numbered as gRPC numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    /// The client is wrong, and will be wrong again.
    InvalidArgument = 3,
    /// Not for this client.
    PermissionDenied = 7,
    /// Too large; without `RetryInfo`, so not to be sent again.
    ResourceExhausted = 8,
    /// No such service, method or encoding.
    Unimplemented = 12,
    /// The client breaks the gRPC protocol itself.
    Internal = 13,
    /// Not for whom this daemon does not know.
    Unauthenticated = 16,
    /// To be sent again a little later, and how much later is for the client to say: without `RetryInfo`, SDKs back off
    /// by themselves, and with one, some wait for it even when the stop is over before.
    Unavailable = 14,
}

impl Code {
    /// The number on the wire.
    pub(super) fn number(self) -> u8 {
        self as u8
    }
}

/// Which counter of `received.refused` a refusal belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counted {
    /// No room.
    Full,
    /// Wrong data.
    Invalid,
    /// Too much at once.
    TooLarge,
    /// Not now, for a reason that is not room.
    Unavailable,
    /// It has been here before.
    Looped,
    /// Not a trace at all: a wrong path, method or media type. Or not from somebody who may send one.
    No,
}

/// Everything an answer other than success needs, whichever protocol it goes out on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// Status of an HTTP answer.
    pub(super) http: StatusCode,
    /// Status of a gRPC answer, and `code` of the `google.rpc.Status` in an HTTP body.
    pub(super) grpc: Code,
    /// For a person who reads the client's log.
    pub(super) message: String,
    /// Where it counts.
    pub(super) counted: Counted,
}

/// The one total function from refusals to status codes (OTLP specification, "OTLP/gRPC Response" and "OTLP/HTTP
/// Response").
///
/// What may be sent again is 503 and `UNAVAILABLE`, the only pair that every SDK retries: some releases drop the data
/// at 429, others at 500. There is no Retry-After, because an SDK whose deadline is nearer than it gives up at once.
impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        let (http, grpc, counted) = match refusal {
            Refusal::Invalid(_) => (StatusCode::BAD_REQUEST, Code::InvalidArgument, Counted::Invalid),
            Refusal::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, Code::ResourceExhausted, Counted::TooLarge),
            Refusal::Full { .. } | Refusal::TooManyTraces { .. } | Refusal::DiskFull | Refusal::Busy { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, Counted::Full)
            }
            Refusal::Stopping | Refusal::Failed => {
                (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, Counted::Unavailable)
            }
        };
        Self { http, grpc, message, counted }
    }
}

impl Problem {
    /// The data is wrong.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Refusal::Invalid(message.into()).into()
    }

    /// The client sends slower than `receive` waits. Retryable: the data may be good, and OTLP clients drop it at 408.
    pub(super) fn slow() -> Self {
        Self {
            http: StatusCode::SERVICE_UNAVAILABLE,
            grpc: Code::Unavailable,
            message: "the request arrived too slowly".into(),
            counted: Counted::Unavailable,
        }
    }

    /// The request comes from a web page, or was led here by a name that is not this machine's.
    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self::outside(StatusCode::FORBIDDEN, Code::PermissionDenied, message)
    }

    /// Who sends it does not show that it may.
    pub(super) fn unauthenticated(message: impl Into<String>) -> Self {
        Self::outside(StatusCode::UNAUTHORIZED, Code::Unauthenticated, message)
    }

    /// It has been here before.
    pub(super) fn looped(message: impl Into<String>) -> Self {
        Self { counted: Counted::Looped, ..Self::forbidden(message) }
    }

    /// There is nothing at this path.
    pub(super) fn not_found() -> Self {
        Self::outside(
            StatusCode::NOT_FOUND,
            Code::Unimplemented,
            "nothing is served at this path; traces go to POST /v1/traces",
        )
    }

    /// Only POST is served at this path.
    pub(super) fn method_not_allowed() -> Self {
        Self::outside(StatusCode::METHOD_NOT_ALLOWED, Code::Unimplemented, "only POST is served at this path")
    }

    /// The body is of no type that is understood.
    pub(super) fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::outside(StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::Unimplemented, message)
    }

    /// gRPC asks for something that is not served.
    pub(super) fn unimplemented(message: impl Into<String>) -> Self {
        Self::outside(StatusCode::NOT_IMPLEMENTED, Code::Unimplemented, message)
    }

    /// The client's gRPC library contradicts itself.
    pub(super) fn grpc_protocol(message: impl Into<String>) -> Self {
        Self { http: StatusCode::BAD_REQUEST, grpc: Code::Internal, message: message.into(), counted: Counted::Invalid }
    }

    /// A refusal that says nothing about traces.
    pub(super) fn outside(http: StatusCode, grpc: Code, message: impl Into<String>) -> Self {
        Self { http, grpc, message: message.into(), counted: Counted::No }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(refusal: Refusal) -> (u16, u8, Counted) {
        let problem = Problem::from(refusal);
        (problem.http.as_u16(), problem.grpc.number(), problem.counted)
    }

    #[test]
    fn invalid() {
        assert_eq!(codes(Refusal::Invalid("x".into())), (400, 3, Counted::Invalid));
    }

    #[test]
    fn too_large() {
        assert_eq!(codes(Refusal::TooLarge { limit: 1 }), (413, 8, Counted::TooLarge));
    }

    #[test]
    fn full() {
        assert_eq!(codes(Refusal::Full { max_bytes: 1 }), (503, 14, Counted::Full));
    }

    #[test]
    fn disk_full() {
        assert_eq!(codes(Refusal::DiskFull), (503, 14, Counted::Full));
    }

    #[test]
    fn busy() {
        assert_eq!(codes(Refusal::Busy { limit: 1 }), (503, 14, Counted::Full));
    }

    #[test]
    fn stopping() {
        assert_eq!(codes(Refusal::Stopping), (503, 14, Counted::Unavailable));
    }

    #[test]
    fn failed() {
        assert_eq!(codes(Refusal::Failed), (503, 14, Counted::Unavailable));
    }

    #[test]
    fn a_slow_client_may_try_again() {
        assert_eq!((Problem::slow().http.as_u16(), Problem::slow().grpc.number()), (503, 14));
    }

    #[test]
    fn the_message_names_the_setting_to_change() {
        let problem = Problem::from(Refusal::TooLarge { limit: 64 });
        assert!(problem.message.contains("receive.max_request_bytes = 64"), "{}", problem.message);
    }
}

//! OTLP JSON ⇄ the wire.

/// Why a JSON document is refused. Never contains payload text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {problem}")]
pub struct JsonError {
    /// From 1.
    pub line: usize,
    /// From 1, in bytes.
    pub column: usize,
    /// What is wrong.
    pub problem: String,
}

/// Transcodes one OTLP JSON document (`ExportTraceServiceRequest` or `TracesData`) to the wire.
///
/// # Errors
/// The first thing that is wrong.
pub fn to_wire(_json: &[u8]) -> Result<Vec<u8>, JsonError> {
    Ok(Vec::new())
}

/// Appends a validated request as one line of OTLP JSON, without the line end, to `out`.
pub fn from_wire(_request: &[u8], _out: &mut Vec<u8>) {}

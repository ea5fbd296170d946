//! A validated request in parts.

/// One request per trace, in order of first appearance; spans keep their resource and scope.
pub fn by_trace(_request: &[u8]) -> Vec<Vec<u8>> {
    Vec::new()
}

/// One request per span, in order.
pub fn by_span(_request: &[u8]) -> Vec<Vec<u8>> {
    Vec::new()
}

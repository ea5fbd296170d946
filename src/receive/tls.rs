//! TLS on the listeners.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::BindError;
use crate::config::ServerTls;

/// Reads the files of `receive.tls`.
///
/// # Errors
/// The first file that is of no use, by name.
pub(super) fn config(tls: &ServerTls) -> Result<Arc<ServerConfig>, BindError> {
    let wrong = |path: &Path| {
        let path = path.to_owned();
        move |error: rustls::Error| BindError::Tls { path, problem: error.to_string() }
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(wrong(&tls.cert))?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(wrong(path))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            let verifier =
                verifier.map_err(|error| BindError::Tls { path: path.clone(), problem: error.to_string() })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::from_pem_slice(&read(&tls.key)?)
        .map_err(|error| BindError::Tls { path: tls.key.clone(), problem: format!("holds no key: {error}") })?;
    let mut config = builder.with_single_cert(certificates(&tls.cert)?, key).map_err(wrong(&tls.key))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, BindError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    let problem = match found {
        Ok(found) if !found.is_empty() => return Ok(found),
        Ok(_) => "holds no certificate".to_owned(),
        Err(error) => format!("is not in PEM form: {error}"),
    };
    Err(BindError::Tls { path: path.to_owned(), problem })
}

fn read(path: &Path) -> Result<Vec<u8>, BindError> {
    let failed = |source: io::Error| BindError::Io { operation: "read", address: path.display().to_string(), source };
    std::fs::read(path).map_err(failed)
}

//! What all servers have in common: headers, credentials, TLS files, and what a failed connection says.

use std::error::Error;
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::{Batch, BuildError, Failure, Outcome, encode};
use crate::config::{Credentials, Secret, Tls};

/// Headers that belong to the protocol or the connection; a configured one would break requests.
const RESERVED: [&str; 9] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Shorter secrets are not searched for in messages: they would be found everywhere.
const REDACT_MIN: usize = 4;

/// Makes ring the process's TLS provider. Whoever was first wins, and a second call changes nothing.
pub(super) fn install_tls_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// What goes into the head of every request, and is shown nowhere.
pub(super) struct Headers {
    fixed: HeaderMap,
    authorization: Arc<Authorization>,
}

enum Authorization {
    None,
    Fixed(HeaderValue),
    File { path: PathBuf, scheme: Scheme, last: Mutex<Option<(Stamp, HeaderValue)>> },
}

enum Scheme {
    Bearer,
    Basic { username: String },
}

/// Tells one content of a file from another without reading it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = std::fs::metadata(path)?;
        Ok(Self { inode: meta.ino(), size: meta.size(), modified: (meta.mtime(), meta.mtime_nsec()) })
    }
}

impl Headers {
    /// Checks names and values.
    ///
    /// # Errors
    /// The first one that cannot be sent.
    pub(super) fn build(headers: &[(String, Secret)], credentials: &Credentials) -> Result<Self, BuildError> {
        let mut fixed = HeaderMap::new();
        for (name, value) in headers {
            let wrong = |problem| BuildError::Header { name: name.clone(), problem };
            let lower = name.to_ascii_lowercase();
            if RESERVED.contains(&lower.as_str()) || lower.starts_with("grpc-") {
                return Err(wrong("is set by the protocol"));
            }
            if lower.ends_with("-bin") {
                return Err(wrong("binary gRPC metadata is not supported"));
            }
            let key = HeaderName::from_bytes(lower.as_bytes()).map_err(|_| wrong("is not a header name"))?;
            let value = sensitive(value.expose()).ok_or_else(|| wrong("has a value that fits into no header"))?;
            fixed.append(key, value);
        }
        let file = |path: &Path, scheme| Authorization::File { path: path.to_owned(), scheme, last: Mutex::new(None) };
        let authorization = match credentials {
            Credentials::None => Authorization::None,
            Credentials::Bearer(token) => {
                Authorization::Fixed(Scheme::Bearer.header(token.expose()).map_err(BuildError::Credentials)?)
            }
            Credentials::Basic { username, password } => {
                let scheme = Scheme::Basic { username: username.clone() };
                Authorization::Fixed(scheme.header(password.expose()).map_err(BuildError::Credentials)?)
            }
            Credentials::BearerFile(path) => file(path, Scheme::Bearer),
            Credentials::BasicFile { username, password_file } => {
                file(password_file, Scheme::Basic { username: username.clone() })
            }
        };
        Ok(Self { fixed, authorization: Arc::new(authorization) })
    }

    /// The headers of one request; the credential file is read again when it changed.
    ///
    /// # Errors
    /// What to answer when the credential file is of no use.
    pub(super) async fn current(&self) -> Result<HeaderMap, Outcome> {
        let mut headers = self.fixed.clone();
        let authorization = match &*self.authorization {
            Authorization::None => return Ok(headers),
            Authorization::Fixed(value) => value.clone(),
            Authorization::File { .. } => {
                let authorization = self.authorization.clone();
                let read = encode::blocking(move || authorization.read()).await;
                read.unwrap_or_else(|error| Err(io_message(&error))).map_err(|message| {
                    Outcome::blocked(
                        Failure::new("credentials", message)
                            .advise("check `token_file` or `password_file`: the daemon must be able to read it"),
                    )
                })?
            }
        };
        headers.insert(AUTHORIZATION, authorization);
        Ok(headers)
    }

    /// Whether the credential file is another one than was used last.
    pub(super) fn changed(&self) -> bool {
        let Authorization::File { path, last, .. } = &*self.authorization else { return false };
        let used = last.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(stamp, _)| *stamp);
        Stamp::of(path).is_ok_and(|now| Some(now) != used)
    }

    /// Removes every value of a header from a text that a server wrote.
    pub(super) fn redact(&self, text: &mut String) {
        let mut hide = |value: &HeaderValue| {
            let Ok(value) = value.to_str() else { return };
            // A server may quote the whole value or what follows the scheme, and of Basic the text that was encoded.
            let bare = value.split_once(' ').map_or(value, |(_, rest)| rest);
            let plain = STANDARD.decode(bare).ok().and_then(|text| String::from_utf8(text).ok());
            let password = plain.as_deref().and_then(|plain| plain.split_once(':')).map(|(_, password)| password);
            for secret in [Some(value), Some(bare), plain.as_deref(), password].into_iter().flatten() {
                if secret.len() >= REDACT_MIN && text.contains(secret) {
                    *text = text.replace(secret, "***");
                }
            }
        };
        self.fixed.values().for_each(&mut hide);
        match &*self.authorization {
            Authorization::None => {}
            Authorization::Fixed(value) => hide(value),
            Authorization::File { last, .. } => {
                if let Some((_, value)) = &*last.lock().unwrap_or_else(PoisonError::into_inner) {
                    hide(value);
                }
            }
        }
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Headers(***)")
    }
}

impl Authorization {
    /// The value as the file has it now.
    fn read(&self) -> Result<HeaderValue, String> {
        let Self::File { path, scheme, last } = self else { return Err("there is no credential file".into()) };
        let stamp = Stamp::of(path).map_err(|error| io_message(&error))?;
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((used, value)) = &*last
            && *used == stamp
        {
            return Ok(value.clone());
        }
        // The stamp is older than what is read: a change in between is then read once more, never missed.
        let secret = std::fs::read_to_string(path).map_err(|error| io_message(&error))?;
        let value = scheme.header(secret.trim_end()).map_err(str::to_owned)?;
        *last = Some((stamp, value.clone()));
        Ok(value)
    }
}

impl Scheme {
    fn header(&self, secret: &str) -> Result<HeaderValue, &'static str> {
        if secret.is_empty() {
            return Err("the token or password is empty");
        }
        let text = match self {
            Self::Bearer => format!("Bearer {secret}"),
            Self::Basic { username } if username.contains(':') => return Err("a user name cannot contain a colon"),
            Self::Basic { username } => format!("Basic {}", STANDARD.encode(format!("{username}:{secret}"))),
        };
        sensitive(&text).ok_or("the token has characters that fit into no header")
    }
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Adds what a batch brings along. A header that is there already is the operator's or the protocol's, and wins.
pub(super) fn pass_on(batch: &Batch, headers: &mut HeaderMap) {
    let own: Vec<HeaderName> = headers.keys().cloned().collect();
    for (name, value) in &batch.headers {
        // Both were headers when they came; only a spool that was written by another version may hold something else.
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value))
            && !own.contains(&name)
        {
            headers.append(name, value);
        }
    }
}

/// The TLS files of a backend, read and looked through.
#[derive(Default)]
pub(super) struct TlsFiles {
    /// Authorities to trust instead of the system's.
    pub(super) ca: Option<Vec<u8>>,
    /// The client's certificate and its key.
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl TlsFiles {
    /// # Errors
    /// A file that cannot be read or holds no certificate, or a certificate without its key.
    pub(super) fn read(tls: &Tls) -> Result<Self, BuildError> {
        let ca = tls.ca.as_deref().map(certificates).transpose()?;
        let identity = match (&tls.cert, &tls.key) {
            (Some(cert), Some(key)) => Some((certificates(cert)?, read(key)?)),
            (None, None) => None,
            _ => return Err(BuildError::TlsSettings("`cert` and `key` belong together".into())),
        };
        Ok(Self { ca, identity })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, BuildError> {
    std::fs::read(path).map_err(|error| BuildError::Tls { path: path.to_owned(), problem: io_message(&error) })
}

fn certificates(path: &Path) -> Result<Vec<u8>, BuildError> {
    let pem = read(path)?;
    let wrong = |problem: &str| BuildError::Tls { path: path.to_owned(), problem: problem.to_owned() };
    let mut found = false;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        certificate.map_err(|_| wrong("is not in PEM form"))?;
        found = true;
    }
    if found { Ok(pem) } else { Err(wrong("holds no certificate")) }
}

/// The error without its path, which the reader has from the configuration.
pub(super) fn io_message(error: &io::Error) -> String {
    error.to_string()
}

/// A connection that could not be made or that broke. Resending is safe: nothing was acknowledged.
pub(super) fn broken(error: &(dyn Error + 'static)) -> Outcome {
    let causes = causes(error);
    let root = causes.last().map(ToString::to_string).unwrap_or_default();
    Outcome::retry(Failure::new("connect", super::answer::shorten(&root)).advise(advice(&causes)))
}

/// The first cause of `error` in its own words.
pub(super) fn root(error: &(dyn Error + 'static)) -> String {
    causes(error).last().map(ToString::to_string).unwrap_or_default()
}

fn advice(causes: &[&(dyn Error + 'static)]) -> Option<&'static str> {
    if causes.iter().any(|cause| cause.is::<rustls::Error>()) {
        return Some(
            "check the certificates: `tls.ca` names the authority to trust, and the name in `endpoint` must be in the server's certificate",
        );
    }
    let kind = causes.iter().rev().find_map(|cause| cause.downcast_ref::<io::Error>().map(io::Error::kind));
    let name = causes.iter().any(|cause| cause.to_string().contains("lookup address"));
    match kind {
        _ if name => Some("check the host name in `endpoint`, and the name service"),
        Some(io::ErrorKind::ConnectionRefused) => Some("check that the server is running, and the port in `endpoint`"),
        Some(io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            Some("check the socket's path in `endpoint`, and who may open it")
        }
        Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::TimedOut) => {
            Some("check the address in `endpoint`, and the network between")
        }
        _ => None,
    }
}

/// `error` and what it came from, the first cause last.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> Vec<&'a (dyn Error + 'static)> {
    let mut causes = vec![error];
    let mut next = Some(error);
    while let Some(error) = next {
        // An I/O error passes over the error that it wraps and names that one's source as its own.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped as &(dyn Error + 'static)),
            None => error.source(),
        };
        causes.extend(next);
    }
    causes
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, SystemTime};

    use super::*;

    fn headers(list: &[(&str, &str)]) -> Result<Headers, BuildError> {
        let list = list.iter().map(|(name, value)| ((*name).to_owned(), Secret::new(*value))).collect::<Vec<_>>();
        Headers::build(&list, &Credentials::None)
    }

    async fn authorization(headers: &Headers) -> String {
        headers.current().await.expect("headers")[AUTHORIZATION].to_str().expect("text").to_owned()
    }

    #[tokio::test]
    async fn names_are_sent_in_lower_case() {
        let headers = headers(&[("X-Team", "search")]).expect("build").current().await.expect("headers");
        assert_eq!(headers["x-team"], "search");
    }

    #[test]
    fn headers_of_the_protocol_and_broken_ones_are_refused() {
        for name in ["Content-Type", "grpc-timeout", "trace-bin", "host", "a b", ""] {
            assert!(matches!(headers(&[(name, "x")]), Err(BuildError::Header { .. })), "{name}");
        }
        let error = headers(&[("x-key", "top\nsecret")]).expect_err("a line end in a value");
        assert!(!error.to_string().contains("secret"));
    }

    #[tokio::test]
    async fn basic_credentials_are_encoded() {
        let credentials = Credentials::Basic { username: "ann".into(), password: Secret::new("pa:ss") };
        let headers = Headers::build(&[], &credentials).expect("build");
        assert_eq!(authorization(&headers).await, "Basic YW5uOnBhOnNz");
    }

    #[tokio::test]
    async fn a_changed_credential_file_is_read_again() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("token");
        let headers = Headers::build(&[], &Credentials::BearerFile(path.clone())).expect("a missing file may come");

        let missing = headers.current().await.expect_err("no file yet");
        assert!(matches!(missing, Outcome::Blocked { experiment_only: false, .. }), "{missing:?}");
        assert!(!headers.changed());

        fs::write(&path, "first\n").expect("write");
        assert!(headers.changed());
        assert_eq!(authorization(&headers).await, "Bearer first");
        assert!(!headers.changed());

        fs::write(&path, "other\n").expect("write");
        let later = SystemTime::now() + Duration::from_secs(5);
        fs::File::options().append(true).open(&path).and_then(|file| file.set_modified(later)).expect("touch");
        assert!(headers.changed());
        assert_eq!(authorization(&headers).await, "Bearer other");
    }

    #[tokio::test]
    async fn an_empty_credential_file_blocks() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let headers = Headers::build(&[], &Credentials::BearerFile(file.path().into())).expect("build");
        assert!(matches!(headers.current().await, Err(Outcome::Blocked { .. })));
    }

    #[tokio::test]
    async fn quoted_secrets_are_removed() {
        let credentials = Credentials::Basic { username: "ann".into(), password: Secret::new("hunter2") };
        let list = [("x-api-key".to_owned(), Secret::new("k-123456"))];
        let headers = Headers::build(&list, &credentials).expect("build");
        let mut text = "bad key k-123456 for ann, password hunter2, Basic YW5uOmh1bnRlcjI=".to_owned();
        headers.redact(&mut text);
        assert_eq!(text, "bad key *** for ann, password ***, ***");
        assert!(!format!("{headers:?}").contains("k-123456"));
    }

    #[test]
    fn the_first_cause_is_told_with_advice() {
        let refused = io::Error::from_raw_os_error(rustix::io::Errno::CONNREFUSED.raw_os_error());
        let outer = io::Error::other(refused);
        let Outcome::Retry { failure, after: None } = broken(&outer) else { panic!("not a retry") };
        assert_eq!(failure.status, "connect");
        assert!(failure.message.starts_with("Connection refused"), "{}", failure.message);
        assert!(failure.advice.expect("advice").contains("running"));
    }

    #[test]
    fn files_without_a_certificate_are_refused_by_name() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let tls = Tls { ca: Some(file.path().into()), ..Tls::default() };
        let error = TlsFiles::read(&tls).err().expect("no certificate").to_string();
        assert!(error.contains(&*file.path().to_string_lossy()), "{error}");
    }
}

//! One `[[backend]]` of the file: which keys its kind has, and how they fit together.

use http::header::{HeaderName, HeaderValue};

use super::file::{self, Kind};
use super::section::{At, Found};
use super::settle::Settle;
use super::{Compression, Credentials, Experiment, FileTarget, Remote, Secret, StartAt, Target, Tls, address};

/// Default of `rotate_bytes`.
pub(super) const ROTATE_BYTES: u64 = 100 << 20;
/// Default of `rotate_files`.
pub(super) const ROTATE_FILES: u32 = 10;
/// Longest name of a backend: it is a key in the journal and a label in figures.
const LONGEST_NAME: usize = 64;
/// Headers that belong to the protocol and not to the operator.
const RESERVED_HEADERS: [&str; 8] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "grpc-encoding",
    "host",
    "te",
    "transfer-encoding",
];

/// What the file says about one backend; nothing when something essential is missing.
pub(super) fn from_file(mut written: file::Backend, settle: &mut Settle<'_>) -> Option<(String, Target, StartAt)> {
    require(&written, "name", "give it a name of letters, digits, -, _ and .", settle);
    require(&written, "kind", "say what it speaks: otlp_grpc, otlp_http, mlflow or file", settle);
    let name = written.name.take().and_then(|name| check_name(name, settle));
    let start_at = settle.or(written.start_at.take(), StartAt::default());
    let kind = settle.optional(written.kind.take())?;
    refuse_foreign_keys(&written, kind, settle);
    let target = match kind {
        Kind::File => file_target(written, settle).map(Target::File),
        Kind::OtlpGrpc => remote(written, kind, settle).map(Target::OtlpGrpc),
        Kind::OtlpHttp => remote(written, kind, settle).map(Target::OtlpHttp),
        Kind::Mlflow => {
            let experiment = experiment(written.experiment_id.take(), settle);
            remote(written, kind, settle).map(|remote| Target::Mlflow { remote, experiment, workspace: None })
        }
    };
    Some((name?, target?, start_at))
}

fn require(written: &file::Backend, key: &str, advice: &str, settle: &mut Settle<'_>) {
    if !written.present.contains(&key) {
        let message = format!("has no {key}; {advice}");
        settle.mistake(&written.at, message);
    }
}

/// Whether this may be the name of a backend: it has to be a plain word in labels, keys and command lines.
pub(super) fn is_good_name(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty() && text.len() <= LONGEST_NAME && text.chars().all(good) && !text.starts_with(['-', '.'])
}

fn check_name(name: Found<String>, settle: &mut Settle<'_>) -> Option<String> {
    if name.at.hidden {
        settle.mistake(&name.at, "must be written out: it is the key of what this backend still has to get");
        return None;
    }
    if !is_good_name(&name.value) {
        settle.mistake(
            &name.at,
            format!("must be 1 to {LONGEST_NAME} letters, digits, -, _ and . and begin with a letter, digit or _"),
        );
        return None;
    }
    settle.optional(Some(name))
}

/// Reports keys that another kind of backend has.
fn refuse_foreign_keys(written: &file::Backend, kind: Kind, settle: &mut Settle<'_>) {
    fn at<T>(found: &Option<Found<T>>) -> Option<&At> {
        found.as_ref().map(|found| &found.at)
    }
    let remote = [
        at(&written.endpoint),
        written.headers.first().map(|(_, found)| &found.at),
        at(&written.token_file),
        at(&written.username),
        at(&written.password_file),
        written.tls.as_ref().map(|tls| &tls.at),
        at(&written.compression),
    ];
    let file = [at(&written.path), at(&written.rotate_bytes), at(&written.rotate_files)];
    let mut foreign: Vec<&At> = Vec::new();
    match kind {
        Kind::File => foreign.extend(remote.into_iter().flatten()),
        _ => foreign.extend(file.into_iter().flatten()),
    }
    if kind != Kind::OtlpHttp {
        foreign.extend(at(&written.traces_endpoint));
    }
    if kind != Kind::Mlflow {
        foreign.extend(at(&written.experiment_id));
    }
    for at in foreign {
        settle.mistake(at, format!("does not belong to a backend of kind {}; remove it", word(kind)));
    }
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::OtlpGrpc => "otlp_grpc",
        Kind::OtlpHttp => "otlp_http",
        Kind::Mlflow => "mlflow",
        Kind::File => "file",
    }
}

fn file_target(mut written: file::Backend, settle: &mut Settle<'_>) -> Option<FileTarget> {
    require(&written, "path", "say where to write", settle);
    let rotate_bytes = settle.bytes(written.rotate_bytes.take(), ROTATE_BYTES, 1 << 10..=1 << 50);
    let rotate_files = settle.number(written.rotate_files.take(), ROTATE_FILES, 0..=10_000);
    let path = settle.optional(written.path.take())?;
    Some(FileTarget { path, rotate_bytes, rotate_files })
}

fn experiment(found: Option<Found<String>>, settle: &mut Settle<'_>) -> Experiment {
    if let Some(found) = &found
        && (found.value.is_empty() || !found.value.chars().all(|c| c.is_ascii_digit()))
    {
        settle.mistake(&found.at, "must be the number of an experiment, such as \"0\"");
    }
    Experiment::Id(settle.or(found, "0".into()))
}

fn remote(mut written: file::Backend, kind: Kind, settle: &mut Settle<'_>) -> Option<Remote> {
    let headers = headers(std::mem::take(&mut written.headers), settle);
    let credentials = credentials(&mut written, &headers, settle);
    let compression = settle.or(written.compression.take(), Compression::default());
    let tls = written.tls.take().map_or_else(Tls::default, |tls| Tls {
        ca: settle.optional(tls.ca),
        cert: settle.optional(tls.cert),
        key: settle.optional(tls.key),
    });
    let endpoint = endpoint(&mut written, kind, settle)?;
    Some(Remote { endpoint, headers, credentials, tls, compression })
}

/// The complete address that requests go to, or for MLflow the base that they start from.
fn endpoint(written: &mut file::Backend, kind: Kind, settle: &mut Settle<'_>) -> Option<url::Url> {
    let traces = written.traces_endpoint.take().filter(|_| kind == Kind::OtlpHttp);
    let base = written.endpoint.take();
    if let (Some(traces), Some(_)) = (&traces, &base) {
        settle.mistake(&traces.at, "stands beside endpoint; keep one of them");
    }
    let is_whole = traces.is_some();
    let Some(found) = traces.or(base) else {
        // A key that is there and can't be read has been reported already.
        if !["endpoint", "traces_endpoint"].iter().any(|key| written.present.contains(key)) {
            let message = "has no endpoint; say where the server is, for example endpoint = \"http://127.0.0.1:5000\"";
            settle.mistake(&written.at, message);
        }
        return None;
    };
    let mut url = match address::parse(&found.value, kind == Kind::OtlpGrpc) {
        Ok(url) => url,
        Err(reason) => {
            settle.mistake(&found.at, reason);
            return None;
        }
    };
    if address::take_userinfo(&mut url).is_some() {
        settle.mistake(&found.at, "contains a user name or password; write them as username and password_file");
        return None;
    }
    if kind == Kind::OtlpGrpc && url.scheme() != "unix" && !matches!(url.path(), "" | "/") {
        settle.warning(&found.at, "has a path, which gRPC does not use; it is left out");
        url.set_path("");
    }
    settle.optional(Some(found));
    Some(if kind == Kind::OtlpHttp && !is_whole { address::append(&url, "v1/traces") } else { url })
}

fn headers(written: Vec<(String, Found<String>)>, settle: &mut Settle<'_>) -> Vec<(String, Secret)> {
    let mut headers: Vec<(String, Secret)> = Vec::new();
    for (name, found) in written {
        let name = name.to_ascii_lowercase();
        if let Err(reason) = check_header(&name, &found.value) {
            settle.mistake(&found.at, reason);
        } else if headers.iter().any(|(other, _)| *other == name) {
            settle.mistake(&found.at, "is written twice; names of headers are the same in small and capital letters");
        }
        // The value of any header may be a key. Names are the same in small and capital letters.
        let section = found.at.key.rsplit_once(".headers.").map_or("", |(section, _)| section);
        settle.origins.set(format!("{section}.headers.{name}"), found.at.origin, true);
        headers.push((name, Secret::new(found.value)));
    }
    headers
}

/// Whether a header may be sent; messages never repeat the value.
pub(super) fn check_header(name: &str, value: &str) -> Result<(), &'static str> {
    if HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err("is not a name for a header");
    }
    if RESERVED_HEADERS.contains(&name) {
        return Err("is set by tracespool itself; remove it");
    }
    HeaderValue::from_str(value).map(|_| ()).map_err(|_| "has a value with characters that a header cannot have")
}

fn credentials(written: &mut file::Backend, headers: &[(String, Secret)], settle: &mut Settle<'_>) -> Credentials {
    let has = |key: &str| written.present.contains(&key);
    let in_headers = headers.iter().any(|(name, _)| name == "authorization");
    let (token, user, password) = (has("token_file"), has("username"), has("password_file"));
    if user != password {
        let message = "needs username and password_file together";
        settle.mistake(&written.at, message);
    }
    if u8::from(in_headers) + u8::from(token) + u8::from(user || password) > 1 {
        let message = "authenticates in several ways; keep one of token_file, username with password_file, and an \
                       authorization header";
        settle.mistake(&written.at, message);
    }
    if let Some(username) = written.username.as_ref().filter(|username| username.value.contains(':')) {
        settle.mistake(&username.at, "contains a colon, which basic authentication cannot carry");
    }
    let token = settle.optional(written.token_file.take());
    let username = settle.optional(written.username.take());
    let password_file = settle.optional(written.password_file.take());
    match (token, username, password_file) {
        (Some(token), _, _) => Credentials::BearerFile(token),
        (None, Some(username), Some(password_file)) => Credentials::BasicFile { username, password_file },
        _ => Credentials::None,
    }
}

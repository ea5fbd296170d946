//! The token that whoever comes over TCP must know.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderMap;
use http::header::AUTHORIZATION;
use subtle::ConstantTimeEq;

use super::refusal::Problem;

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Longest token; a file that holds more is another file.
const LONGEST: u64 = 4096;

/// `receive.token_file`, read again when it changes.
pub(super) struct Token {
    path: PathBuf,
    known: Mutex<Known>,
}

struct Known {
    token: Vec<u8>,
    stamp: Stamp,
    looked: Instant,
}

/// Tells one content of the file from another without reading it.
type Stamp = (u64, u64, i64, i64);

impl Token {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// It can't be read, or holds no token.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let stamp = stamp(path)?;
        let known = Known { token: read(path)?, stamp, looked: Instant::now() };
        Ok(Self { path: path.to_owned(), known: Mutex::new(known) })
    }

    /// Refuses who does not know the token.
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let presented = match (values.next(), values.next()) {
            (Some(value), None) => bearer(value.as_bytes()),
            _ => None,
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.refresh(&mut known);
        // How long it takes tells nothing about how much of a guess was right.
        if presented.is_some_and(|presented| bool::from(presented.ct_eq(&known.token))) {
            return Ok(());
        }
        Err(Problem::unauthenticated(match presented {
            Some(_) => "the token is not the one that this daemon expects (receive.token_file)",
            None => "a token is needed: send the header Authorization: Bearer TOKEN (receive.token_file)",
        }))
    }

    /// Takes the token over that the file has now. While it can't be read the one before counts: a file that is being
    /// replaced is no reason to turn apps away.
    fn refresh(&self, known: &mut Known) {
        if known.looked.elapsed() < LOOK_EVERY {
            return;
        }
        known.looked = Instant::now();
        let changed =
            stamp(&self.path).and_then(|now| Ok((now, (now != known.stamp).then(|| read(&self.path)).transpose()?)));
        match changed {
            Ok((now, Some(token))) => {
                tracing::info!("took the new token of {}", self.path.display());
                (known.stamp, known.token) = (now, token);
            }
            Ok((_, None)) => {}
            Err(error) => tracing::debug!("cannot read {}: {error}", self.path.display()),
        }
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("path", &self.path).finish_non_exhaustive()
    }
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let meta = std::fs::metadata(path)?;
    Ok((meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let wrong = |message| Err(io::Error::new(io::ErrorKind::InvalidData, message));
    if std::fs::metadata(path)?.len() > LONGEST {
        return wrong("it is too long for a token");
    }
    let bytes = std::fs::read(path)?;
    let token = bytes.trim_ascii();
    if token.is_empty() {
        return wrong("it is empty");
    }
    if !token.iter().all(u8::is_ascii_graphic) {
        return wrong("a token has only visible characters, and this has others");
    }
    Ok(token.to_vec())
}

/// The scheme is written in any case (RFC 9110, section 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::receive::refusal::Code;

    fn presenting(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(value))])
    }

    #[test]
    fn only_the_token_opens() -> io::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), "s3cret\n")?;
        let token = Token::open(file.path())?;
        for good in ["Bearer s3cret", "bearer  s3cret", "BEARER s3cret "] {
            assert_eq!(token.check(&presenting(good)), Ok(()), "{good}");
        }
        for bad in [
            "Bearer",
            "Bearer ",
            "Bearer s3cre",
            "Bearer S3cret",
            "Bearer s3cret1",
            "Basic s3cret",
            "s3cret",
            "Bearers3cret",
        ] {
            let problem = token.check(&presenting(bad)).expect_err(bad);
            assert_eq!((problem.http.as_u16(), problem.grpc), (401, Code::Unauthenticated), "{bad}");
            assert!(!problem.message.contains("s3cre"), "{problem:?}");
        }
        assert!(token.check(&HeaderMap::new()).is_err());
        let mut twice = presenting("Bearer s3cret");
        twice.append(AUTHORIZATION, HeaderValue::from_static("Bearer other"));
        assert!(token.check(&twice).is_err());
        Ok(())
    }

    #[test]
    fn a_new_content_counts_and_a_missing_file_changes_nothing() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("token");
        std::fs::write(&path, "one")?;
        let token = Token::open(&path)?;
        let look = || token.known.lock().expect("not poisoned").looked -= LOOK_EVERY;
        std::fs::write(&path, "another")?;
        look();
        assert!(token.check(&presenting("Bearer another")).is_ok());
        assert!(token.check(&presenting("Bearer one")).is_err());
        std::fs::remove_file(&path)?;
        look();
        assert!(token.check(&presenting("Bearer another")).is_ok());
        Ok(())
    }

    #[test]
    fn a_file_without_a_token_is_an_error() -> io::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        for content in ["", " \n", "a b", "a\nb"] {
            std::fs::write(file.path(), content)?;
            assert!(Token::open(file.path()).is_err(), "{content:?}");
        }
        Ok(())
    }
}

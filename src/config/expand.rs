//! `${env:NAME}` and `${file:PATH}` in the strings of the configuration file.

use std::path::{Path, PathBuf};

use super::Environment;

/// Largest file that is taken as a value. It is there for keys and passwords, not for logs.
const LONGEST: u64 = 1 << 20;

/// A string with its references replaced.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Expanded {
    /// The value.
    pub text: String,
    /// Whether there was a reference, so that the value may be a secret.
    pub hidden: bool,
}

/// Replaces every reference. What comes in is not looked through again.
pub(super) fn expand(text: &str, beside: &Path, environment: &Environment) -> Result<Expanded, String> {
    let mut out = String::with_capacity(text.len());
    let mut hidden = false;
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        // `$${` is a `${` that is meant as it stands.
        if let Some(before) = rest[..start].strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = &rest[start + 2..];
            continue;
        }
        out.push_str(&rest[..start]);
        let Some(length) = rest[start..].find('}') else {
            return Err("has a \"${\" without \"}\"; write \"$${\" where \"${\" itself is meant".into());
        };
        out.push_str(&value(&rest[start + 2..start + length], beside, environment)?);
        hidden = true;
        rest = &rest[start + length + 1..];
    }
    out.push_str(rest);
    Ok(Expanded { text: out, hidden })
}

/// What one reference stands for.
fn value(reference: &str, beside: &Path, environment: &Environment) -> Result<String, String> {
    match reference.split_once(':') {
        Some(("env", name)) => environment
            .vars
            .get(name)
            .cloned()
            .ok_or_else(|| format!("refers to the environment variable {name}, which is not set")),
        Some(("file", path)) => {
            let path = locate(Path::new(path), beside, environment)?;
            let text = read(&path).map_err(|reason| format!("refers to {}: {reason}", path.display()))?;
            Ok(text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text)).to_owned())
        }
        _ => Err("refers to something unknown; ${env:NAME} and ${file:PATH} are known, and \"$${\" stands for \"${\" \
                  itself"
            .into()),
    }
}

/// Finds a file that the configuration names: a relative path is meant in `$CREDENTIALS_DIRECTORY`, then beside
/// the configuration file. The error names the places that were tried.
pub(super) fn locate(path: &Path, beside: &Path, environment: &Environment) -> Result<PathBuf, String> {
    let mut tried = Vec::new();
    if path.is_relative()
        && let Some(credentials) = environment.systemd_directory("CREDENTIALS_DIRECTORY")
    {
        tried.push(credentials.join(path));
    }
    tried.push(beside.join(path));
    if let Some(found) = tried.iter().find(|path| path.exists()) {
        return Ok(found.clone());
    }
    // Without permission to look, the last place is the likely one, and reading it will give the true reason.
    let missing = |path: &PathBuf| matches!(path.try_exists(), Ok(false));
    match tried.iter().find(|path| !missing(path)) {
        Some(unclear) => Ok(unclear.clone()),
        None => {
            let places: Vec<_> = tried.iter().map(|path| path.display().to_string()).collect();
            Err(format!("refers to a file that does not exist: {}", places.join(", nor ")))
        }
    }
}

/// Reads a small text file.
pub(super) fn read(path: &Path) -> Result<String, String> {
    let describe = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => "this user may not read it".to_owned(),
        std::io::ErrorKind::InvalidData => "it is not UTF-8 text".to_owned(),
        _ => error.to_string(),
    };
    let metadata = std::fs::metadata(path).map_err(describe)?;
    if metadata.is_dir() {
        return Err("it is a directory".into());
    }
    if metadata.len() > LONGEST {
        return Err("it is larger than 1MiB".into());
    }
    std::fs::read_to_string(path).map_err(describe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::environment::tests::user;

    #[test]
    fn references_are_replaced_and_plain_text_is_not_touched() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("token"), "from-file\n").expect("written");
        let environment = user(&[("TOKEN", "from-env"), ("NESTED", "${env:TOKEN}"), ("EMPTY", "")]);
        for (text, value, hidden) in [
            ("plain $5 {x}", "plain $5 {x}", false),
            ("a ${env:TOKEN} b", "a from-env b", true),
            ("${file:token}/${env:TOKEN}", "from-file/from-env", true),
            ("${env:NESTED}", "${env:TOKEN}", true),
            ("${env:EMPTY}", "", true),
            ("$${env:TOKEN}", "${env:TOKEN}", false),
        ] {
            let expanded = expand(text, folder.path(), &environment);
            assert_eq!(expanded, Ok(Expanded { text: value.into(), hidden }), "{text}");
        }
    }

    #[test]
    fn only_one_line_end_is_trimmed() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("key"), " a\n\r\n").expect("written");
        let expanded = expand("${file:key}", folder.path(), &user(&[])).expect("expanded");
        assert_eq!(expanded.text, " a\n");
    }

    #[test]
    fn credentials_come_before_what_lies_beside_the_file() {
        let beside = tempfile::tempdir().expect("a folder");
        let credentials = tempfile::tempdir().expect("a folder");
        std::fs::write(beside.path().join("both"), "beside").expect("written");
        std::fs::write(beside.path().join("only"), "beside").expect("written");
        std::fs::write(credentials.path().join("both"), "credential").expect("written");
        let environment = user(&[("CREDENTIALS_DIRECTORY", credentials.path().to_str().expect("UTF-8"))]);
        let text = |name: &str| expand(name, beside.path(), &environment).map(|expanded| expanded.text);
        assert_eq!(text("${file:both}"), Ok("credential".into()));
        assert_eq!(text("${file:only}"), Ok("beside".into()));
        let error = text("${file:none}").expect_err("no such file");
        assert!(error.contains(credentials.path().to_str().expect("UTF-8")) && error.contains("nor"), "{error}");
    }

    #[test]
    fn what_cannot_be_replaced_says_why() {
        let environment = user(&[("TOKEN", "s3cret")]);
        for (text, word) in [
            ("${env:MISSING}", "MISSING, which is not set"),
            ("${TOKEN}", "unknown"),
            ("${env:TOKEN", "without"),
            ("${vault:x}", "unknown"),
            ("${file:/}", "directory"),
        ] {
            let error = expand(text, Path::new("/nowhere"), &environment).expect_err(text);
            assert!(error.contains(word) && !error.contains("s3cret"), "{text}: {error}");
        }
    }
}

//! The process's surroundings as a value, so that everything below `main` is a function of its arguments.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What the process was started with.
#[derive(Clone, Default)]
pub struct Environment {
    /// The variables. Those that are not UTF-8 are left out: none that counts here may be.
    pub vars: BTreeMap<String, String>,
    /// Effective user id.
    pub uid: u32,
    /// Process id.
    pub pid: u32,
    /// Current directory; relative paths of the command line and of variables are meant from here.
    pub directory: PathBuf,
}

impl Environment {
    /// Reads the real surroundings. Only `main` calls this.
    pub fn of_process() -> Self {
        Self {
            vars: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
            uid: rustix::process::geteuid().as_raw(),
            pid: std::process::id(),
            directory: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
        }
    }

    /// The value of a variable. An empty one counts as unset, as OpenTelemetry demands and everybody expects.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.vars.get(name).map(String::as_str).filter(|value| !value.trim().is_empty())
    }

    /// The first of `names` that is set, with its value.
    pub fn first<'n>(&self, names: &[&'n str]) -> Option<(&'n str, &str)> {
        names.iter().find_map(|name| Some((*name, self.get(name)?)))
    }

    /// A directory that the XDG rules name; a relative one counts as unset, as those rules say.
    pub(super) fn xdg(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from).filter(|path| path.is_absolute())
    }

    /// A directory that systemd hands over; of several the first.
    pub(super) fn systemd_directory(&self, name: &str) -> Option<PathBuf> {
        let first = self.get(name)?.split(':').next()?;
        Some(PathBuf::from(first)).filter(|path| path.is_absolute())
    }

    /// A path as given on the command line or in a variable.
    pub(super) fn absolute(&self, path: &Path) -> PathBuf {
        self.directory.join(path)
    }

    /// Whether this is a service of the machine: root, or started by the system's service manager.
    ///
    /// `INVOCATION_ID` alone does not tell: terminals of a desktop session and children of other services inherit
    /// it. `MANAGERPID` is set below a user's own service manager, and `SYSTEMD_EXEC_PID` names the process that was
    /// really started as the service.
    pub fn is_service(&self) -> bool {
        if self.uid == 0 {
            return true;
        }
        let started_by_systemd = [
            "STATE_DIRECTORY",
            "RUNTIME_DIRECTORY",
            "CONFIGURATION_DIRECTORY",
            "CREDENTIALS_DIRECTORY",
            "INVOCATION_ID",
        ]
        .iter()
        .any(|name| self.get(name).is_some());
        let is_main_process =
            self.get("SYSTEMD_EXEC_PID").is_none_or(|pid| pid.trim().parse::<u32>().is_ok_and(|pid| pid == self.pid));
        started_by_systemd && is_main_process && self.get("MANAGERPID").is_none()
    }
}

impl std::fmt::Debug for Environment {
    /// Names only: values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment").field("vars", &self.vars.keys()).field("uid", &self.uid).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An ordinary user with a home and nothing else, plus `vars`.
    pub(in crate::config) fn user(vars: &[(&str, &str)]) -> Environment {
        let mut environment =
            Environment { uid: 1000, pid: 4242, directory: "/some/where".into(), ..Environment::default() };
        environment.vars.insert("HOME".into(), "/home/ada".into());
        environment.vars.extend(vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        environment
    }

    #[test]
    fn a_service_is_root_or_started_by_the_system_manager() {
        assert!(Environment { uid: 0, ..user(&[]) }.is_service());
        assert!(user(&[("INVOCATION_ID", "1f")]).is_service());
        assert!(user(&[("INVOCATION_ID", "1f"), ("SYSTEMD_EXEC_PID", "4242")]).is_service());
        assert!(user(&[("STATE_DIRECTORY", "/var/lib/tracespool")]).is_service());
        assert!(!user(&[]).is_service());
        assert!(!user(&[("INVOCATION_ID", "")]).is_service());
        // A shell in a desktop terminal, a unit of the user's own manager, a child of another service.
        assert!(!user(&[("INVOCATION_ID", "1f"), ("MANAGERPID", "900")]).is_service());
        assert!(!user(&[("INVOCATION_ID", "1f"), ("SYSTEMD_EXEC_PID", "77")]).is_service());
    }

    #[test]
    fn printing_it_shows_no_values() {
        let printed = format!("{:?}", user(&[("MLFLOW_TRACKING_TOKEN", "s3cret")]));
        assert!(printed.contains("MLFLOW_TRACKING_TOKEN") && !printed.contains("s3cret"));
    }
}

//! Where things are when nobody says otherwise: one column for services, one for ordinary users.

use std::path::{Path, PathBuf};

use super::Environment;

/// Name of the program's own directories.
const NAME: &str = "tracespool";
/// Name of the configuration file.
const FILE: &str = "tracespool.toml";
/// Name of the spool socket.
pub(super) const SPOOL_SOCKET: &str = "spool.sock";
/// Name of the admin socket.
pub(super) const ADMIN_SOCKET: &str = "admin.sock";
/// Where a service's sockets are, unless systemd says otherwise.
const SERVICE_RUNTIME: &str = "/run/tracespool";
/// Name of the drop directory inside the state directory.
pub(super) const DROP_DIRECTORY: &str = "drop";
/// A service's drop directory.
const SERVICE_DROP: &str = "/var/spool/tracespool";
/// Longest path that a Unix socket address can hold, without the zero byte at its end.
pub(super) const LONGEST_SOCKET_PATH: usize = 107;

/// The default places of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Places {
    /// The configuration file, which need not exist.
    pub file: Option<PathBuf>,
    /// The state directory. Absent for a user without a home.
    pub state_dir: Option<PathBuf>,
    /// The sockets' places; absent where they lie in the state directory.
    pub sockets: Option<(PathBuf, PathBuf)>,
    /// The drop directory; absent where it lies in the state directory.
    pub drop: Option<PathBuf>,
    /// systemd named the place of the sockets, so that nothing but the file moves them.
    pub sockets_are_given: bool,
}

impl Places {
    /// The places for whoever runs this.
    pub(super) fn of(environment: &Environment) -> Self {
        let given = environment.systemd_directory("RUNTIME_DIRECTORY");
        let mut places = if environment.is_service() {
            Self {
                file: Some(Path::new("/etc").join(NAME).join(FILE)),
                state_dir: Some(Path::new("/var/lib").join(NAME)),
                sockets: Some(service_sockets(Path::new(SERVICE_RUNTIME))),
                drop: Some(SERVICE_DROP.into()),
                sockets_are_given: false,
            }
        } else {
            let below_home = |variable: &str, usual: &str| {
                let base = environment.xdg(variable).or_else(|| Some(environment.xdg("HOME")?.join(usual)));
                base.map(|base| base.join(NAME))
            };
            Self {
                file: below_home("XDG_CONFIG_HOME", ".config").map(|directory| directory.join(FILE)),
                state_dir: below_home("XDG_STATE_HOME", ".local/state"),
                sockets: environment.xdg("XDG_RUNTIME_DIR").map(|directory| together(&directory.join(NAME))),
                drop: None,
                sockets_are_given: false,
            }
        };
        if let Some(directory) = environment.systemd_directory("CONFIGURATION_DIRECTORY") {
            places.file = Some(directory.join(FILE));
        }
        if let Some(directory) = environment.systemd_directory("STATE_DIRECTORY") {
            places.state_dir = Some(directory);
        }
        if let Some(directory) = given {
            places.sockets = Some(service_sockets(&directory));
            places.sockets_are_given = true;
        }
        places
    }
}

/// Where a service's sockets are on this machine.
pub fn machine_sockets() -> (PathBuf, PathBuf) {
    service_sockets(Path::new(SERVICE_RUNTIME))
}

/// Spool and admin socket of a service: the second in a directory of its own, which others may not enter.
fn service_sockets(directory: &Path) -> (PathBuf, PathBuf) {
    (directory.join(SPOOL_SOCKET), directory.join("admin").join(ADMIN_SOCKET))
}

/// Spool and admin socket side by side.
pub(super) fn together(directory: &Path) -> (PathBuf, PathBuf) {
    (directory.join(SPOOL_SOCKET), directory.join(ADMIN_SOCKET))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::environment::tests::user;

    fn sockets(spool: &str, admin: &str) -> Option<(PathBuf, PathBuf)> {
        Some((spool.into(), admin.into()))
    }

    #[test]
    fn a_user_has_places_below_home() {
        let places = Places::of(&user(&[]));
        assert_eq!(places.file, Some("/home/ada/.config/tracespool/tracespool.toml".into()));
        assert_eq!(places.state_dir, Some("/home/ada/.local/state/tracespool".into()));
        assert_eq!(places.sockets, None);
    }

    #[test]
    fn the_xdg_variables_move_them_when_absolute() {
        let places = Places::of(&user(&[
            ("XDG_CONFIG_HOME", "/c"),
            ("XDG_STATE_HOME", "relative"),
            ("XDG_RUNTIME_DIR", "/run/user/1000"),
        ]));
        assert_eq!(places.file, Some("/c/tracespool/tracespool.toml".into()));
        assert_eq!(places.state_dir, Some("/home/ada/.local/state/tracespool".into()));
        let expected = sockets("/run/user/1000/tracespool/spool.sock", "/run/user/1000/tracespool/admin.sock");
        assert_eq!(places.sockets, expected);
    }

    #[test]
    fn a_service_has_the_places_of_the_machine_or_those_of_systemd() {
        let root = Places::of(&Environment { uid: 0, ..user(&[("XDG_CONFIG_HOME", "/c")]) });
        assert_eq!(root.file, Some("/etc/tracespool/tracespool.toml".into()));
        assert_eq!(root.state_dir, Some("/var/lib/tracespool".into()));
        assert_eq!(root.sockets, sockets("/run/tracespool/spool.sock", "/run/tracespool/admin/admin.sock"));
        let unit = Places::of(&user(&[
            ("CONFIGURATION_DIRECTORY", "/etc/ts2"),
            ("STATE_DIRECTORY", "/var/lib/ts2:/var/lib/other"),
            ("RUNTIME_DIRECTORY", "/run/ts2"),
        ]));
        assert_eq!(unit.file, Some("/etc/ts2/tracespool.toml".into()));
        assert_eq!(unit.state_dir, Some("/var/lib/ts2".into()));
        assert_eq!(unit.sockets, sockets("/run/ts2/spool.sock", "/run/ts2/admin/admin.sock"));
    }

    #[test]
    fn a_user_without_a_home_has_none() {
        let mut environment = user(&[]);
        environment.vars.clear();
        assert_eq!(Places::of(&environment).state_dir, None);
    }
}

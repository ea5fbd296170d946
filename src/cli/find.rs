//! Finds the daemon: the one that was named, else the user's own, else the machine's.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::client::connect_blocking;
use crate::config::{self, Doors, Environment, Overrides};
use crate::exit::{Exit, Failure};

/// Which of a daemon's sockets is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Socket {
    /// Takes traces.
    Spool,
    /// Answers the operator.
    Admin,
}

/// A socket that was connected to once.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// The socket.
    pub path: PathBuf,
    /// The daemon's sockets and state.
    pub doors: Doors,
}

/// Connects to each place where a daemon may be; the first that answers is it.
pub(super) fn find(socket: Socket, overrides: &Overrides, environment: &Environment) -> Result<Found, NotFound> {
    let candidates = candidates(overrides, environment).map_err(NotFound::Failure)?;
    let mut refused = None;
    for doors in &candidates {
        let path = match socket {
            Socket::Spool => &doors.spool,
            Socket::Admin => &doors.admin,
        };
        match connect_blocking(path) {
            Ok(_) => return Ok(Found { path: path.clone(), doors: doors.clone() }),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                refused.get_or_insert_with(|| not_permitted(path));
            }
            Err(_) => {}
        }
    }
    match refused {
        Some(failure) => Err(NotFound::Failure(failure)),
        None => Err(NotFound::NoDaemon { candidates, socket }),
    }
}

/// Why there is nobody to talk to.
#[derive(Debug)]
pub(super) enum NotFound {
    /// Nobody listens at any of these.
    NoDaemon {
        /// The places that were tried.
        candidates: Vec<Doors>,
        /// What was looked for there.
        socket: Socket,
    },
    /// Something else is wrong.
    Failure(Failure),
}

impl From<NotFound> for Failure {
    fn from(error: NotFound) -> Self {
        match error {
            NotFound::Failure(failure) => failure,
            NotFound::NoDaemon { candidates, socket } => {
                let path = |doors: &Doors| match socket {
                    Socket::Spool => doors.spool.display().to_string(),
                    Socket::Admin => doors.admin.display().to_string(),
                };
                let places: Vec<_> = candidates.iter().map(path).collect();
                Failure::new(
                    Exit::Unavailable,
                    format!(
                        "no daemon is running (nobody listens on {}); start one with: tracespool run",
                        places.join(" or ")
                    ),
                )
            }
        }
    }
}

/// A daemon that was named by file or directory is the only one; otherwise there are two places.
fn candidates(overrides: &Overrides, environment: &Environment) -> Result<Vec<Doors>, Failure> {
    let is_named = overrides.config.is_some()
        || overrides.state_dir.is_some()
        || environment.get("TRACESPOOL_CONFIG").is_some()
        || environment.get("TRACESPOOL_STATE_DIR").is_some();
    let own = config::doors(overrides, environment);
    if is_named {
        return Ok(vec![own?]);
    }
    let (spool, admin) = config::machine_sockets();
    let machine = Doors { state_dir: "/var/lib/tracespool".into(), spool, admin };
    match own {
        Ok(own) if own.spool == machine.spool && own.admin == machine.admin => Ok(vec![own]),
        Ok(own) => Ok(vec![own, machine]),
        // A user without a home has no daemon of their own, and may still ask the machine's.
        Err(mistakes) if mistakes.0.iter().all(|finding| finding.origin == config::Origin::Default) => {
            Ok(vec![machine])
        }
        Err(mistakes) => Err(mistakes.into()),
    }
}

/// Says who may open a socket that we may not. A directory above it may be what is closed.
pub(super) fn not_permitted(path: &Path) -> Failure {
    let closed = path.ancestors().find_map(|at| Some((at, at.metadata().ok()?)));
    let Some((at, metadata)) = closed else {
        return Failure::new(Exit::NotPermitted, format!("this user may not open {}", path.display()));
    };
    let owner = name_of("/etc/passwd", metadata.uid());
    let group = name_of("/etc/group", metadata.gid());
    // A socket is opened by writing, a directory is passed by searching.
    let needed = if at == path { 0o020 } else { 0o010 };
    let who = if metadata.mode() & needed != 0 {
        format!("user {owner} and members of group {group} may; join the group, or ask as root")
    } else {
        format!("only user {owner} may; ask as root, or set mode = \"0660\" and a group for it in the configuration")
    };
    Failure::new(Exit::NotPermitted, format!("this user may not open {}: {who}", path.display()))
}

/// The name that belongs to a number, where the local files know it.
pub(super) fn name_of(file: &str, id: u32) -> String {
    let names = std::fs::read_to_string(file).unwrap_or_default();
    let id = id.to_string();
    names
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)? == id).then(|| name.to_owned())
        })
        .unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_names_where_they_are_known() {
        assert_eq!(name_of("/etc/passwd", 0), "root");
        assert_eq!(name_of("/etc/group", 4_000_000_000), "4000000000");
    }

    #[test]
    fn a_named_daemon_is_the_only_candidate() {
        let environment = Environment { uid: 1000, directory: "/".into(), ..Environment::default() };
        let overrides = Overrides { state_dir: Some("/tmp/other".into()), ..Overrides::default() };
        let named = candidates(&overrides, &environment).expect("candidates");
        assert_eq!(named.len(), 1);
        assert_eq!(named[0].admin, Path::new("/tmp/other/admin.sock"));
        // Nobody's home: only the machine's daemon is left.
        let machine = candidates(&Overrides::default(), &environment).expect("candidates");
        assert_eq!(machine.len(), 1);
        assert_eq!(machine[0].spool, Path::new("/run/tracespool/spool.sock"));
    }
}

//! Binding the doors, and accepting what knocks.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

pub use super::owner::Owner;
use super::service::Peer;
use super::{Inherited, Reception, connection, owner, tls};
use crate::config;

/// Connections that the kernel completes before they are accepted.
const BACKLOG: i32 = 1024;

/// Connections at once over all doors; fewer where the limit on descriptors is lower.
const MOST_CONNECTIONS: u64 = 4096;

/// Descriptors for the journal, the ledger and the backends, which connections never take.
const OTHER_DESCRIPTORS: u64 = 256;

/// A TLS handshake that takes longer will not come to an end.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// How long to wait when descriptors or memory have run out.
const PAUSE: Duration = Duration::from_millis(100);

/// How often the same trouble in accepting is logged.
const SAY_AGAIN: Duration = Duration::from_secs(30);

/// Why a door cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Something else listens there.
    #[error("{address} is in use{}", by(.owner.as_ref()))]
    InUse {
        /// A TCP address, or the path of a socket.
        address: String,
        /// Who it is, where that can be read.
        owner: Option<Owner>,
    },
    /// The path of the socket belongs to something else.
    #[error("{} exists and is not a socket; it is left alone", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The kernel keeps socket paths in 108 bytes.
    #[error("{} is too long for a socket: {length} bytes, and at most 107 are possible", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// The group of the socket is unknown.
    #[error("there is no group {group:?} in /etc/group, which the configuration names for a socket")]
    NoGroup {
        /// The group.
        group: String,
    },
    /// A listener that systemd opened, and that the configuration would not allow.
    #[error(
        "the socket {address}, which the service manager opened, can be reached from other machines, and everybody \
         there could write; set tls or token_file in [receive], or say insecure = true there"
    )]
    Unguarded {
        /// Its address.
        address: SocketAddr,
    },
    /// A descriptor that systemd passed on, and that is no listener.
    #[error("the service manager passed a descriptor that is neither a TCP nor a Unix stream socket: {source}")]
    Inherited {
        /// What is wrong with it.
        source: io::Error,
    },
    /// A file of `receive.tls`.
    #[error("receive.tls: {}: {problem}", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The file of `receive.token_file`.
    #[error("receive.token_file: {}: {source}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// Anything else; `source` says what.
    #[error("cannot {operation} {address}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which address or path.
        address: String,
        /// What the kernel said.
        source: io::Error,
    },
}

fn by(owner: Option<&Owner>) -> String {
    owner.map(|owner| format!(" by {owner}")).unwrap_or_default()
}

/// All doors, bound and not yet open: connections queue up in the kernel until [`Doors::serve`].
#[derive(Debug)]
pub struct Doors {
    tcp: Vec<(std::net::TcpListener, SocketAddr)>,
    tls: Option<Arc<rustls::ServerConfig>>,
    unix: Vec<UnixDoor>,
}

impl Doors {
    /// Binds every door of the configuration, or none. Of each of the two families, sockets that were inherited stand in
    /// for those of the configuration.
    ///
    /// # Errors
    /// The first door that cannot be bound, or may not be open.
    pub fn bind(config: &config::Receive, inherited: Inherited) -> Result<Self, BindError> {
        let tls = config.tls.as_ref().map(tls::config).transpose()?;
        let tcp = if inherited.tcp.is_empty() {
            config.listen.iter().map(|&address| bind_tcp(address, &config.listen)).collect::<Result<_, _>>()?
        } else {
            let check = |listener| check_inherited(listener, config.is_guarded());
            inherited.tcp.into_iter().map(check).collect::<Result<_, _>>()?
        };
        let unix = if inherited.unix.is_empty() {
            vec![UnixDoor::bind(&config.socket)?]
        } else {
            inherited.unix.into_iter().map(UnixDoor::inherited).collect()
        };
        Ok(Self { tcp, tls, unix })
    }

    /// The TCP addresses in the order of the configuration, with the port that was taken where it says 0.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.tcp.iter().map(|(_, address)| *address).collect()
    }

    /// The path of the spool socket, or `@` and its name.
    pub fn socket(&self) -> &Path {
        self.unix.first().map_or(Path::new(""), |door| &door.path)
    }

    /// Opens the doors until `stop` becomes true: then they close, requests in hand are answered, and the task that is
    /// returned ends with the last connection. How long to wait for it is the caller's decision; aborting it cuts off
    /// whoever is still there.
    ///
    /// # Errors
    /// A listener that the runtime does not take.
    pub fn serve(self, reception: Arc<Reception>, stop: watch::Receiver<bool>) -> io::Result<JoinHandle<()>> {
        let (over_tcp, over_unix) = shares(most_connections());
        let (over_tcp, over_unix) = (Arc::new(Semaphore::new(over_tcp)), Arc::new(Semaphore::new(over_unix)));
        let mut loops = JoinSet::new();
        let tls = self.tls.map(TlsAcceptor::from);
        for (listener, address) in self.tcp {
            listener.set_nonblocking(true)?;
            let listener = Listener::Tcp(TcpListener::from_std(listener)?, address, tls.clone());
            loops.spawn(accept(listener, Arc::clone(&over_tcp), Arc::clone(&reception), stop.clone()));
        }
        for door in self.unix {
            let listener = Listener::Unix(door.listener()?, door);
            loops.spawn(accept(listener, Arc::clone(&over_unix), Arc::clone(&reception), stop.clone()));
        }
        Ok(tokio::spawn(async move {
            while let Some(ended) = loops.join_next().await {
                if let Err(error) = ended
                    && let Ok(panic) = error.try_into_panic()
                {
                    std::panic::resume_unwind(panic);
                }
            }
        }))
    }
}

/// Connections need descriptors, and so does the journal, which must never go without.
fn most_connections() -> usize {
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let left = descriptors.map_or(MOST_CONNECTIONS, |limit| limit.saturating_sub(OTHER_DESCRIPTORS).max(limit / 2));
    usize::try_from(left.clamp(1, MOST_CONNECTIONS)).unwrap_or(1)
}

/// How many of them may come over TCP, and how many over Unix sockets. Who they are shows only once they are there, so
/// strangers who say nothing may shut out the listeners, but never those who may open the spool socket.
fn shares(most: usize) -> (usize, usize) {
    let over_unix = (most / 4).max(1);
    ((most - over_unix).max(1), over_unix)
}

fn bind_tcp(address: SocketAddr, all: &[SocketAddr]) -> Result<(std::net::TcpListener, SocketAddr), BindError> {
    let failed = |operation| move |source| BindError::Io { operation, address: address.to_string(), source };
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).map_err(failed("open a socket for"))?;
    // After a restart, connections of the daemon before may still be in TIME_WAIT.
    socket.set_reuse_address(true).map_err(failed("prepare"))?;
    // [::] takes 0.0.0.0 with it, unless that is a listener of its own.
    let also_v4 = |other: &SocketAddr| other.is_ipv4() && other.port() == address.port();
    if address.is_ipv6() && address.port() != 0 && all.iter().any(also_v4) {
        socket.set_only_v6(true).map_err(failed("prepare"))?;
    }
    socket.bind(&SockAddr::from(address)).and_then(|()| socket.listen(BACKLOG)).map_err(|source| {
        if source.kind() == io::ErrorKind::AddrInUse {
            BindError::InUse { address: address.to_string(), owner: owner::of_tcp(address) }
        } else {
            failed("listen on")(source)
        }
    })?;
    let listener = std::net::TcpListener::from(socket);
    let address = listener.local_addr().map_err(failed("read the address of"))?;
    Ok((listener, address))
}

/// The rule for addresses of the configuration holds for inherited ones too.
fn check_inherited(
    listener: std::net::TcpListener,
    guarded: bool,
) -> Result<(std::net::TcpListener, SocketAddr), BindError> {
    let failed =
        |source| BindError::Io { operation: "read the address of", address: "an inherited socket".into(), source };
    let address = listener.local_addr().map_err(failed)?;
    if !address.ip().to_canonical().is_loopback() && !guarded {
        return Err(BindError::Unguarded { address });
    }
    Ok((listener, address))
}

/// The spool socket; its file goes when it is dropped, if it is still ours.
#[derive(Debug)]
pub struct UnixDoor {
    listener: std::os::unix::net::UnixListener,
    path: PathBuf,
    /// Device and inode of the file that is ours to remove.
    identity: Option<(u64, u64)>,
}

impl UnixDoor {
    /// Binds the socket of `config`. A stale one is replaced; connections queue up until it is accepted from.
    ///
    /// # Errors
    /// Why it cannot be bound.
    pub fn bind(config: &config::Socket) -> Result<Self, BindError> {
        let path = config.path.as_path();
        if let Some(name) = config::Socket::abstract_name(path) {
            return Self::bind_abstract(path, name);
        }
        let failed = |operation| move |source| BindError::Io { operation, address: path.display().to_string(), source };
        let length = path.as_os_str().len();
        if length > 107 {
            return Err(BindError::PathTooLong { path: path.to_owned(), length });
        }
        let group = config.group.as_deref().map(group_id).transpose()?;
        make_parent(path).map_err(failed("make the directory of"))?;
        remove_stale(path)?;

        let socket = bind_private(path)?;
        let metadata = fs::symlink_metadata(path).map_err(failed("look at"))?;
        let door = Self {
            listener: std::os::unix::net::UnixListener::from(std::os::fd::OwnedFd::from(socket)),
            path: path.to_owned(),
            identity: Some((metadata.dev(), metadata.ino())),
        };
        if let Some(group) = group {
            std::os::unix::fs::chown(path, None, Some(group)).map_err(failed("set the group of"))?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(config.mode)).map_err(failed("set the mode of"))?;
        rustix::net::listen(&door.listener, BACKLOG).map_err(|error| failed("listen on")(error.into()))?;
        Ok(door)
    }

    /// A name that is gone with the socket: nothing is stale, and nothing is removed.
    fn bind_abstract(path: &Path, name: &[u8]) -> Result<Self, BindError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { address: path.display().to_string(), owner: None },
            _ => BindError::Io { operation: "bind", address: path.display().to_string(), source },
        };
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name).map_err(failed)?;
        let listener = std::os::unix::net::UnixListener::bind_addr(&address).map_err(failed)?;
        rustix::net::listen(&listener, BACKLOG).map_err(|error| failed(error.into()))?;
        Ok(Self { listener, path: path.to_owned(), identity: None })
    }

    /// A socket that somebody else made and keeps.
    fn inherited(listener: std::os::unix::net::UnixListener) -> Self {
        let address = listener.local_addr().ok();
        let path = address.as_ref().and_then(|address| {
            let name = || Some(format!("@{}", String::from_utf8_lossy(address.as_abstract_name()?)).into());
            address.as_pathname().map(Path::to_owned).or_else(name)
        });
        Self { listener, path: path.unwrap_or_default(), identity: None }
    }

    /// What connections are accepted from. The file goes with the door, so whoever accepts keeps both.
    ///
    /// # Errors
    /// When the runtime does not take it.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.set_nonblocking(true)?;
        UnixListener::from_std(self.listener.try_clone()?)
    }
}

/// Binds a socket that only its owner may open; it does not listen yet.
fn bind_private(path: &Path) -> Result<Socket, BindError> {
    let failed = |operation| move |source| BindError::Io { operation, address: path.display().to_string(), source };
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed("open a socket for"))?;
    // The file gets the mode that the socket has, so at no moment it is open to more than its owner.
    rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(0o600))
        .map_err(|error| failed("prepare")(error.into()))?;
    let address = SockAddr::unix(path).map_err(failed("name"))?;
    socket.bind(&address).map_err(|source| {
        if source.kind() == io::ErrorKind::AddrInUse {
            BindError::InUse { address: path.display().to_string(), owner: None }
        } else {
            failed("bind")(source)
        }
    })?;
    Ok(socket)
}

impl Drop for UnixDoor {
    fn drop(&mut self) {
        let Some(identity) = self.identity else { return };
        let is_ours =
            fs::symlink_metadata(&self.path).is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == identity);
        if is_ours {
            // A socket that stays behind is found stale at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes the directory that holds the socket, but not the one above: that is the runtime or state directory, and where
/// even that is missing the path is more likely wrong than new. Who may connect is decided by the socket's own mode.
fn make_parent(path: &Path) -> io::Result<()> {
    let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else { return Ok(()) };
    match fs::DirBuilder::new().mode(0o755).create(parent) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // Whatever the process's mask is: the group of a socket must get through to it.
        Ok(()) => fs::set_permissions(parent, fs::Permissions::from_mode(0o755)),
        Err(error) => Err(error),
    }
}

/// Removes the socket of a daemon that is no more: one at which nobody answers.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let failed = |operation| move |source| BindError::Io { operation, address: path.display().to_string(), source };
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(failed("look at"))?,
    };
    if !metadata.file_type().is_socket() {
        return Err(BindError::NotASocket { path: path.to_owned() });
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("remove the stale socket"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(failed("connect to")(error)),
        answered => {
            let owner = answered
                .ok()
                .and_then(|stream| rustix::net::sockopt::socket_peercred(&stream).ok())
                .and_then(|peer| u32::try_from(peer.pid.as_raw_nonzero().get()).ok())
                .map(Owner::of);
            Err(BindError::InUse { address: path.display().to_string(), owner })
        }
    }
}

/// A group by name, or by number.
fn group_id(group: &str) -> Result<u32, BindError> {
    let no_group = || BindError::NoGroup { group: group.to_owned() };
    if let Ok(id) = group.parse() {
        return Ok(id);
    }
    let table = fs::read_to_string("/etc/group").map_err(|_| no_group())?;
    find_group(&table, group).ok_or_else(no_group)
}

/// group(5): name, password, number, members.
fn find_group(table: &str, group: &str) -> Option<u32> {
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == group).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// What connections are accepted from.
enum Listener {
    Tcp(TcpListener, SocketAddr, Option<TlsAcceptor>),
    /// With the file, which goes when the door closes.
    Unix(UnixListener, UnixDoor),
}

impl Listener {
    async fn accept(&self) -> io::Result<(Accepted, Peer)> {
        match self {
            Self::Tcp(listener, address, tls) => {
                let (stream, _) = listener.accept().await?;
                // Answers are small, and a peer with delayed acknowledgements would wait 40 ms for each. It fails only
                // when the client is gone already, which reading will find out.
                let _ = stream.set_nodelay(true);
                let local = stream.local_addr().unwrap_or(*address);
                let accepted = match tls {
                    None => Accepted::Plain(Box::new(stream)),
                    Some(tls) => Accepted::Tls(stream, tls.clone()),
                };
                Ok((accepted, Peer::Tcp { local }))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let uid = stream.peer_cred().ok().map(|peer| peer.uid());
                Ok((Accepted::Plain(Box::new(stream)), Peer::Unix { uid }))
            }
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Tcp(_, address, _) => address.to_string(),
            Self::Unix(_, door) => door.path.display().to_string(),
        }
    }
}

/// A connection as it comes.
enum Accepted {
    Plain(Box<dyn Stream>),
    /// It begins with a handshake.
    Tls(TcpStream, TlsAcceptor),
}

impl Accepted {
    /// What is to be spoken to; nothing after a handshake that failed.
    async fn open(self, peer: Peer, stop: &mut watch::Receiver<bool>) -> Option<Box<dyn Stream>> {
        let (stream, tls) = match self {
            Self::Plain(stream) => return Some(stream),
            Self::Tls(stream, tls) => (stream, tls),
        };
        let failure = tokio::select! {
            () = connection::stopped(stop) => return None,
            greeted = tokio::time::timeout(HANDSHAKE_TIME, tls.accept(stream)) => match greeted {
                Ok(Ok(stream)) => return Some(Box::new(stream)),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "it took too long".to_owned(),
            },
        };
        tracing::debug!(?peer, "a TLS handshake failed: {failure}");
        None
    }
}

/// A connection of either family.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Accepts until the stop, then waits for the connections it accepted.
async fn accept(
    listener: Listener,
    permits: Arc<Semaphore>,
    reception: Arc<Reception>,
    mut stop: watch::Receiver<bool>,
) {
    let protocol = Arc::new(connection::protocol());
    let mut connections = JoinSet::new();
    let mut trouble = Trouble::default();
    loop {
        // Whoever cannot be served yet waits in the kernel, where waiting costs nothing.
        let next = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            (permit, listener.accept().await)
        };
        tokio::select! {
            () = connection::stopped(&mut stop) => break,
            Some(ended) = connections.join_next(), if !connections.is_empty() => note(ended),
            (permit, accepted) = next => match accepted {
                Ok((stream, peer)) => {
                    let (protocol, reception, stop) = (Arc::clone(&protocol), Arc::clone(&reception), stop.clone());
                    connections.spawn(async move {
                        let mut stop = stop;
                        if let Some(stream) = stream.open(peer, &mut stop).await {
                            connection::serve(&protocol, stream, peer, reception, stop).await;
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    drop(permit);
                    if is_the_peers(&error) {
                        continue;
                    }
                    if trouble.is_worth_saying(Instant::now()) {
                        tracing::error!("cannot accept connections on {}: {error}", listener.name());
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            },
        }
    }
    // Closes the door, and removes the file of a Unix socket.
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        note(ended);
    }
}

/// A panic in a connection is a bug: it goes on, and in a release build never got here.
fn note(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}

/// True for what went wrong with one connection and not with accepting (accept(2), "Error handling").
fn is_the_peers(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::CONNABORTED | Errno::CONNRESET | Errno::PROTO | Errno::INTR | Errno::PERM)
    )
}

/// Keeps the log readable while the same trouble lasts.
#[derive(Debug, Default)]
struct Trouble {
    said: Option<Instant>,
}

impl Trouble {
    fn is_worth_saying(&mut self, now: Instant) -> bool {
        let worth = self.said.is_none_or(|said| now.duration_since(said) >= SAY_AGAIN);
        if worth {
            self.said = Some(now);
        }
        worth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(path: &Path) -> config::Socket {
        config::Socket { path: path.to_owned(), mode: 0o660, group: None }
    }

    fn receive(directory: &Path, listen: &[&str]) -> config::Receive {
        config::Receive {
            listen: listen.iter().map(|address| address.parse().expect("an address")).collect(),
            max_request_bytes: 1 << 20,
            max_in_flight_bytes: 1 << 24,
            insecure: false,
            mlflow: config::MlflowCalls::default(),
            tls: None,
            token_file: None,
            keep_headers: Vec::new(),
            other_signals: config::OtherSignals::Accept,
            allow_uids: None,
            socket: socket(&directory.join("spool.sock")),
            directory: config::Directory::at(directory.join("drop")),
        }
    }

    #[test]
    fn port_0_becomes_the_port_taken() -> Result<(), Box<dyn std::error::Error>> {
        let directory = tempfile::tempdir()?;
        let doors = Doors::bind(&receive(directory.path(), &["127.0.0.1:0", "127.0.0.1:0"]), Inherited::default())?;
        let addresses = doors.addresses();
        assert!(addresses.iter().all(|address| address.port() != 0));
        assert_ne!(addresses[0], addresses[1]);
        Ok(())
    }

    #[test]
    fn an_address_in_use_is_named_with_its_owner() -> Result<(), Box<dyn std::error::Error>> {
        let directory = tempfile::tempdir()?;
        let other = std::net::TcpListener::bind("127.0.0.1:0")?;
        let address = other.local_addr()?.to_string();
        let error =
            Doors::bind(&receive(directory.path(), &[&address]), Inherited::default()).expect_err("it is in use");
        let BindError::InUse { address: named, owner } = &error else { panic!("{error}") };
        assert_eq!(*named, address);
        assert_eq!(owner.as_ref().map(|owner| owner.pid), Some(std::process::id()));
        assert!(error.to_string().starts_with(&format!("{address} is in use by ")), "{error}");
        Ok(())
    }

    #[test]
    fn the_socket_has_its_mode_and_goes_with_its_door() -> Result<(), Box<dyn std::error::Error>> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("made/spool.sock");
        let door = UnixDoor::bind(&socket(&path))?;
        let metadata = fs::symlink_metadata(&path)?;
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.mode() & 0o7777, 0o660);
        drop(door);
        assert!(!path.exists());
        Ok(())
    }

    #[test]
    fn a_socket_begins_private() -> Result<(), Box<dyn std::error::Error>> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("spool.sock");
        let _socket = bind_private(&path)?;
        assert_eq!(fs::symlink_metadata(&path)?.mode() & 0o7777, 0o600);
        Ok(())
    }

    #[test]
    fn a_stale_socket_is_replaced() -> Result<(), Box<dyn std::error::Error>> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("spool.sock");
        drop(std::os::unix::net::UnixListener::bind(&path)?);
        assert!(path.exists());
        let door = UnixDoor::bind(&socket(&path))?;
        std::os::unix::net::UnixStream::connect(&path)?;
        drop(door);
        Ok(())
    }

    #[test]
    fn a_socket_at_which_someone_answers_is_in_use() -> Result<(), Box<dyn std::error::Error>> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("spool.sock");
        let door = UnixDoor::bind(&socket(&path))?;
        let error = UnixDoor::bind(&socket(&path)).expect_err("it is in use");
        let BindError::InUse { owner, .. } = &error else { panic!("{error}") };
        assert_eq!(owner.as_ref().map(|owner| owner.pid), Some(std::process::id()));
        // The one that answers keeps its file.
        std::os::unix::net::UnixStream::connect(&path)?;
        drop(door);
        Ok(())
    }

    #[test]
    fn a_file_in_the_way_is_left_alone() -> Result<(), Box<dyn std::error::Error>> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("spool.sock");
        fs::write(&path, "precious")?;
        assert!(matches!(UnixDoor::bind(&socket(&path)), Err(BindError::NotASocket { .. })));
        assert_eq!(fs::read(&path)?, b"precious");
        Ok(())
    }

    #[test]
    fn a_socket_that_is_no_longer_ours_stays() -> Result<(), Box<dyn std::error::Error>> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("spool.sock");
        let door = UnixDoor::bind(&socket(&path))?;
        // Keeps the old inode, so that the new file cannot have its number.
        fs::rename(&path, directory.path().join("old.sock"))?;
        let other = std::os::unix::net::UnixListener::bind(&path)?;
        drop(door);
        assert!(path.exists());
        drop(other);
        Ok(())
    }

    #[test]
    fn a_path_that_is_too_long_is_named() {
        let path = Path::new("/tmp").join("x".repeat(120));
        let error = UnixDoor::bind(&socket(&path)).expect_err("it is too long");
        assert!(matches!(error, BindError::PathTooLong { length: 125, .. }), "{error}");
    }

    #[test]
    fn groups_are_found_by_name() {
        let table = "root:x:0:\nspoolers:x:104:alice,bob\nspool:x:105:\nbad:x:many:\n";
        assert_eq!(find_group(table, "spool"), Some(105));
        assert_eq!(find_group(table, "spoolers"), Some(104));
        assert_eq!(find_group(table, "bad"), None);
        assert_eq!(find_group(table, "alice"), None);
    }

    #[test]
    fn an_unknown_group_is_named() -> Result<(), Box<dyn std::error::Error>> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("spool.sock");
        let config = config::Socket { group: Some("no such group".into()), ..socket(&path) };
        assert!(matches!(UnixDoor::bind(&config), Err(BindError::NoGroup { .. })));
        assert!(!path.exists());
        Ok(())
    }

    #[test]
    fn each_family_has_connections_of_its_own() {
        assert_eq!(shares(4096), (3072, 1024));
        assert_eq!(shares(2), (1, 1));
        assert_eq!(shares(1), (1, 1));
    }

    #[test]
    fn errors_of_accepting_are_told_apart() {
        let error = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        for peers in [Errno::CONNABORTED, Errno::PROTO, Errno::INTR] {
            assert!(is_the_peers(&error(peers)), "{peers}");
        }
        for ours in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::BADF] {
            assert!(!is_the_peers(&error(ours)), "{ours}");
        }
    }

    #[test]
    fn lasting_trouble_is_said_once_in_a_while() {
        let mut trouble = Trouble::default();
        let start = Instant::now();
        assert!(trouble.is_worth_saying(start));
        assert!(!trouble.is_worth_saying(start + PAUSE));
        assert!(trouble.is_worth_saying(start + SAY_AGAIN));
    }
}

//! Sockets that systemd opened before this process began (sd_listen_fds(3)).

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use listenfd::ListenFd;

/// The sockets that came with the process. They win over those of the configuration, and are never unlinked: whoever
/// made them keeps them for the next start.
#[derive(Debug, Default)]
pub struct Inherited {
    pub(super) tcp: Vec<TcpListener>,
    pub(super) unix: Vec<UnixListener>,
}

impl Inherited {
    /// Takes what `LISTEN_FDS` counts, if `LISTEN_PID` is this process: a child of a service inherits the variables too.
    /// To be called once, before other descriptors are opened.
    ///
    /// # Errors
    /// A descriptor that is no TCP or Unix stream socket.
    pub fn of_process(listen_pid: Option<&str>, pid: u32) -> io::Result<Self> {
        let mut inherited = Self::default();
        if listen_pid.and_then(|text| text.trim().parse::<u32>().ok()) != Some(pid) {
            return Ok(inherited);
        }
        let mut sockets = ListenFd::from_env();
        for index in 0..sockets.len() {
            // Of two kinds it is at most one.
            if let Ok(Some(listener)) = sockets.take_tcp_listener(index) {
                inherited.tcp.push(listener);
            } else {
                inherited.unix.extend(sockets.take_unix_listener(index)?);
            }
        }
        Ok(inherited)
    }

    /// Whether there were none.
    pub fn is_empty(&self) -> bool {
        self.tcp.is_empty() && self.unix.is_empty()
    }
}

//! Telling systemd: the datagram protocol of sd_notify(3), of which two messages are needed.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Where the service manager listens, if it does.
#[derive(Debug, Clone, Default)]
pub struct Notify {
    /// `NOTIFY_SOCKET`.
    pub socket: Option<String>,
    /// Half of `WATCHDOG_USEC`: how often the watchdog must hear of us.
    pub watchdog: Option<Duration>,
}

impl Notify {
    /// From the two variables, as systemd sets them.
    #[must_use]
    pub fn from(socket: Option<String>, watchdog_usec: Option<&str>) -> Self {
        let micros = watchdog_usec.and_then(|text| text.parse().ok()).filter(|micros| *micros > 0);
        Self { socket, watchdog: micros.map(|micros: u64| Duration::from_micros(micros) / 2) }
    }

    /// Sends one message; does nothing when nobody listens.
    ///
    /// # Errors
    /// When the socket is there and does not take it.
    pub fn send(&self, message: &str) -> io::Result<()> {
        let Some(path) = &self.socket else { return Ok(()) };
        let address = match path.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(path)?,
        };
        UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_arrives_and_without_a_listener_nothing_happens() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("bound");
        let notify = Notify::from(Some(path.display().to_string()), Some("2000000"));
        assert_eq!(notify.watchdog, Some(Duration::from_secs(1)));
        notify.send("READY=1").expect("sent");
        let mut buffer = [0; 32];
        let count = socket.recv(&mut buffer).expect("received");
        assert_eq!(&buffer[..count], b"READY=1");
        Notify::from(None, Some("x")).send("READY=1").expect("nobody to tell");
    }
}

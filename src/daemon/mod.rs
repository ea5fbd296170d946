//! The life of the daemon: build, which can fail; run; drain. The only place that knows everyone.

mod books;
pub mod notify;
pub mod offline;
pub mod state_dir;
mod store;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use spool::Writer;
use spool::disk::{Disk, OsDisk};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tracing::{info, warn};

use crate::accounts::Accounts;
use crate::admin::{self, Admin};
use crate::backend::{self, Backend, Relay};
use crate::clock::{Clock, wall_ns};
use crate::config::{Config, Loaded, Target};
use crate::deliver::{Lane, LaneParts};
use crate::intake::{Commands, Committer, CommitterParts, Intake, Limits};
use crate::ledger::{self, Follower, Ledger};
use crate::receive::directory::{self, DropDirectory, Figures};
use crate::receive::{self, Budget, Doors, Inherited, Received, Reception};
use crate::side::Side;
use notify::Notify;
use state_dir::{StateDir, StateDirError};
use store::{Dirs, Store};

/// Facts that may wait for the committer.
const COMMANDS: usize = 64;
/// Jobs that may wait for the committer; their bytes are bounded by the doors' budget.
const JOBS: usize = 4096;
/// How long clients are waited for after the doors closed. systemd gives the whole stop ten seconds.
const DOORS_GRACE: Duration = Duration::from_secs(5);
/// How long the drop directory is waited for before that: it may be on a file server that does not answer.
const DIRECTORY_GRACE: Duration = Duration::from_secs(1);
/// How often the ledger follows the books, at most.
const LEDGER_EVERY: Duration = Duration::from_millis(100);

/// Why the daemon did not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The state directory can't be used.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// An address can't be listened on.
    #[error(transparent)]
    Bind(#[from] receive::BindError),
    /// A backend can't be built from its configuration.
    #[error("backend {name}: {source}")]
    Backend {
        /// Its name.
        name: String,
        /// What is wrong.
        source: backend::BuildError,
    },
    /// Journal or side journal failed.
    #[error(transparent)]
    Storage(#[from] spool::Error),
    /// The operating system did not give what every program needs.
    #[error("cannot {operation}: {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// What it said.
        source: std::io::Error,
    },
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// Why it did not start, or had to end.
pub fn run(loaded: &Loaded, inherited: Inherited, notify: &Notify) -> Result<(), Fatal> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| Fatal::System { operation: "start the runtime", source })?;
    // Traces hold prompts and answers: whatever a library creates below is for nobody else. Sockets set their own mode.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let built = Built::build(&loaded.config, inherited)?;
    let result = runtime.block_on(async {
        let mut running = built.start(loaded)?;
        tell(notify, "READY=1");
        running.wait(notify).await?;
        info!("stopping");
        tell(notify, "STOPPING=1");
        running.stop().await?;
        info!("stopped; everything that was acknowledged is kept");
        Ok(())
    });
    // Nothing is left that must end in order; a backend that hangs is not waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Everything opened and bound, nothing running.
#[derive(Debug)]
struct Built {
    doors: Doors,
    admin: Admin,
    store: Store,
    follower: Follower,
    backends: Vec<Arc<Backend>>,
    /// The first mlflow backend's name, and the way to its server for calls that are not spooled.
    relay: Option<(String, Relay)>,
    state_dir: StateDir,
}

impl Built {
    fn build(config: &Config, inherited: Inherited) -> Result<Self, Fatal> {
        let state_dir = StateDir::open(&config.state_dir)?;
        let doors = Doors::bind(&config.receive, inherited)?;
        let admin = Admin::bind(&config.admin)?;
        let backends = config.backends.iter().map(build_backend).collect::<Result<_, _>>()?;

        let relay = config.backends.iter().find_map(build_relay).transpose()?;

        let ledger = Ledger::open(&state_dir.ledger(), wall_ns());
        let dirs = Dirs { journal: state_dir.journal(), side: state_dir.side() };
        let disk: Arc<dyn Disk> = Arc::new(OsDisk);
        let store = Store::open(&disk, &dirs, &config.spool, &config.backends, &ledger)?;
        let ledger = ledger.of_spool(store.state.spool_id, wall_ns());
        if let Some((path, error)) = &ledger.set_aside {
            warn!(kept_in = %path.display(), error, "the ledger is of no use; it is built again from the journal");
        }
        let follower = Follower::new(ledger.ledger, state_dir.ledger());
        Ok(Self { doors, admin, store, follower, backends, relay, state_dir })
    }

    /// Sets everything running; must be called inside the runtime.
    fn start(self, loaded: &Loaded) -> Result<Running, Fatal> {
        let config = &loaded.config;
        let Self { doors, admin, store, follower, backends, relay, state_dir } = self;
        let Store { writer, journal, side, accounts, clock, .. } = store;
        let ledger_bytes = follower.bytes();
        let id: Arc<str> = state_dir.id().into();
        let (stop_doors, doors_stopped) = watch::channel(false);
        let (stop_lanes, lanes_stopped) = watch::channel(false);
        let (jobs, waiting) = mpsc::channel(JOBS);
        let (commands, asked) = mpsc::channel(COMMANDS);
        let commands = Commands::new(commands);
        let (durable, grown) = watch::channel(journal.next_record());

        let committer = start_committer(Committer::new(CommitterParts {
            writer,
            accounts: Arc::clone(&accounts),
            clock,
            limits: limits(config),
            other_bytes: reserved_bytes(&side, &ledger_bytes),
            disk: Arc::new(OsDisk),
            dir: state_dir.journal(),
            side: Arc::clone(&side),
            jobs: waiting,
            commands: asked,
            durable,
        }))?;

        let mut lanes = JoinSet::new();
        for (backend, settings) in backends.into_iter().zip(&config.backends) {
            let lane = Lane::new(LaneParts {
                name: settings.name.clone(),
                id: Arc::clone(&id),
                backend,
                delivery: settings.delivery.clone(),
                journal: journal.clone(),
                accounts: Arc::clone(&accounts),
                side: Arc::clone(&side),
                commands: commands.clone(),
                clock,
                durable: grown.clone(),
                stop: lanes_stopped.clone(),
            });
            lanes.spawn(lane.run());
        }

        let received = Arc::new(Received::default());
        let budget = Budget::new(config.receive.max_in_flight_bytes);
        let intake = Intake::new(jobs);
        let directory = Arc::new(Figures::new(config.receive.directory.path.display().to_string()));
        let drop_directory = DropDirectory::new(directory::Parts {
            config: config.receive.directory.clone(),
            max_request_bytes: config.receive.max_request_bytes,
            segment_bytes: config.spool.segment_bytes,
            intake: intake.side_entrance(),
            budget: budget.clone(),
            received: Arc::clone(&received),
            begun: accounts.look(|state| state.drop_files.clone()),
            figures: Arc::clone(&directory),
            stop: doors_stopped.clone(),
        });
        let reception = Reception::new(&config.receive, &id, intake, budget, Arc::clone(&received))?;
        let books = (Arc::clone(&accounts), commands);
        let reception = reception.with_mlflow(&config.receive, relay, books);
        let addresses = doors.addresses();
        let socket = doors.socket().display().to_string();
        let doors = doors
            .serve(Arc::new(reception), doors_stopped)
            .map_err(|source| Fatal::System { operation: "open the doors", source })?;
        let drop_directory = tokio::task::spawn_blocking(move || drop_directory.run());
        let follower =
            tokio::spawn(follow(follower, Arc::clone(&side), Arc::clone(&accounts), Arc::clone(&received), clock));
        let view = Arc::new(admin::View {
            kinds: kinds(config),
            max_bytes: config.spool.max_bytes,
            dead_letters_max_bytes: config.dead_letters.max_bytes,
            state_dir: config.state_dir.clone(),
            addresses,
            started_at: std::time::SystemTime::now(),
            stopping: false.into(),
            accounts: Arc::clone(&accounts),
            received: Arc::clone(&received),
            directory: Some(directory),
            journal,
            side: side.shared().clone(),
            other_bytes: other_bytes(&side, &ledger_bytes),
            disk: Arc::new(OsDisk),
        });
        let admin = admin
            .serve(Arc::clone(&view))
            .map_err(|source| Fatal::System { operation: "open the admin socket", source })?;
        greet(loaded, &view.addresses, &socket);
        Ok(Running {
            doors,
            drop_directory,
            admin,
            follower,
            committer,
            lanes,
            stop_doors,
            stop_lanes,
            view,
            side,
            accounts,
            received,
            clock,
            _state_dir: state_dir,
        })
    }
}

/// Everything that moves.
#[derive(Debug)]
struct Running {
    doors: JoinHandle<()>,
    /// Ends by itself when the doors close; not waited for longer than they are.
    drop_directory: JoinHandle<()>,
    admin: JoinHandle<()>,
    follower: JoinHandle<()>,
    /// Comes back with the writer when all doors have closed, or with why the journal failed.
    committer: oneshot::Receiver<Result<Writer, spool::Error>>,
    lanes: JoinSet<Result<(), spool::Error>>,
    stop_doors: watch::Sender<bool>,
    stop_lanes: watch::Sender<bool>,
    view: Arc<admin::View>,
    side: Arc<Side>,
    accounts: Arc<Accounts>,
    received: Arc<Received>,
    clock: Clock,
    _state_dir: StateDir,
}

impl Running {
    /// Until a signal says stop, or storage fails.
    async fn wait(&mut self, notify: &Notify) -> Result<(), Fatal> {
        let listen = |kind| signal(kind).map_err(|source| Fatal::System { operation: "listen for signals", source });
        let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
        // A terminal that closes. Under systemd the unit starts again, with the configuration as it is then.
        let mut hangup = listen(SignalKind::hangup())?;
        let every = notify.watchdog.unwrap_or(Duration::from_secs(3600));
        let mut watchdog = tokio::time::interval(every);
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                _ = hangup.recv() => return Ok(()),
                _ = watchdog.tick() => tell(notify, "WATCHDOG=1"),
                ended = &mut self.committer => return Err(why_ended(ended)),
                Some(Ok(Err(error))) = self.lanes.join_next() => return Err(error.into()),
            }
        }
    }

    /// In the order of the flow: the doors close and requests in hand are answered, the journal has everything, lanes
    /// stop, the last checkpoint is written. No step waits for a backend to get well.
    async fn stop(mut self) -> Result<(), Fatal> {
        self.view.stopping.store(true, Ordering::Relaxed);
        self.stop_doors.send_replace(true);
        // What it is in the middle of, the journal knows.
        let _ = tokio::time::timeout(DIRECTORY_GRACE, &mut self.drop_directory).await;
        if tokio::time::timeout(DOORS_GRACE, &mut self.doors).await.is_err() {
            warn!("clients are still connected; their connections are cut");
            self.doors.abort();
            // Its end lets go of the intake, and with that of the committer.
            let _ = (&mut self.doors).await;
        }
        let writer = (&mut self.committer).await.map_err(|_| spool::Error::Poisoned)??;
        self.stop_lanes.send_replace(true);
        while let Some(ended) = self.lanes.join_next().await {
            if let Ok(ended) = ended {
                ended?;
            }
        }
        self.follower.abort();
        // It may be in the middle of a save; the checkpoint below knows more than the ledger in any case.
        let _ = self.follower.await;
        self.received.enter(&self.accounts);
        let now = self.clock.now();
        for closed in [writer.close(now, &self.accounts.snapshot(now.clock_ms).0), self.side.close(now)] {
            match closed {
                // Nothing is lost: the next start recovers as after a kill.
                Err(error @ spool::Error::Full { .. }) => warn!(%error, "could not close the journal in order"),
                closed => closed?,
            }
        }
        self.admin.abort();
        Ok(())
    }
}

/// Runs the committer on a thread of its own.
fn start_committer(committer: Committer) -> Result<oneshot::Receiver<Result<Writer, spool::Error>>, Fatal> {
    let (ended, end) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new()
        .name("committer".to_owned())
        .spawn(move || {
            // Nobody waits any more when the daemon ends for another reason.
            let _ = ended.send(committer.run(&runtime));
        })
        .map_err(|source| Fatal::System { operation: "start the committer's thread", source })?;
    Ok(end)
}

fn why_ended(ended: Result<Result<Writer, spool::Error>, oneshot::error::RecvError>) -> Fatal {
    match ended {
        Ok(Err(error)) => error.into(),
        // It ends without an error only when all doors are gone, and they are not.
        Ok(Ok(_)) | Err(_) => spool::Error::Poisoned.into(),
    }
}

/// In small steps, what the side journal keeps back for a full disk.
async fn keep_back(side: &Arc<Side>) {
    if side.is_prepared() {
        return;
    }
    let side = Arc::clone(side);
    // A panic in there would be a bug of its own; there is nothing to be done here.
    let _ = tokio::task::spawn_blocking(move || side.prepare()).await;
}

/// Keeps the ledger close behind the books.
async fn follow(
    mut follower: Follower,
    side: Arc<Side>,
    accounts: Arc<Accounts>,
    received: Arc<Received>,
    clock: Clock,
) {
    let mut saved = accounts.version();
    loop {
        tokio::time::sleep(LEDGER_EVERY).await;
        received.enter(&accounts);
        keep_back(&side).await;
        if accounts.version() == saved && !follower.is_behind() {
            continue;
        }
        let (state, version) = accounts.snapshot(clock.now().clock_ms);
        saved = version;
        let done = tokio::task::spawn_blocking(move || {
            follower.follow(&state, Instant::now(), wall_ns());
            follower
        });
        match done.await {
            Ok(back) => follower = back,
            // The runtime is going down.
            Err(_) => return,
        }
    }
}

fn limits(config: &Config) -> Limits {
    let spool = &config.spool;
    Limits {
        max_bytes: spool.max_bytes,
        segment_bytes: spool.segment_bytes,
        min_free_disk: spool.min_free_disk,
        keep_delivered: spool.keep_delivered,
        keep_delivered_bytes: spool.keep_delivered_bytes,
        max_traces: spool.max_traces,
        when_full: spool.when_full,
        giving: config
            .backends
            .iter()
            .filter(|backend| backend.gives_way)
            .map(|backend| backend.name.clone())
            .collect(),
        max_backlog_bytes: config
            .backends
            .iter()
            .filter_map(|backend| Some((backend.name.clone(), backend.max_backlog_bytes?)))
            .collect(),
        dead_letters_max_bytes: config.dead_letters.max_bytes,
        dead_letters_max_age: config.dead_letters.max_age,
    }
}

/// What lies beside the journal, with what will: the cap holds also when the side journal has kept back what it is to,
/// and when the ledger was opened again.
fn reserved_bytes(side: &Arc<Side>, ledger: &Arc<AtomicU64>) -> Box<dyn Fn() -> u64 + Send + Sync> {
    let (side, ledger) = (Arc::clone(side), Arc::clone(ledger));
    Box::new(move || {
        side.file_bytes() + side.kept_back_missing() + ledger.load(Ordering::Relaxed).max(ledger::MIN_BYTES)
    })
}

fn other_bytes(side: &Arc<Side>, ledger: &Arc<AtomicU64>) -> Box<dyn Fn() -> u64 + Send + Sync> {
    let (side, ledger) = (Arc::clone(side), Arc::clone(ledger));
    Box::new(move || side.file_bytes() + ledger.load(Ordering::Relaxed))
}

/// The backends of the configuration, by name.
fn kinds(config: &Config) -> BTreeMap<String, &'static str> {
    config.backends.iter().map(|backend| (backend.name.clone(), backend.target.kind())).collect()
}

fn build_backend(config: &crate::config::Backend) -> Result<Arc<Backend>, Fatal> {
    let built = Backend::build(config).map(Arc::new);
    built.map_err(|source| Fatal::Backend { name: config.name.clone(), source })
}

/// The way to a backend's MLflow server, if it is one.
fn build_relay(config: &crate::config::Backend) -> Option<Result<(String, Relay), Fatal>> {
    let Target::Mlflow { remote, .. } = &config.target else { return None };
    let built = Relay::build(remote).map(|relay| (config.name.clone(), relay));
    Some(built.map_err(|source| Fatal::Backend { name: config.name.clone(), source }))
}

/// The first lines of the log: where it listens, stores and ships, and how to try it.
fn greet(loaded: &Loaded, addresses: &[std::net::SocketAddr], socket: &str) {
    let config = &loaded.config;
    for address in addresses {
        info!("listening on {address} (OTLP over gRPC and HTTP)");
    }
    info!("listening on {socket} (OTLP over gRPC and HTTP, and JSON lines)");
    info!("storing in {} (at most {})", config.state_dir.display(), bytesize::ByteSize(config.spool.max_bytes));
    for backend in &config.backends {
        info!("shipping to {} ({})", backend.name, loaded.place(backend));
    }
    if config.backends.is_empty() {
        warn!("no backend is configured: traces are kept and shipped nowhere; add a [[backend]] to the configuration");
    }
    info!("to send a first trace: tracespool send --test");
}

fn tell(notify: &Notify, message: &str) {
    if let Err(error) = notify.send(message) {
        warn!(%error, "cannot tell the service manager");
    }
}

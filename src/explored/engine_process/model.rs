//! An engine process and its apps, without Chroma, sockets and the interpreter.

use std::cell::Cell;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use crate::engine::isolated::server::scheduler::{
    Call, Covered, Due, Effect, Interpreter, NotTaken, Scheduler, Stage, Written,
};
use crate::explored::once_in;
use crate::sync::thread::JoinHandle;
use crate::sync::time::Clock;
use crate::sync::{Condvar, Mutex, thread};

const LINGER: Duration = Duration::from_secs(1);
pub(super) const FOR_EVER: Duration = Duration::from_secs(3600);

/// An engine process: what `server/process.rs` and `server/executor.rs` are, without Chroma.
pub(super) struct Process {
    pub(super) scheduler: Scheduler,
    /// Whether the directory is still the one that was opened, and whether the binding is open.
    pub(super) is_in_place: AtomicBool,
    is_open: AtomicBool,
    reopens: bool,
    /// Calls in the binding, and how many of them hold the interpreter.
    inside: AtomicUsize,
    alone: AtomicUsize,
    /// How it has ended.
    ended: Mutex<Option<Due>>,
    has_ended: Condvar,
}

/// What an app is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Returned,
    /// Not executed: to be retried at once.
    Retry,
    /// Not executed: this process ends, or should.
    Closing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Read,
    Write,
    LongWrite,
}

impl Request {
    fn interpreter(self) -> Interpreter {
        match self {
            Self::Read => Interpreter::Released,
            Self::Write => Interpreter::Held,
            Self::LongWrite => Interpreter::HeldInSlices,
        }
    }
}

std::thread_local! {
    static ENV: Cell<Environment> = const { Cell::new(Environment::new()) };
}

/// What may go wrong.
#[derive(Clone, Copy)]
pub(super) struct Environment {
    pub(super) calls_fail: bool,
    pub(super) reopening_fails: bool,
    pub(super) calls_hang: bool,
    pub(super) linger: Duration,
}

impl Environment {
    pub(super) const fn new() -> Self {
        Self { calls_fail: false, reopening_fails: false, calls_hang: false, linger: LINGER }
    }
}

impl Process {
    fn start(linger: Duration) -> (Arc<Self>, JoinHandle<()>) {
        let process = Arc::new(Self {
            scheduler: Scheduler::new(linger, Some(0)),
            is_in_place: AtomicBool::new(true),
            is_open: AtomicBool::new(true),
            reopens: !ENV.get().reopening_fails,
            inside: AtomicUsize::new(0),
            alone: AtomicUsize::new(0),
            ended: Mutex::new(None),
            has_ended: Condvar::new(),
        });
        let main = Arc::clone(&process);
        (process, thread::spawn(move || main.main()))
    }

    /// `server/process.rs`.
    fn main(self: &Arc<Self>) {
        let mut taking = Vec::new();
        let due = loop {
            match self.scheduler.wait_until_due() {
                Due::Checkpoint => {
                    self.close();
                    let failed = !self.open();
                    if failed || once_in(2) {
                        self.scheduler.end_checkpoint(Duration::ZERO, None);
                    } else {
                        self.scheduler.end_reopening();
                    }
                }
                Due::CheckpointInBackground => taking.push(also(self, Self::take_in_background)),
                due => break due,
            }
        };
        if due == Due::End {
            self.close();
            self.scheduler.send_closing_notice();
        } else {
            // It was killed, and its threads with it: here they are to end as well.
            self.scheduler.advance(Stage::Ended);
        }
        *self.ended.lock().unwrap() = Some(due);
        self.has_ended.notify_all();
        for thread in taking {
            thread.join().unwrap();
        }
    }

    /// `server/background.rs`.
    fn take_in_background(&self) {
        let kept = self.without_writes().filter(|_| once_in(2));
        let is_purged = kept.is_some() && once_in(2) && self.without_writes().is_some();
        let failed = if once_in(2) { NotTaken::Failed } else { NotTaken::Interrupted };
        let taken = kept.map(|covered| Covered { is_purged, ..covered }).ok_or(failed);
        self.scheduler.end_in_background(Duration::ZERO, taken);
    }

    fn without_writes(&self) -> Option<Covered> {
        let kept_open = self.scheduler.keep_open()?;
        let _slot = self.scheduler.take_slot()?;
        self.inside.fetch_add(1, SeqCst);
        assert_eq!(self.alone.fetch_add(1, SeqCst), 0, "a call holds the interpreter");
        thread::yield_now();
        assert!(self.is_open.load(SeqCst), "closed meanwhile");
        self.alone.fetch_sub(1, SeqCst);
        self.inside.fetch_sub(1, SeqCst);
        Some(kept_open.coverable())
    }

    fn close(&self) {
        assert_eq!(self.inside.load(SeqCst), 0, "closed under a call");
        self.is_open.store(false, SeqCst);
        thread::yield_now();
    }

    fn open(&self) -> bool {
        self.is_open.store(self.reopens, SeqCst);
        if !self.reopens {
            self.scheduler.advance(Stage::Closing);
        }
        self.reopens
    }

    /// Waits for its end, as an app does before it starts another.
    fn wait_for_end(&self) -> Due {
        let mut ended = self.ended.lock().unwrap();
        loop {
            if let Some(due) = *ended {
                return due;
            }
            ended = self.has_ended.wait_timeout(ended, FOR_EVER).unwrap().0;
        }
    }

    fn is_in_place(&self) -> bool {
        let is_in_place = self.is_in_place.load(SeqCst);
        if !is_in_place {
            self.scheduler.advance(Stage::Closing);
        }
        is_in_place
    }

    /// `server/session.rs`, for one request.
    pub(super) fn answer(&self, request: Request) -> Answer {
        let Some(_request) = self.scheduler.begin_request() else { return Answer::Closing };
        let Some(mut call) = self.scheduler.begin_call(1, request.interpreter()) else {
            return Answer::Closing;
        };
        if !self.is_in_place() {
            call.end(Effect::default());
            return Answer::Closing;
        }
        let mut effect = Effect::default();
        let mut slot = None;
        let slices = if request == Request::LongWrite { 3 } else { 1 };
        let mut answer = Answer::Returned;
        for _ in 0..slices {
            if request != Request::Read {
                slot = self.scheduler.take_slot();
                if slot.is_none() {
                    answer = if self.is_in_place() { Answer::Retry } else { Answer::Closing };
                    break;
                }
                call.let_reads_end();
            }
            if !self.is_open.load(SeqCst) {
                answer = if self.is_in_place() { Answer::Retry } else { Answer::Closing };
                break;
            }
            if self.chroma(request, &mut call, &mut effect).is_none() {
                // The process was killed in the middle of it.
                return Answer::Closing;
            }
            if effect.failed {
                break;
            }
            slot = None;
        }
        call.end(effect);
        drop(slot);
        answer
    }

    /// The call in the binding; `None` where it never returns, and the process was killed.
    fn chroma(&self, request: Request, call: &mut Call<'_>, effect: &mut Effect) -> Option<()> {
        let holds = usize::from(request != Request::Read);
        self.inside.fetch_add(1, SeqCst);
        assert!(self.alone.fetch_add(holds, SeqCst) + holds <= 1, "two calls hold the interpreter");
        thread::yield_now();
        assert!(self.is_open.load(SeqCst), "closed under a call");
        if ENV.get().calls_fail && once_in(3) {
            call.suspect();
            thread::yield_now();
            effect.failed = once_in(2);
            if ENV.get().calls_hang && once_in(2) {
                assert_eq!(self.wait_for_end(), Due::Abort, "it ended while a call was in the binding");
                self.alone.fetch_sub(holds, SeqCst);
                return None;
            }
        } else if request != Request::Read {
            effect.written = Written { records: 10_000, ..Written::default() };
        }
        self.alone.fetch_sub(holds, SeqCst);
        self.inside.fetch_sub(1, SeqCst);
        Some(())
    }

    /// `server/maintenance.rs`.
    pub(super) fn manage(&self) {
        let Some(_request) = self.scheduler.begin_request() else { return };
        let Some(maintenance) = self.scheduler.begin_maintenance().filter(|_| self.is_in_place()) else { return };
        self.close();
        self.open();
        drop(maintenance);
    }
}

/// An app: it makes some calls, and retries each until it is executed, or until the process that refuses it has ended.
pub(super) fn app(process: &Arc<Process>, requests: &'static [Request]) -> JoinHandle<()> {
    let process = Arc::clone(process);
    thread::spawn(move || {
        let Some(id) = process.scheduler.connect(Some(1), UnixStream::pair().unwrap().0) else { return };
        for request in requests {
            loop {
                match process.answer(*request) {
                    Answer::Returned => break,
                    Answer::Retry => thread::yield_now(),
                    // It keeps its connection, on which it sees the end.
                    Answer::Closing => {
                        process.wait_for_end();
                        return;
                    }
                }
            }
        }
        process.scheduler.disconnect(id);
    })
}

pub(super) fn also(process: &Arc<Process>, act: impl FnOnce(&Process) + Send + 'static) -> JoinHandle<()> {
    let process = Arc::clone(process);
    thread::spawn(move || act(&process))
}

/// Executes what happens to a process, until it has ended.
pub(super) fn execution(environment: Environment, happens: impl FnOnce(&Arc<Process>) -> Vec<JoinHandle<()>>) {
    ENV.set(environment);
    let clock = Clock::start();
    let (process, main) = Process::start(environment.linger);
    for thread in happens(&process) {
        thread.join().unwrap();
    }
    main.join().unwrap();
    clock.stop();
}

//! Accepts connections: each has a session, and a thread of its own.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::engine::Engine;
use super::session::Session;
use super::stack::STACK;
use crate::engine::isolated::protocol::frame::{Kind, write_frame};
use crate::engine::isolated::protocol::peer;

/// How long it waits after an error. There may be no descriptor left until others close theirs.
const PAUSE: Duration = Duration::from_millis(10);

/// Accepts connections for as long as the process lives.
pub fn accept_all(engine: &Arc<Engine>) {
    for stream in engine.listener.socket().incoming() {
        match stream {
            Ok(stream) if peer::is_same_user(stream.as_fd()) => accept(engine, stream),
            Ok(_) => {}
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

fn accept(engine: &Arc<Engine>, stream: UnixStream) {
    // An app that is refused without a word looks for the next engine process.
    let Some(session) = Session::open(engine, stream) else { return };
    let stream = session.stream();
    let busy = engine.listener.greeting(&[]);
    let thread = thread::Builder::new().name("connection".into()).stack_size(STACK);
    if thread.spawn(move || session.run()).is_err() {
        // The app tries again, or says so. So short a frame fits into any socket, and blocks nobody.
        let _ = busy.and_then(|busy| write_frame(&mut &*stream, Kind::Busy, &busy));
    }
}

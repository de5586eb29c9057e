//! The conversation on one connection: a greeting, then requests and their answers, one at a time.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::engine::{Answer, Engine};
use super::executor::execute;
use super::scheduler::Stage;
use super::stack;
use crate::engine::isolated::protocol::frame::{Frame, Incoming, Kind, Outgoing, frames, write_frame};
use crate::engine::isolated::protocol::page::Passing;
use crate::engine::isolated::protocol::peer;

/// How long a process that closes waits for an app that does not read its answer.
const UNREAD_WITHIN: Duration = Duration::from_secs(5);

/// A connection that was accepted. Dropping it ends it.
pub struct Session {
    engine: Arc<Engine>,
    id: u64,
    stream: Arc<UnixStream>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.engine.scheduler.disconnect(self.id);
    }
}

impl Session {
    /// A session on this connection; `None` where the process is on the way to its end.
    pub fn open(engine: &Arc<Engine>, stream: UnixStream) -> Option<Self> {
        let copy = stream.try_clone().ok()?;
        let id = engine.scheduler.connect(peer::pid(copy.as_fd()), copy)?;
        Some(Self { engine: Arc::clone(engine), id, stream: Arc::new(stream) })
    }

    pub fn stream(&self) -> Arc<UnixStream> {
        Arc::clone(&self.stream)
    }

    /// Goes on until the other end disconnects.
    pub fn run(self) {
        // Whether the other end has disconnected or does not speak our protocol: there is nobody to tell.
        let _ = self.greet().and_then(|is_greeted| if is_greeted { self.answer_requests() } else { Ok(()) });
    }

    /// Says which database this is, and whether it could be opened; tells whether requests are accepted.
    fn greet(&self) -> io::Result<bool> {
        let Engine { scheduler, binding, catalogue, listener, .. } = &*self.engine;
        let mut stream = &*self.stream;
        stream.set_write_timeout(Some(UNREAD_WITHIN))?;
        let Some(_greeting) = scheduler.begin_request() else {
            write_frame(&mut stream, Kind::Closing, &listener.greeting(&[])?)?;
            return Ok(false);
        };
        if let Some(error) = binding.failure() {
            write_frame(&mut stream, Kind::Failed, &listener.greeting(error)?)?;
            // Whoever comes next is to have it opened by another process.
            scheduler.advance(Stage::Refusing);
        } else {
            let mut passing = Passing::new(stream, catalogue.page());
            write_frame(&mut passing, Kind::Hello, &listener.greeting(&binding.take_notices())?)?;
        }
        Ok(true)
    }

    fn answer_requests(&self) -> io::Result<()> {
        let mut incoming = Incoming::default();
        loop {
            let Some(frame) = incoming.read_from(&mut &*self.stream)? else { continue };
            let Some(_request) = self.engine.scheduler.begin_request() else {
                // The connection stays open: when it is closed, whoever releases the database knows that this process has
                // ended.
                self.send(Kind::Closing, &[])?;
                continue;
            };
            let (kind, answer) = self.answer(frame)?;
            self.send(kind, &answer)?;
        }
    }

    fn answer(&self, Frame { kind, body }: Frame) -> io::Result<Answer> {
        match kind {
            Kind::Call => Ok(stack::call(body, |body| execute(&self.engine, body, self.id, &self.stream))),
            Kind::Manage => Ok(self.engine.manage(&body)),
            Kind::Delete => Ok(self.engine.delete()),
            Kind::Release => Ok((self.engine.scheduler.release(peer::pid(self.stream.as_fd())), Vec::new())),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Sends an answer. A process that closes does not wait long for an app that does not read it.
    fn send(&self, kind: Kind, answer: &[u8]) -> io::Result<()> {
        for (kind, part) in frames(kind, answer) {
            let mut frame = Outgoing::new(kind, part)?;
            let mut give_up = None;
            while !frame.write_to(&mut &*self.stream)? {
                let is_closing = self.engine.scheduler.is_closing();
                if is_closing && Instant::now() >= *give_up.get_or_insert(Instant::now() + UNREAD_WITHIN) {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
        }
        Ok(())
    }
}
